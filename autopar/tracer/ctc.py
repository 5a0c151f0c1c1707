"""Targets of a CTC loss that the model selects by a mask: "labels[labels >= 0]", "labels.masked_select(mask)".

How many there are, only data tell, but the loss takes as many as the lengths say. So it gets them padded, as rows of a known
size. What was selected is then a dead end of the graph, unless something else asks for it, too, which stays an error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from autopar.ir.ctc import CTC_LOSS, CTC_TARGETS
from autopar.torch_private import OpOverload
from autopar.tracer.clean import shape_of
from autopar.tracer.effects import before

aten = torch.ops.aten
PASSED = (aten._to_copy.default, aten.reshape.default, aten.contiguous.default)


def pad_chosen_targets(graph: Graph) -> None:
    """In place, of every CTC loss."""
    for loss in [node for node in graph.nodes if node.target is CTC_LOSS]:
        log_probs, targets, _, lengths, *_ = loss.args
        assert isinstance(log_probs, Node)
        assert isinstance(targets, Node)
        assert isinstance(lengths, Node)
        found = selected(targets)
        if found is None or shape_of(targets.meta["val"])[:-1] not in ((), (1,)):
            continue
        labels, mask = found
        shape = shape_of(labels.meta["val"])
        by_rows = len(shape) == 2 and shape[0] == shape_of(log_probs.meta["val"])[1]
        padded = before(graph, loss, CTC_TARGETS, labels, mask, lengths, by_rows, by_rows and count_rows(lengths, mask))
        loss.args = (log_probs, padded, *loss.args[2:])


def selected(targets: Node) -> tuple[Node, Node] | None:
    """The whole numbers that targets are chosen from, and the mask of the same shape that chooses them, if it is so."""
    node = in_order(targets)
    if node.target is aten.masked_select.default:
        labels, mask = node.args
    elif node.target is aten.index.Tensor and len(node.args[1]) == 1:
        labels, (mask,) = node.args
    else:
        return None
    of, by = labels.meta["val"], mask.meta["val"]
    fits = by.dtype is torch.bool and not of.is_floating_point() and shape_of(of) == shape_of(by)
    return (labels, mask) if fits else None


def in_order(node: Any) -> Any:
    """Where the same whole numbers are from, in the same order."""
    while node.target in PASSED and node.meta["val"].dtype in (torch.int32, torch.int64):
        node = node.args[0]
    return node


def count_rows(lengths: Node, mask: Node) -> bool:
    """Whether the lengths are how often the mask is set in each of its rows [batch, length]."""
    total = in_order(lengths)
    if total.target is not aten.sum.dim_IntList or total.args[1] not in ([1], [-1]):
        return False
    counted = total.args[0]
    return shape_of(counted.meta["val"]) == shape_of(mask.meta["val"]) and same(in_order(counted), mask)


def same(one: Any, other: Any) -> bool:
    """Whether two nodes, or arguments of nodes, are one value: the same op of the same, not random."""
    if not isinstance(one, Node) or not isinstance(other, Node):
        return type(one) is type(other) and bool(one == other)
    if one is other:
        return True
    if not isinstance(one.target, OpOverload) or one.target is not other.target or one.kwargs != other.kwargs:
        return False
    fixed = torch.Tag.pointwise in one.target.tags and torch.Tag.nondeterministic_seeded not in one.target.tags
    return fixed and len(one.args) == len(other.args) and all(map(same, one.args, other.args))
