"""Reductions of gradients that are still on their way when the backward graph that started them ends.

Plans count memory for one gradient on its way; where a call leaves more of it free, below the peak of the step, its reductions
are waited for later: as many as fit stay in the air while earlier layers compute, and the optimizer's step waits for the rest.
So nothing here raises the counted peak, and every device waits in the same order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.fx import Graph, Node

from autopar.codegen.emit import Emitted
from autopar.codegen.liveness import peak
from autopar.codegen.measure import dying_inputs, levels
from autopar.codegen.schedule import WAIT, held_until_waited
from autopar.codegen.split import Halves, placeholders, results_of
from autopar.ops.joint import bytes_of


@dataclass(frozen=True, kw_only=True)
class Flying:
    """A backward graph that does not wait for its reductions: `bytes` by the position of their results says what each keeps
    alive, apart from the result. `extra_bytes`: how much higher its own peak is."""

    graph: Graph
    bytes: dict[int, int]
    extra_bytes: int


@dataclass(frozen=True, kw_only=True)
class Flight:
    """What one call's backward does: whether its reductions fly, and how many bytes of earlier ones may still be in the air."""

    flying: Flying | None
    room_bytes: float


def flights(emitted: Emitted) -> list[Flight]:
    """For each call; below the highest level of the whole step."""
    found, steps = levels(emitted), emitted.halves()
    _, highest = found.highest
    regions = {id(halves): (region, halves) for region, halves in steps}
    flown = {key: fly(halves, len(region.local.region.inputs)) for key, (region, halves) in regions.items()}
    higher: dict[tuple[int, frozenset[str]], int] = {}
    made = []
    for (_, halves), (_, level), lasting in zip(steps, found.backward, found.lasting, strict=True):
        flying, room = flown[id(halves)], highest - level
        if flying is not None and lasting:
            if (key := (id(halves), lasting)) not in higher:
                higher[key] = raised(halves, flying.graph, lasting)
            flying = replace(flying, extra_bytes=higher[key])
        if flying is not None and flying.extra_bytes > room:
            flying = None
        made.append(Flight(flying=flying, room_bytes=room - (flying.extra_bytes if flying else 0)))
    return made


def fly(halves: Halves, inputs: int) -> Flying | None:
    """The backward graph without the waits that only gradients of state are read from; None if there are none.

    Gradients of a region's `inputs` first inputs are read by the next call.
    """
    graph = Graph()
    copied: dict[Node, Node] = {}
    graph.graph_copy(halves.backward, copied)
    landed = [copied[node] for node in results_of(halves.backward)]
    alone = [node for node, k in zip(landed, halves.gradients, strict=True) if k >= inputs and landed.count(node) == 1]
    last = {landed.index(node): node for node in alone if node.target is WAIT and not node.users}
    starts = {k: node.all_input_nodes[0] for k, node in last.items()}
    graph.output(tuple(starts.get(k, node) for k, node in enumerate(landed)))
    if not last:
        return None
    for node in last.values():
        graph.erase_node(node)
    sent = {k: sum(bytes_of(n) for n in held_until_waited(start)) for k, start in starts.items()}
    return Flying(graph=graph, bytes=sent, extra_bytes=raised(halves, graph))


def raised(halves: Halves, graph: Graph, lasting: frozenset[str] = frozenset()) -> int:
    """How much higher the peak of a version of the backward graph is, where saved values in `lasting` do not die."""
    die = {n.name for n in dying_inputs(halves)} - lasting
    before, after = (peak(g, {n for n in placeholders(g) if n.name in die}) for g in (halves.backward, graph))
    return max(0, after - before)


@dataclass
class Air:
    """Gradients on their way, in the order in which they were started, with the bytes that each keeps alive."""

    started: deque[tuple[Tensor, int]] = field(default_factory=deque)
    bytes: int = 0

    def take_off(self, gradients: Sequence[tuple[Tensor, int]]) -> None:
        for gradient, size in gradients:
            self.started.append((gradient, size))
            self.bytes += size

    def land(self, room_bytes: float = -1) -> None:
        """Wait for the oldest until the others fit; for all if no room is given."""
        while self.started and self.bytes > room_bytes:
            gradient, size = self.started.popleft()
            torch.ops._c10d_functional.wait_tensor(gradient)
            self.bytes -= size
