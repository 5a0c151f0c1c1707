"""Small passes over the flat graph, each in place: what a plan need not see goes, what means the same is written the same."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, Node

from autopar.torch_private import size_of
from autopar.tracer.strides import read_in_order

aten = torch.ops.aten

EMPTY = (aten.empty.memory_format, aten.empty_permuted.default)
VIEWS = (aten.view.default, aten._unsafe_view.default)
COPIES = (aten.alias.default, aten.lift_fresh_copy.default, aten.lift_fresh.default)
CHECKS = ("_assert", "sym_constrain")
WHOLE_DIM = 2**62
"""A slice that ends beyond this takes all of the dim: torch writes the largest int64."""


def clean(graph: Graph) -> None:
    """All passes, in the order in which one makes work for the next."""
    for one in (drop_checks, whole_dropout, canonical_names, drop_identities, read_in_order, drop_dead):
        one(graph)


def drop_checks(graph: Graph) -> None:
    """Assertions on metadata and on symbolic sizes: tracing has already decided them."""
    for node in reversed(list(graph.nodes)):
        name = str(node.target).removeprefix("aten.")
        if node.op == "call_function" and not node.users and name.startswith(CHECKS):
            graph.erase_node(node)


def whole_dropout(graph: Graph) -> None:
    """`native_dropout(...)[0]` of which nobody uses the mask is `dropout`."""
    for node in list(graph.nodes):
        if node.target is not aten.native_dropout.default:
            continue
        if all(user.target is operator.getitem and user.args[1] == 0 for user in node.users):
            for user in list(node.users):
                user.target, user.args = aten.dropout.default, (node.args[0], node.args[1], node.args[2] is not False)
            graph.erase_node(node)


def canonical_names(graph: Graph) -> None:
    """`view`s become `reshape`s, copies into contiguous memory `contiguous`, and what is copied over a tensor stands for it.

    Conjugates are computed at once: one that is a mark on a tensor could not be sent.

    Memory that holds anything may as well hold zeros (random numbers are written into it, and a graph has no writes).
    """
    for node in list(graph.nodes):
        if node.target in VIEWS:
            node.target = aten.reshape.default
        elif node.target is aten._conj.default:
            node.target = aten._conj_physical.default
        elif node.target is aten.clone.default and node.kwargs.get("memory_format") is torch.contiguous_format:
            node.target, node.kwargs = aten.contiguous.default, {}
        elif node.target is aten.cat.default:
            node.args = ([part for part in node.args[0] if not _is_nothing(part, node)] or node.args[0], *node.args[1:])
        elif node.target in EMPTY:
            options = {name: value for name, value in node.kwargs.items() if name != "memory_format"}
            node.target, node.args, node.kwargs = aten.zeros.default, node.args[:1], options
        elif node.target is aten.copy.default and isinstance(node.args[1], Node) and _spells_out(node):
            node.replace_all_uses_with(_written(graph, node))
            graph.erase_node(node)


def drop_identities(graph: Graph) -> None:
    """Ops whose result is their first argument."""
    for node in list(graph.nodes):
        if node.op == "call_function" and (test := IDENTITIES.get(node.target)) and test(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def drop_dead(graph: Graph) -> None:
    """Everything that no output needs: the graph is functional."""
    for node in reversed(list(graph.nodes)):
        if node.op not in ("placeholder", "output") and not node.users:
            graph.erase_node(node)


def shape_of(val: torch.Tensor) -> tuple[Any, ...]:
    """The sizes as ints or sympy expressions, so that comparing them asks torch for no guards."""
    return tuple(size_of(n) for n in val.shape)


def _same_shape(node: Node) -> bool:
    source = node.args[0]
    return isinstance(source, Node) and shape_of(source.meta["val"]) == shape_of(node.meta["val"])


def _is_nothing(part: Any, cat: Node) -> bool:
    """Whether torch leaves it out of a `cat`, as it does with one dim of no elements, whatever the others have."""
    val, result = part.meta["val"], cat.meta["val"]
    return bool(shape_of(val) == (0,) and result.ndim != 1 and val.dtype == result.dtype)


def _spells_out(copy: Node) -> bool:
    """Whether the source has the result's shape, or that is known in numbers."""
    source, shape = copy.args[1], shape_of(copy.meta["val"])
    assert isinstance(source, Node)
    return shape_of(source.meta["val"]) == shape or all(isinstance(n, int) for n in shape)


def _written(graph: Graph, copy: Node) -> Node:
    """What is copied over a tensor, in that one's dtype and shape: the tensor itself is not read."""
    source, result = copy.args[1], copy.meta["val"]
    assert isinstance(source, Node)
    if source.meta["val"].dtype != result.dtype:
        with graph.inserting_before(copy):
            cast = graph.call_function(aten._to_copy.default, (source,), {"dtype": result.dtype})
        cast.meta = {**copy.meta, "val": source.meta["val"].to(result.dtype)}
        source = cast
    if shape_of(source.meta["val"]) != shape_of(result):
        with graph.inserting_before(copy):
            spread = graph.call_function(aten.expand.default, (source, [int(n) for n in result.shape]))
        spread.meta = dict(copy.meta)
        source = spread
    return source


def _same_dtype(node: Node) -> bool:
    """A cast to the dtype that the value has, or a move to a device: a program knows only one."""
    source = node.args[0]
    plain = node.kwargs.get("memory_format") in (None, torch.preserve_format) and node.kwargs.get("layout") in (
        None,
        torch.strided,
    )
    return plain and isinstance(source, Node) and source.meta["val"].dtype == node.meta["val"].dtype


def _whole_slice(node: Node) -> bool:
    given: list[Any] = list(node.args[2:])
    start, end, step = given + [None, None, 1][len(given) :]
    from_first = start in (None, 0)
    to_last = end is None or (isinstance(end, int) and end >= WHOLE_DIM)
    return (from_first and to_last and step == 1) or _same_shape(node)


def _no_dropout(node: Node) -> bool:
    _, probability, train = node.args
    return bool(probability == 0) or train is False


def _only_reshaped(node: Node) -> bool:
    """A `reshape` copies where it must; whether the model's `contiguous` did anything depends on the tracing device."""
    return all(user.target is aten.reshape.default for user in node.users)


IDENTITIES: dict[Any, Callable[[Node], bool]] = {
    aten.reshape.default: _same_shape,
    aten.expand.default: _same_shape,
    aten.slice.Tensor: _whole_slice,
    aten.clone.default: lambda node: node.kwargs.get("memory_format") in (None, torch.preserve_format),
    aten.contiguous.default: _only_reshaped,
    aten._to_copy.default: _same_dtype,
    aten.dropout.default: _no_dropout,
    **dict.fromkeys(COPIES, lambda node: True),
}
