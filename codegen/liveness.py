"""Which memory a graph holds at each of its nodes, and which reductions need none of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.fx import Graph, Node

from autopar.codegen.schedule import ALL_REDUCE, TOGETHER, WAIT, held_until_waited
from autopar.ops.joint import bytes_of, owner

IN_PLACE = {
    ALL_REDUCE: torch.ops._c10d_functional.all_reduce_.default,
    TOGETHER[ALL_REDUCE]: torch.ops._c10d_functional.all_reduce_coalesced_.default,
}
"""The same, on the memory of what is sent: without, it is copied first."""


def peak(graph: Graph, dying: set[Node]) -> int:
    """The most that is alive during the graph beyond its inputs."""
    return max(alive_bytes(graph, dying))


def alive_bytes(graph: Graph, dying: set[Node]) -> list[int]:
    """What is alive at each node beyond the graph's inputs; negative contributions where inputs die."""
    nodes = list(graph.nodes)
    reads = reads_of(nodes)
    last = {source: i for i, sources in enumerate(reads) for source in sources}
    in_place = reduced_in_place(nodes)
    alive, found = 0, []
    for i, node in enumerate(nodes):
        made = bytes_of(node) if node.op == "call_function" and owner(node) is node and not is_tuple_part(node) else 0
        found.append(alive + (0 if node in in_place else made))
        alive += made
        for source in reads[i]:
            if last[source] == i and node.op != "output" and (source.op == "call_function" or source in dying):
                alive -= bytes_of(source) - sum(map(bytes_of, parts(source)))
    return found


def reads_of(nodes: Iterable[Node]) -> list[set[Node]]:
    """For each node the owners of the memory that has to be there for it."""
    return [{owner(s) for s in (*n.all_input_nodes, *travelling(n))} for n in nodes]


def reduced_in_place(nodes: Sequence[Node]) -> set[Node]:
    """All-reduces, of one or of several tensors, that may leave their results where what they send lies.

    Nothing else reads that memory then or later, it was made in this graph, and it is as large as what is sent.
    """
    reads = reads_of(nodes)
    last = {source: i for i, sources in enumerate(reads) for source in sources}
    found = set()
    for i, node in enumerate(nodes):
        if node.target in IN_PLACE:
            sent = node.all_input_nodes
            count = len(node.args[0]) if isinstance(node.args[0], list | tuple) else 1
            owners = {owner(s) for s in sent}
            if len(owners) == count and all(last[o] == i for o in owners) and all(map(is_whole, sent)):
                found.add(node)
    return found


def is_whole(sent: Node) -> bool:
    """Whether it is all of a tensor that an op of this graph made, one element after the other."""
    base, value = owner(sent), sent.meta["val"]
    made = base.op == "call_function" and isinstance(base.meta["val"], Tensor)
    return made and bool(value.is_contiguous()) and bytes_of(base) == bytes_of(sent)


def parts(node: Node) -> list[Node]:
    """What is taken of a node with several results, each with memory of its own, which it gives back itself."""
    return [user for user in node.users if is_tuple_part(user) and owner(user) is user]


def travelling(node: Node) -> list[Node]:
    """What collectives send that lasts until here at least: a wait, or the end for those that are returned without one."""
    if node.target is WAIT or node.op == "output":
        return [sent for result in node.all_input_nodes for sent in held_until_waited(result)]
    return []


def is_tuple_part(node: Node) -> bool:
    """A result of a node with several: counted with that node."""
    return getattr(node.target, "__name__", "") == "getitem"
