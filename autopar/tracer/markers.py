"""Ops that mark, in the graph being traced, where a block begins and ends and where one is run again.

They survive decomposition: what stands between `enter_block` and `leave_block` is the block's own graph. They compute nothing
and are gone once `expand` has put a copy of that graph in the place of every `same_block`.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.fx.node import has_side_effect

from autopar.torch_private import OpOverload, is_grad_switch, storage_key
from autopar.tracer.answers import was_asked


@cache
def markers() -> SimpleNamespace:
    """`enter(inputs, state, block)`, `leave(outputs, block)` and `again(inputs, like, call) -> outputs` as op overloads.

    `like` are the outputs of the block that was traced: those of the call have their shapes, strides and dtypes.
    """

    @torch.library.custom_op("autopar::enter_block", mutates_args=())
    def enter(inputs: list[Tensor], state: list[Tensor], block: int) -> None:
        pass

    @torch.library.custom_op("autopar::leave_block", mutates_args=())
    def leave(outputs: list[Tensor], block: int) -> None:
        pass

    @torch.library.custom_op("autopar::same_block", mutates_args=())
    def again(inputs: list[Tensor], like: list[Tensor], call: int) -> list[Tensor]:
        return [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device) for t in like]

    enter.register_fake(lambda inputs, state, block: None)
    leave.register_fake(lambda outputs, block: None)
    again.register_fake(
        lambda inputs, like, call: [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device) for t in like]
    )
    ops = torch.ops.autopar
    found = SimpleNamespace(enter=ops.enter_block.default, leave=ops.leave_block.default, again=ops.same_block.default)
    for op in (found.enter, found.leave):
        has_side_effect(op)
    return found


def between(enter: Node) -> Iterator[Node]:
    """The nodes after an `enter` up to its `leave`."""
    node = enter.next
    while not (node.target is markers().leave and node.args[1] == enter.args[2]):
        assert node.op != "root", "a block that was entered is left"
        yield node
        node = node.next


def unrepeatable(enter: Node, leave: Node) -> str:
    """Why the nodes of a block, copied with other inputs and state, might not do what the block would do there; or "".

    They have to be plain ops that use inputs, state and each other only, that write into neither inputs nor state, and
    whose sizes are not read from data.
    """
    known = set(_nodes(enter.args[:2]))
    outside = {storage_key(node.meta["val"]) for node in known}
    inside: set[Node] = set()
    marks = markers()
    for node in between(enter):
        inside.add(node)
        if node.target in (marks.enter, marks.leave):
            continue
        if not _plain(node):
            return f"{node.target} is no plain op"
        if _unbacked(node):
            return f"a size of {node.name} is read from data"
        if any(was_asked(source) for source in (node, *node.all_input_nodes)):
            return f"what it does depends on the values of {node.name}"
        if is_number(node):
            continue
        used = _nodes(node.args[0]) if node.target is marks.again else node.all_input_nodes
        for source in used:
            if not (source in inside or source in known or is_number(source)):
                return f"{node.name} uses {source.name}, which is neither its argument nor its own"
        if any(storage_key(written.meta["val"]) in outside for written in mutated(node)):
            return f"{node.name} writes into an argument or a buffer"
    foreign = [node.name for node in _nodes(leave.args[0]) if node not in inside]
    return f"it returns {foreign[0]}, which it did not make" if foreign else ""


def mutated(node: Node) -> list[Node]:
    """The arguments that an in-place op writes into."""
    if not isinstance(node.target, OpOverload) or not node.target._schema.is_mutable:
        return []
    written = []
    for i, argument in enumerate(node.target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)
            written += _nodes(given)
    return written


def is_number(node: Node) -> bool:
    return isinstance(node.meta.get("val"), torch.SymInt | torch.SymBool | torch.SymFloat | int | float | bool)


def _plain(node: Node) -> bool:
    target: Any = node.target
    if node.op != "call_function":
        return False
    if isinstance(target, OpOverload) or is_grad_switch(target):
        return True
    return getattr(operator, getattr(target, "__name__", ""), None) is target or is_number(node)


def _unbacked(node: Node) -> bool:
    val = node.meta.get("val")
    vals = val if isinstance(val, tuple | list) else [val]
    return any(isinstance(v, Tensor | torch.SymInt | torch.SymFloat | torch.SymBool) and free_unbacked_symbols(v) for v in vals)


def _nodes(arg: Any) -> list[Node]:
    if isinstance(arg, Node):
        return [arg]
    return [node for a in arg for node in _nodes(a)] if isinstance(arg, tuple | list) else []
