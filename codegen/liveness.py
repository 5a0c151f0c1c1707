"""Which memory a graph holds at each of its nodes, and which results need none of their own.

Where an op is the last reader of a value, its result may lie where that value did: PyTorch's own backward adds gradients up in
place, and DDP reduces them so. Graphs say which values there are; that some share memory in turn is said here, for what runs
them op by op and for what counts their bytes. (Inductor finds such places by itself.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from autopar.codegen.schedule import ALL_REDUCE, WAIT, held_until_waited
from autopar.ops.flops import inside
from autopar.ops.joint import bytes_of, owner

aten = torch.ops.aten
ALL_REDUCE_INTO = torch.ops._c10d_functional.all_reduce_.default
"""On the memory of what is sent, which is copied otherwise."""
POINTWISE: Mapping[Any, tuple[Any, str]] = {
    aten.add.Tensor: (aten.add.out, "out"),
    aten.sub.Tensor: (aten.sub.out, "out"),
    aten.mul.Tensor: (aten.mul.out, "out"),
    aten.div.Tensor: (aten.div.out, "out"),
    aten.neg.default: (aten.neg.out, "out"),
    aten.exp.default: (aten.exp.out, "out"),
    aten.rsqrt.default: (aten.rsqrt.out, "out"),
    aten.pow.Tensor_Scalar: (aten.pow.Tensor_Scalar_out, "out"),
    aten.sigmoid.default: (aten.sigmoid.out, "out"),
    aten.silu.default: (aten.silu.out, "out"),
    aten.gelu.default: (aten.gelu.out, "out"),
    aten.tanh.default: (aten.tanh.out, "out"),
    aten.sigmoid_backward.default: (aten.sigmoid_backward.grad_input, "grad_input"),
    aten.silu_backward.default: (aten.silu_backward.grad_input, "grad_input"),
    aten.gelu_backward.default: (aten.gelu_backward.grad_input, "grad_input"),
    aten.tanh_backward.default: (aten.tanh_backward.grad_input, "grad_input"),
    aten.threshold_backward.default: (aten.threshold_backward.grad_input, "grad_input"),
}
"""Ops with a kernel that writes into any memory, that of an operand too, and the name of that argument."""
OVERWRITING = frozenset({ALL_REDUCE_INTO, *(op for op, _ in POINTWISE.values())})
"""What `overwrite` puts in their places: ops that take time, although their results share memory with an operand."""


def peak(graph: Graph, dying: set[Node]) -> int:
    """The most that is alive during the graph beyond its inputs."""
    return max(alive_bytes(graph, dying))


def alive_bytes(graph: Graph, dying: set[Node]) -> list[int]:
    """What is alive at each node beyond the graph's inputs; negative contributions where inputs die."""
    alive, found = 0, []
    for change in changes(graph, dying):
        found.append(alive + change.running)
        alive += sum(change.made.values()) - sum(change.freed.values())
    return found


@dataclass(frozen=True, kw_only=True)
class Change:
    """What one node does to memory, in bytes: `made` and `freed` by the node that owns the memory, `scratch` is what it has for
    itself while it runs. `in_place`: what it makes lies where an operand did, which is freed."""

    node: Node
    made: Mapping[Node, int]
    freed: Mapping[Node, int]
    scratch: int
    in_place: bool

    @property
    def running(self) -> int:
        """While the node runs, beyond what was alive before."""
        return self.scratch + (0 if self.in_place else sum(self.made.values()))


def changes(graph: Graph, dying: set[Node]) -> Iterator[Change]:
    """One per node, in order; inputs in `dying` are freed at their last use, other inputs never."""
    nodes = list(graph.nodes)
    reads = reads_of(nodes)
    last = {source: i for i, sources in enumerate(reads) for source in sources}
    in_place = overwritten(nodes)
    for i, node in enumerate(nodes):
        gone = [s for s in reads[i] if last[s] == i and node.op != "output" and (s.op == "call_function" or s in dying)]
        yield Change(
            node=node,
            made=made_by(node),
            freed={source: own_bytes(source) for source in gone},
            scratch=scratch_bytes(node),
            in_place=node in in_place,
        )


def made_by(node: Node) -> dict[Node, int]:
    """The bytes of a node's result, or of each of several, by the node that will own them."""
    if node.op != "call_function" or owner(node) is not node or is_tuple_part(node):
        return {}
    return {node: own_bytes(node)} | {part: bytes_of(part) for part in parts(node)}


def own_bytes(node: Node) -> int:
    """What goes when the node's memory goes: without those of several results that were taken out."""
    return bytes_of(node) - sum(map(bytes_of, parts(node)))


def scratch_bytes(node: Node) -> int:
    """The most that an op has for itself while it runs, as far as it says so."""
    found = inside(node)
    return 0 if found is None else max(map(sum, found.alive))


def reads_of(nodes: Iterable[Node]) -> list[set[Node]]:
    """For each node the owners of the memory that has to be there for it."""
    return [{owner(s) for s in (*n.all_input_nodes, *travelling(n))} for n in nodes]


def overwritten(nodes: Sequence[Node]) -> dict[Node, Node]:
    """By node, the operand in whose memory its result may lie.

    Nothing else reads that memory then or later, it was made in this graph, and it is as large as the result.
    """
    reads = reads_of(nodes)
    last = {source: i for i, sources in enumerate(reads) for source in sources}
    found = {}
    for i, node in enumerate(nodes):
        if node.target is not ALL_REDUCE and node.target not in POINTWISE:
            continue
        owners = [owner(n) for n in node.all_input_nodes]
        alone = {o for o in owners if last[o] == i and owners.count(o) == 1}
        free = [n for n in node.all_input_nodes if owner(n) in alone and is_whole(n)]
        if taken := next((n for n in free if is_alike(n, node)), None):
            found[node] = taken
    return found


def overwrite(graph: Graph) -> None:
    """Let each result lie where it may."""
    for node, taken in overwritten(list(graph.nodes)).items():
        if node.target is ALL_REDUCE:
            node.target = ALL_REDUCE_INTO
        else:
            node.target, name = POINTWISE[node.target]
            node.kwargs = {**node.kwargs, name: taken}


def is_whole(node: Node) -> bool:
    """Whether it is all of a tensor that an op of this graph made, one element after the other."""
    base, value = owner(node), node.meta["val"]
    made = base.op == "call_function" and isinstance(base.meta["val"], Tensor)
    return made and bool(value.is_contiguous()) and bytes_of(base) == bytes_of(node)


def is_alike(operand: Node, result: Node) -> bool:
    one, other = operand.meta["val"], result.meta["val"]
    return one.shape == other.shape and one.dtype == other.dtype and bool(other.is_contiguous())


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
