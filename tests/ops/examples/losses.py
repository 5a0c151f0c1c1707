from __future__ import annotations

from typing import Any

import torch

from autopar.ir.ctc import CTC_LOSS, CTC_TARGETS
from autopar.ops.proof import Call
from tests.ops.examples.common import Example, Examples
from tests.ops.pick import Pick

aten = torch.ops.aten


def cross_entropy(p: Pick) -> Call:
    t, v = p.size(4, 6, 12), p.size(4, 6, 12)
    more = p.one([], [], [p.size(2, 6)], [p.size(2, 4, 1), p.size(6, 1)])
    weighted: dict[str, Any] = p.one({}, {}, {"weight": p.positive(v).detach()})
    if p.one(False, False, True):
        probabilities = p.tensor(t, v, *more, grad=False).softmax(1).requires_grad_(p.one(False, True))
        options = p.one({}, {"reduction": 2}, {"reduction": 0}, {"label_smoothing": 0.1})
        return Call(aten.cross_entropy_loss.default, (p.tensor(t, v, *more), probabilities), options | weighted)
    target = p.integers(v, t, *more)
    batched = p.one(True, True, True, False) or bool(more)
    ignored = p.one(-100, int(target.flatten()[1])) if batched else -100
    if p.one(False, True):
        target[1::2] = ignored
    options = p.one(
        {}, {"reduction": 2}, {"reduction": 0}, {"label_smoothing": 0.1},
        {"reduction": 2, "label_smoothing": 0.2}, {"reduction": 0, "label_smoothing": 0.2},
    )  # fmt: skip
    given = (p.tensor(t, v, *more), target) if batched else (p.tensor(v), p.integers(v))
    return Call(aten.cross_entropy_loss.default, given, options | weighted | {"ignore_index": ignored})


def nll(p: Pick) -> Call:
    t, v = p.size(4, 6, 12), p.size(4, 6, 12)
    more = p.one([], [], [p.size(2, 6)], [p.size(2, 4, 1), p.size(6, 1)])
    target = p.integers(v, t, *more)
    batched = p.one(True, True, True, False) or bool(more)
    ignored = p.one(-100, int(target.flatten()[1])) if batched else -100
    if p.one(False, True):
        target[1::2] = ignored
    weight = p.one(None, p.positive(v).detach())
    given = (p.tensor(t, v, *more), target) if batched else (p.tensor(v), p.integers(v))
    return Call(aten.nll_loss_nd.default, (*given, weight, p.one(1, 2, 0), ignored))


def of_elements(
    target: Any, *, probabilities: bool = False, weights: int = 0, options: tuple[dict[str, Any], ...] = ({},)
) -> Example:
    """Losses of (input, target, optional weights that broadcast, reduction)."""

    def example(p: Pick) -> Call:
        shape = p.shape(p.one(2, 3, 1))
        x = p.tensor(*shape)
        if probabilities:
            x = x.sigmoid().detach().requires_grad_()
        goal = p.tensor(*shape, grad=False)
        goal = (
            goal.sigmoid().requires_grad_(p.one(False, True))
            if weights or probabilities
            else goal.requires_grad_(p.one(False, True))
        )
        given = [p.one(None, p.positive(*p.against(shape)).detach()) for _ in range(weights)]
        return Call(target, (x, goal, *given, p.one(1, 2, 0)), p.one(*options))

    return example


def ctc(p: Pick) -> Call:
    """Sequences of many steps with short targets; padded, or one after the other."""
    steps, batch, classes, longest = 9, p.size(4, 6), p.size(4, 3), p.size(3, 2)
    log_probs = p.tensor(steps, batch, classes, grad=False).log_softmax(-1).requires_grad_()
    lengths = torch.full((batch,), longest) - p.integers(2, batch)
    targets = 1 + p.integers(classes - 1, *p.one((batch, longest), (batch, longest), (int(lengths.sum()),)))
    return Call(CTC_LOSS, (log_probs, targets, steps - p.integers(3, batch), lengths, 0, p.one(False, True)))


def ctc_targets(p: Pick) -> Call:
    """Of rows with gaps, one sequence each; or as long as other rows, of labels in any shape."""
    batch, longest = p.size(4, 6), p.size(3, 2)
    labels, mask = p.integers(9, batch, longest), p.flags(batch, longest)
    how = p.one("apart", "other rows", "any shape")
    if how == "apart":
        return Call(CTC_TARGETS, (labels, mask, mask.sum(-1), True, True))
    lengths = mask.sum(-1).flip(0)
    if how == "other rows":
        return Call(CTC_TARGETS, (labels, mask, lengths, True))
    shape = p.one((-1,), (1, -1), (longest, batch))
    return Call(CTC_TARGETS, (labels.reshape(shape), mask.reshape(shape), lengths, False))


EXAMPLES: Examples = {
    CTC_LOSS: ctc,
    CTC_TARGETS: ctc_targets,
    aten.cross_entropy_loss.default: cross_entropy,
    aten.nll_loss_nd.default: nll,
    aten.mse_loss.default: of_elements(aten.mse_loss.default),
    aten.l1_loss.default: of_elements(aten.l1_loss.default),
    aten.smooth_l1_loss.default: of_elements(aten.smooth_l1_loss.default, options=({}, {"beta": 0.5})),
    aten.huber_loss.default: of_elements(aten.huber_loss.default),
    aten.kl_div.default: of_elements(aten.kl_div.default, probabilities=True, options=({}, {"log_target": True})),
    aten.binary_cross_entropy.default: of_elements(aten.binary_cross_entropy.default, probabilities=True, weights=1),
    aten.binary_cross_entropy_with_logits.default: of_elements(aten.binary_cross_entropy_with_logits.default, weights=2),
}
