"""Gathers of parameters that start while the call before computes.

What a call's graph starts with, gathers that need nothing but state, the graph of the call before can start instead, once its
own gathers are on their way. The results travel from one graph to the next, and the first that reads them waits. Where a call
is not at the peak of the step, they start as early as memory allows; elsewhere after the graph's own peak, if at all: so
nothing here raises the counted peak. The first call of a pass starts its own.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from torch.fx import Graph, Node

from autopar.codegen.emit import Emitted
from autopar.codegen.flight import Flight
from autopar.codegen.liveness import alive_bytes, is_tuple_part
from autopar.codegen.measure import dying_inputs, levels
from autopar.codegen.schedule import WAIT, chain, gathers_of_state, is_start, mark_travelling
from autopar.codegen.split import copy_node, copy_placeholder, placeholders, results_of
from autopar.ops.joint import bytes_of, owner


@dataclass(frozen=True, eq=False, kw_only=True)
class Lead:
    """The first nodes of a graph, which start gathers of state. They read `inputs`, whose positions among the call's state are
    `reads`; `graph`: those inputs -> the started results."""

    nodes: tuple[Node, ...]
    starts: tuple[Node, ...]
    inputs: tuple[Node, ...]
    reads: tuple[int, ...]
    graph: Graph

    @property
    def bytes(self) -> int:
        """What it allocates."""
        return sum(bytes_of(n) for n in self.nodes if owner(n) is n and not is_tuple_part(n))


@dataclass(frozen=True, eq=False, kw_only=True)
class Leg:
    """What one call runs in one pass: `lead`, unless the call before had it `ahead`, then `graph`. That takes what the call's
    own graph takes, what `ahead` reads, and what `lead` has started; it returns what the call's own graph does, and what
    `ahead` starts. Its peak is `extra_bytes` higher."""

    graph: Graph
    lead: Lead | None
    ahead: Lead | None
    extra_bytes: int


@dataclass(frozen=True, kw_only=True)
class Legs:
    """For each call of the program."""

    forward: tuple[Leg, ...]
    backward: tuple[Leg, ...]


@dataclass(frozen=True, kw_only=True)
class Own:
    """A call's graph in one pass. `state`: positions of the inputs that are there all the time (parameters, buffers,
    coordinates); `dying`: names of those that die at their last use; `room_bytes`: how far the call is below the peak."""

    graph: Graph
    state: range
    dying: frozenset[str]
    room_bytes: float


@dataclass(frozen=True, kw_only=True)
class Places:
    """Before which node of a graph the next call's lead may start: `early`, which raises the graph's peak by `raised_bytes`, or
    `late`, which does not; None if there is no such place."""

    early: int
    raised_bytes: int
    late: int | None


def legs(emitted: Emitted, flights: Sequence[Flight]) -> Legs:
    """With the backward graphs that `flights` chose."""
    found = levels(emitted)
    _, highest = found.highest
    forward, backward = [], []
    for i, (call, (_, halves), flight) in enumerate(zip(emitted.program.calls, emitted.halves(), flights, strict=True)):
        state = range(len(call.inputs), len(placeholders(halves.forward)))
        room = highest - found.forward[i][1]
        forward.append(Own(graph=halves.forward, state=state, dying=frozenset(), room_bytes=room))
        graph = halves.backward if flight.flying is None else flight.flying.graph
        dying = frozenset(n.name for n in dying_inputs(halves)) - found.lasting[i]
        state = range(len(halves.backward_inputs))
        backward.append(Own(graph=graph, state=state, dying=dying, room_bytes=flight.room_bytes))
    return Legs(forward=tuple(joined(forward)), backward=tuple(reversed(joined(backward[::-1]))))


def joined(calls: Sequence[Own]) -> list[Leg]:
    """The legs of calls that follow each other; of calls with equal graphs that do the same, the same."""
    lead_of, places_of, whole = functools.cache(lead), functools.cache(places), functools.cache(extended)
    leads = [lead_of(own.graph, own.state) for own in calls]
    after = [*leads[1:], None]
    starts: list[tuple[int, int] | None] = []
    for own, ahead in zip(calls, after, strict=True):
        found = None if ahead is None else places_of(own.graph, own.state, own.dying, ahead)
        if found is not None and found.raised_bytes <= own.room_bytes:
            starts.append((found.early, found.raised_bytes))
        else:
            starts.append(None if found is None or found.late is None else (found.late, 0))
    elsewhere = {led for led, start in zip(after, starts, strict=True) if start is not None}
    made = []
    for own, mine, ahead, start in zip(calls, leads, after, starts, strict=True):
        mine, ahead = mine if mine in elsewhere else None, ahead if start else None
        at, raised = start or (0, 0)
        graph = whole(own.graph, mine, ahead, at) if mine or ahead else own.graph
        made.append(Leg(graph=graph, lead=mine, ahead=ahead, extra_bytes=raised))
    return made


def lead(graph: Graph, state: range) -> Lead | None:
    """None if the graph does not begin with gathers of state."""
    inputs = placeholders(graph)
    readable = {inputs[k] for k in state}
    first: dict[Node, None] = {}
    for node in graph.nodes:
        if node.op != "placeholder":
            if node.op != "call_function" or node.target is WAIT or not {*node.all_input_nodes} <= readable | first.keys():
                break
            first[node] = None
    chains = {start: chain(start, readable) for start in first if is_start(start)}
    starts = [s for s, nodes in chains.items() if all(user in nodes for n in nodes - {s} for user in n.users)]
    if not starts:
        return None
    nodes = [n for n in first if any(n in chains[start] for start in starts)]
    read = {n for node in nodes for n in node.all_input_nodes} & readable
    given = {inputs[k]: k - state.start for k in state if inputs[k] in read}
    alone, env = Graph(), {}
    for node in given:
        env[node] = copy_placeholder(alone, node)
    for node in nodes:
        env[node] = copy_node(alone, node, env)
    alone.output(tuple(env[n] for n in starts))
    return Lead(nodes=tuple(nodes), starts=tuple(starts), inputs=tuple(given), reads=tuple(given.values()), graph=alone)


def places(graph: Graph, state: range, dying: frozenset[str], ahead: Lead) -> Places:
    """Early is as soon as the graph's own gathers are on their way; late is not before."""
    nodes, inputs = list(graph.nodes), placeholders(graph)
    alive = alive_bytes(graph, {n for n in inputs if n.name in dying})
    own = gathers_of_state(nodes, {inputs[k] for k in state})
    early = 1 + max((i for i, n in enumerate(nodes) if n.op == "placeholder" or n in own), default=-1)
    highest = max(alive)
    late = max(early, 1 + max((i for i, size in enumerate(alive) if size + ahead.bytes > highest), default=-1))
    raised = max(0, max(alive[early:]) + ahead.bytes - highest)
    return Places(early=early, raised_bytes=raised, late=late if late < len(nodes) else None)


def extended(graph: Graph, mine: Lead | None, ahead: Lead | None, at: int) -> Graph:
    """The graph without its own lead and, before its node number `at`, with that of the next call."""
    new, env, others = Graph(), dict[Node, Node](), dict[Node, Node]()
    for node in placeholders(graph):
        env[node] = copy_placeholder(new, node)
    for node in ahead.inputs if ahead else ():
        others[node] = copy_placeholder(new, node, "next_")
    for start in mine.starts if mine else ():
        env[start] = mark_travelling(copy_placeholder(new, start))
    for i, node in enumerate(graph.nodes):
        for other in ahead.nodes if ahead and i == at else ():
            others[other] = copy_node(new, other, others, "_next")
            others[other].meta["of_next"] = other.name
        if node.op == "call_function" and (mine is None or node not in mine.nodes):
            env[node] = copy_node(new, node, env)
    new.output((*(env[n] for n in results_of(graph)), *(others[n] for n in (ahead.starts if ahead else ()))))
    return new
