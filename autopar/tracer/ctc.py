"""Targets of a CTC loss that the model selects by a mask: "labels[labels >= 0]", "labels.masked_select(mask)".

How many there are, only data tell, but the loss takes as many as the lengths say. So it gets them padded, as rows of a known
size. What was selected is then a dead end of the graph, unless something else asks for it, too, which stays an error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from autopar.ir.ctc import CTC_LOSS, CTC_TARGETS
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
        found = selected(targets)
        if found is None or shape_of(targets.meta["val"])[:-1] not in ((), (1,)):
            continue
        labels, mask = found
        shape = shape_of(labels.meta["val"])
        by_rows = len(shape) == 2 and shape[0] == shape_of(log_probs.meta["val"])[1]
        padded = before(graph, loss, CTC_TARGETS, labels, mask, lengths, by_rows)
        loss.args = (log_probs, padded, *loss.args[2:])


def selected(targets: Node) -> tuple[Node, Node] | None:
    """The whole numbers that targets are chosen from, and the mask of the same shape that chooses them, if it is so."""
    node: Any = targets
    while node.target in PASSED and node.meta["val"].dtype in (torch.int32, torch.int64):
        node = node.args[0]
    if node.target is aten.masked_select.default:
        labels, mask = node.args
    elif node.target is aten.index.Tensor and len(node.args[1]) == 1:
        labels, (mask,) = node.args
    else:
        return None
    of, by = labels.meta["val"], mask.meta["val"]
    fits = by.dtype is torch.bool and not of.is_floating_point() and shape_of(of) == shape_of(by)
    return (labels, mask) if fits else None
