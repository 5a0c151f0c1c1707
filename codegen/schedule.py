"""When collectives start, and when they are waited for.

A collective starts where what it sends is made, and is waited for where its result is first read. What sends only state
(gathers of parameters) could start at once: it starts just before one that is ahead of it is waited for. What nothing in the
graph reads (reductions of gradients) is waited for when another such one starts, or at the end. Plans count memory for one
parameter ahead and one gradient on its way: as many travel at a time as take no more than the largest of them, and a little.

A parameter that is cut along several mesh axes is gathered in as many legs, and its gradient is reduced so. Each leg is hidden
like a whole one: before a parameter is waited for, the next one's last leg starts, and the one after that's leg before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch.fx import Graph, Node

from autopar.ops.collectives import all_reduce_together
from autopar.ops.flops import group_argument
from autopar.ops.joint import bytes_of, owner

WAIT = torch.ops._c10d_functional.wait_tensor.default
ALL_REDUCE = torch.ops._c10d_functional.all_reduce.default
REDUCE_SCATTER = torch.ops._c10d_functional.reduce_scatter_tensor.default
TOGETHER = {
    ALL_REDUCE: torch.ops._c10d_functional.all_reduce_coalesced.default,
    REDUCE_SCATTER: torch.ops._c10d_functional.reduce_scatter_tensor_coalesced.default,
}
"""The same for several tensors, which travel together."""
SEVERAL = frozenset({*TOGETHER.values(), all_reduce_together})
"""Those, and what the eager backend runs in the place of one."""
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
        lazy = received(self.nodes)
        self.late = returned(self.nodes, lazy)
        self.lazy = lazy | self.late.keys()
        self.gathers = dict(sorted(gathers_of_state(self.nodes, state).items(), key=lambda each: -each[1]))
        self.needs = {start: chain(start, state) - {start} for start in self.gathers}
        self.idle = {n for start, needs in self.needs.items() for n in (start, *needs)} - self.done
        self.flying: dict[Node, None] = {}
        """Started and not waited for, by their waits."""
        self.ahead: dict[Node, None] = {}
        """Of the gathers those that are started, or about to be, and not waited for."""
        self.ahead_bytes = most((leg, bytes_of(start)) for start, leg in self.gathers.items())
        self.behind_bytes = most((leg, bytes_of(_sent(n))) for n, leg in self.late.items() if n.target is WAIT)

    def order(self) -> list[Node]:
        self._gather_ahead()
        for node in self.nodes:
            if node not in self.lazy and node not in self.idle:
                self._make(node)
        for wait in [w for w in self.flying if any(user in self.late for user in w.users)]:
            self._land(wait)
        for node in self.nodes:
            self._make(node)
        return self.made

    def _gather_ahead(self, least: int = 0) -> None:
        """Start gathers of state with at least so many legs to go, in order, as long as they fit beside others with as many;
        none before its earlier legs."""
        full: set[int] = {leg for leg in self.ahead_bytes if leg < least}
        for start, leg in self.gathers.items():
            if start not in self.done and start not in self.ahead and leg not in full and self._is_on_its_way(start):
                ahead = (n for n in self.ahead if self.gathers[n] == leg)
                if sum(map(bytes_of, (*ahead, start))) > self.ahead_bytes[leg]:
                    full.add(leg)
                else:
                    self._make(start)

    def _is_on_its_way(self, start: Node) -> bool:
        """Whether the earlier legs of a gather have started."""
        return all(n in self.done for n in self.needs[start] if n in self.gathers)

    def _make(self, node: Node) -> None:
        """The node, after what it needs."""
        if node in self.done:
            return
        if node in self.gathers:
            self.ahead[node] = None
        for source in node.all_input_nodes:
            self._make(source)
        if node.target is WAIT:
            (result,) = node.all_input_nodes
            self.flying.pop(node, None)
            if result in self.gathers:
                self.ahead.pop(result, None)
                self._gather_ahead(self.gathers[result])
        if is_start(node):
            self._take_off(node)
        if is_written := _written(node):
            for wait in [w for w in self.flying if owner(_sent(w)) in is_written]:
                self._make(wait)
        self.done.add(node)
        self.made.append(node)

    def _take_off(self, start: Node) -> None:
        waits = waits_of(start)
        if waits and self.late.keys() >= {*waits}:
            leg = self.late[waits[0]]
            behind = [w for w in self.flying if self.late.get(w) == leg]
            while behind and sum(bytes_of(_sent(w)) for w in (*behind, *waits)) > self.behind_bytes[leg]:
                self._land(behind.pop(0))
        self.flying |= dict.fromkeys(waits)

    def _land(self, node: Node) -> None:
        """Wait for a reduction, and start the next leg of its result: of several that travel together, when all have come."""
        self._make(node)
        for user in () if is_start(node) else node.users:
            if user in self.late and self.done.issuperset(user.all_input_nodes):
                self._land(user)


def most(sizes: Iterable[tuple[int, int]]) -> dict[int, float]:
    """By leg, how many bytes may travel at a time: the largest, and a little."""
    found: dict[int, float] = {}
    for leg, size in sizes:
        found[leg] = max(found.get(leg, 0.0), SLACK * size)
    return found


def gathers_of_state(nodes: Sequence[Node], state: set[Node]) -> dict[Node, int]:
    """Collectives that need nothing but state, in order, each with the number of others that its result has to go through."""
    lazy = received(nodes)
    after: dict[Node, set[Node]] = {node: set() for node in state}
    """What is ready, with the collectives that it comes from directly."""
    found: dict[Node, set[Node]] = {}
    for node in nodes:
        if node.all_input_nodes and all(n in after for n in node.all_input_nodes):
            sources = set[Node]().union(*(after[n] for n in node.all_input_nodes))
            if is_start(node):
                found[node] = sources
                after[node] = {node}
            elif not sources or node in lazy:
                after[node] = sources
    legs = dict.fromkeys(found, 0)
    for start in reversed(found):
        for source in found[start]:
            legs[source] = max(legs[source], 1 + legs[start])
    return legs


def received(nodes: Iterable[Node]) -> set[Node]:
    """Waits, and what only moves what they return."""
    found: set[Node] = set()
    for node in nodes:
        moves = node.target in MOVES and all(n in found for n in node.all_input_nodes)
        if node.target is WAIT or (moves and node.all_input_nodes):
            found.add(node)
    return found


def unread(nodes: Sequence[Node], lazy: set[Node]) -> set[Node]:
    """Of what was received, what only the caller reads."""
    found: set[Node] = set()
    for node in reversed(nodes):
        if node in lazy and all(n in found or n.op == "output" for n in node.users):
            found.add(node)
    return found


def returned(nodes: Sequence[Node], lazy: set[Node]) -> dict[Node, int]:
    """What only the caller reads, at once or after more collectives that nothing else reads: of what was received, with the
    number of collectives before the one that brought it, and of those further collectives."""
    found: set[Node] = set()
    for node in reversed(nodes):
        ends = all(n in found or n.op == "output" for n in node.users) and (node in lazy or is_part(node))
        further = is_start(node) and found.issuperset(waits_of(node)) and lazy.issuperset(node.all_input_nodes)
        if ends or further:
            found.add(node)
    legs: dict[Node, int] = {}
    for node in nodes:
        before = [legs[n] for n in node.all_input_nodes if n in legs]
        if node in found and (node in lazy or len(before) == len(node.all_input_nodes)):
            legs[node] = max(before, default=0) + is_start(node)
    return legs


def is_part(node: Node) -> bool:
    """One of several tensors that travelled together."""
    return node.op == "call_function" and node.target not in SEVERAL and started(node) not in (node, None)


def waits_of(start: Node) -> list[Node]:
    """The waits for a collective: several where several tensors travel together; none for any other node."""
    if started(start) not in (start, None):
        return []
    parts = list(start.users) if start.target in SEVERAL else [start]
    return [user for part in parts for user in part.users if user.target is WAIT and alone(user, part)]


def alone(user: Node, part: Node) -> bool:
    """Whether nothing else reads it; that the caller keeps it, for backward, does not count."""
    return all(other is user or other.op == "output" for other in part.users)


def is_start(node: Node) -> bool:
    """Whether it is a collective that somebody waits for."""
    return bool(waits_of(node))


def is_collective(node: Node) -> bool:
    return group_argument(node) is not None


def started(node: Node) -> Node | None:
    """The collective whose result this is, which has to be waited for."""
    if node.op == "placeholder":
        return node if node.meta.get("travels") else None
    if getattr(node.target, "__name__", "") == "getitem" and isinstance(node.args[0], Node):
        return node.args[0] if node.args[0].target in SEVERAL else None
    return node if is_collective(node) and node.target not in SEVERAL else None


def mark_travelling(placeholder: Node) -> Node:
    """The placeholder, as one for the result of a collective that another graph has started."""
    placeholder.meta["travels"] = True
    return placeholder


def held_until_waited(result: Node) -> list[Node]:
    """What a collective sends for this result in this graph, where it must last until the wait. An all-reduce sends a copy,
    which becomes its result."""
    start = started(result)
    if start is None or start.op == "placeholder" or start.target in (ALL_REDUCE, TOGETHER[ALL_REDUCE]):
        return []
    return [_sent_for(result)]


def _sent(wait: Node) -> Node:
    """What the collective of a wait sends for it."""
    result = wait.args[0]
    assert isinstance(result, Node)
    return _sent_for(result)


def _sent_for(result: Node) -> Node:
    start = started(result)
    assert start is not None
    sent = start.args[0] if start is result else start.args[0][result.args[1]]  # type: ignore[index]
    assert isinstance(sent, Node)
    return sent


def _written(node: Node) -> set[Node]:
    """Owners of what an in-place op writes into."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return set()
    given = zip(schema.arguments, node.args, strict=False)
    return {owner(a) for arg, a in given if arg.alias_info is not None and arg.alias_info.is_write and isinstance(a, Node)}


def chain(node: Node, state: set[Node]) -> set[Node]:
    """The node and all that it needs, down to state."""
    found, todo = set(), [node]
    while todo:
        one = todo.pop()
        if one not in found and one not in state:
            found.add(one)
            todo += one.all_input_nodes
    return found
