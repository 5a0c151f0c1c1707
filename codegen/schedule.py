"""When collectives start, and when they are waited for.

A collective starts where what it sends is made, and is waited for where its result is first read. What sends only state
(gathers of parameters) could start at once: it starts just before one that is ahead of it is waited for. What nothing in the
graph reads (reductions of gradients) is waited for when another such one starts, or at the end. Plans count memory for one
parameter ahead and one gradient on its way: as many travel at a time as take no more than the largest of them, and a little.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.fx import Graph, Node

from autopar.ops.joint import bytes_of, owner

WAIT = torch.ops._c10d_functional.wait_tensor.default
ALL_REDUCE = torch.ops._c10d_functional.all_reduce.default
aten = torch.ops.aten
SLACK = 1.25
"""So that a bias travels beside its matrix, and not in its place."""
MOVES = frozenset(
    {
        aten.view.default,
        aten._unsafe_view.default,
        aten.permute.default,
        aten.transpose.int,
        aten.t.default,
        aten.clone.default,
        aten.unsqueeze.default,
        aten.squeeze.dim,
        aten._to_copy.default,
        aten.div.Tensor,
    }
)
"""What becomes of a received tensor on the way to its first reader: nothing that could run in the meantime."""


def schedule(graph: Graph, state: Iterable[Node]) -> None:
    """Reorder the graph in place; the placeholders in `state` are parameters and buffers at rest."""
    order = Scheduler(graph, set(state)).order()
    first = next(n for n in graph.nodes if n.op != "placeholder")
    for node in order:
        if node is not first:
            first.prepend(node)
        else:
            first = node.next
    graph.lint()


class Scheduler:
    """Takes over a graph's nodes one after the other; some only when another one needs them."""

    def __init__(self, graph: Graph, state: set[Node]) -> None:
        self.nodes = [n for n in graph.nodes if n.op not in ("placeholder", "output")]
        self.made: list[Node] = []
        self.done: set[Node] = {n for n in graph.nodes if n.op == "placeholder"}
        self.lazy = self._received()
        self.late = self._unread()
        self.gathers = self._of_state(state)
        self.idle = {n for start in self.gathers for n in _chain(start, state)} - self.done
        self.flying: dict[Node, None] = {}
        """Started and not waited for, by their waits."""
        self.ahead_bytes = SLACK * max(map(bytes_of, self.gathers), default=0)
        self.behind_bytes = SLACK * max((bytes_of(_sent(n)) for n in self.late if n.target is WAIT), default=0)

    def _received(self) -> set[Node]:
        """Waits, and what only moves what they return."""
        found: set[Node] = set()
        for node in self.nodes:
            moves = node.target in MOVES and all(n in found for n in node.all_input_nodes)
            if node.target is WAIT or (moves and node.all_input_nodes):
                found.add(node)
        return found

    def _unread(self) -> set[Node]:
        """Of these, what only the caller reads."""
        found: set[Node] = set()
        for node in reversed(self.nodes):
            if node in self.lazy and all(n in found or n.op == "output" for n in node.users):
                found.add(node)
        return found

    def _of_state(self, state: set[Node]) -> list[Node]:
        """Collectives that need nothing but state, in order."""
        ready = set(state)
        found = []
        for node in self.nodes:
            if node.all_input_nodes and all(n in ready for n in node.all_input_nodes):
                ready.add(node)
                if is_start(node):
                    found.append(node)
                    ready.discard(node)
        return found

    def order(self) -> list[Node]:
        self._gather_ahead()
        for node in self.nodes:
            if node not in self.lazy and node not in self.idle:
                self._make(node)
        for node in self.nodes:
            self._make(node)
        return self.made

    def _gather_ahead(self) -> None:
        """Start gathers of state, in order, as long as they fit."""
        for start in self.gathers:
            if start not in self.done:
                ahead = [w.args[0] for w in self.flying if w.args[0] in self.gathers]
                if sum(bytes_of(n) for n in (*ahead, start) if isinstance(n, Node)) > self.ahead_bytes:
                    return
                self._make(start)

    def _make(self, node: Node) -> None:
        """The node, after what it needs."""
        if node in self.done:
            return
        for source in node.all_input_nodes:
            self._make(source)
        if node.target is WAIT:
            self.flying.pop(node, None)
            if node.args[0] in self.gathers:
                self._gather_ahead()
        if is_start(node):
            self._take_off(node)
        if is_written := _written(node):
            for wait in [w for w in self.flying if owner(_sent(w)) in is_written]:
                self._make(wait)
        self.done.add(node)
        self.made.append(node)

    def _take_off(self, start: Node) -> None:
        wait = next(iter(start.users))
        if wait in self.late:
            behind = [w for w in self.flying if w in self.late]
            while behind and sum(bytes_of(_sent(w)) for w in (*behind, wait)) > self.behind_bytes:
                self._make(behind.pop(0))
        self.flying[wait] = None


def is_start(node: Node) -> bool:
    """Whether it is a collective that somebody waits for."""
    return len(node.users) == 1 and next(iter(node.users)).target is WAIT


def is_collective(node: Node) -> bool:
    return getattr(node.target, "namespace", "") == "_c10d_functional" and node.target is not WAIT


def held_until_waited(start: Node) -> list[Node]:
    """What a collective sends, where it must last until the wait. An all-reduce sends a copy, which becomes its result."""
    return start.all_input_nodes if is_collective(start) and start.target is not ALL_REDUCE else []


def _sent(wait: Node) -> Node:
    """What the collective of a wait sends."""
    start = wait.args[0]
    assert isinstance(start, Node)
    return start.all_input_nodes[0]


def _written(node: Node) -> set[Node]:
    """Owners of what an in-place op writes into."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return set()
    given = zip(schema.arguments, node.args, strict=False)
    return {owner(a) for arg, a in given if arg.alias_info is not None and arg.alias_info.is_write and isinstance(a, Node)}


def _chain(node: Node, state: set[Node]) -> set[Node]:
    """The node and all that it needs, down to state."""
    found, todo = set(), [node]
    while todo:
        one = todo.pop()
        if one not in found and one not in state:
            found.add(one)
            todo += one.all_input_nodes
    return found
