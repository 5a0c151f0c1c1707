"""Sharded implementations of losses; see `autopar.ops.sharded.common`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from autopar.ops.collectives import run
from autopar.ops.sharded.common import Axes, local_index, padding_of, parts, precise, reduce_over

NONE, MEAN, SUM = 0, 1, 2
"""The codes that aten's loss functions use for `reduction`."""


class CrossEntropy(torch.autograd.Function):
    """With m the row's maximum, Z = sum exp(x - m), w the target's weight, W the sum of weights, V classes, s the smoothing:

    loss = (1 - s) w (log Z + m - x_target) + s / V (W (log Z + m) - sum_c w_c x_c), and for a row's gradient g
    d x_c = g ((1 - s) w + s / V W) exp(x_c - m) / Z  -  g (1 - s) w [c = target]  -  g s / V w_c.

    Padded classes have no part in any of it: x is -inf there for m and Z, 0 for sums of x, and its gradient is 0.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        reduction: int,
        ignore_index: int,
        smoothing: float,
        vocab_axes: Axes,
        token_axes: Axes,
        classes: int | None,
        *coordinates: Tensor,
    ) -> Tensor:
        rows, dtype = logits.shape[1], precise(logits.dtype)
        padding = padding_of(rows, vocab_axes, coordinates, logits.device, classes)
        possible = logits if padding is None else logits.masked_fill(beside(padding, logits), -torch.inf)
        maximum = reduce_over(possible.amax(1), vocab_axes, "max")
        kept = target != ignore_index
        index, here = local_index(target, rows, vocab_axes, coordinates, classes)
        chosen = logits.gather(1, index.unsqueeze(1)).squeeze(1)
        below = (torch.sub if padding is None else Tensor.sub_)(possible, maximum.unsqueeze(1))
        sums = [
            below.exp_().sum(1, dtype=dtype),
            (chosen.to(dtype) - maximum.to(dtype)).masked_fill(~(here & kept), 0),
        ]
        if weight is not None:
            sums.append(weight.to(dtype)[index].masked_fill(~(here & kept), 0))
        if smoothing:
            sums += smoothing_sums(logits, maximum.to(dtype), weight, padding)
        if vocab_axes:
            sums = list(reduce_over(torch.stack(sums), vocab_axes).unbind(0))
        total_exp, chosen = sums[0], sums[1]
        token_weight = sums[2] if weight is not None else kept.to(dtype)
        log_total = total_exp.log()
        losses = (log_total - chosen) * (token_weight * (1 - smoothing))
        weights = None
        if smoothing:
            weighted_logits, weights = sums[-2:]
            losses = losses + (weights * log_total - weighted_logits) * (smoothing / (classes or rows * parts(vocab_axes)))
        losses = losses.masked_fill(~kept, 0)
        norm = reduce_over(token_weight.sum(), token_axes) if reduction == MEAN else None
        ctx.constants = ignore_index, smoothing, vocab_axes, classes
        ctx.save_for_backward(logits, target, weight, maximum, total_exp, chosen, token_weight, weights, norm, *coordinates)
        result = losses if reduction == NONE else losses.sum()
        return (result if norm is None else result / norm).to(logits.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        ignore_index, smoothing, vocab_axes, classes = ctx.constants
        logits, target, weight, maximum, total_exp, chosen, token_weight, weights, norm, *coordinates = ctx.saved_tensors
        rows, dtype = logits.shape[1], total_exp.dtype
        upstream = upstream.to(dtype) if norm is None else upstream.to(dtype) / norm
        row_grad = upstream.expand_as(total_exp).masked_fill(target == ignore_index, 0)
        smooth_grad = row_grad * (smoothing / (classes or rows * parts(vocab_axes)))
        target_grad = row_grad * token_weight * (1 - smoothing)
        scale = (target_grad if weights is None else target_grad + smooth_grad * weights) / total_exp
        grad = torch.sub(logits, maximum.unsqueeze(1)).exp_().mul_(scale.unsqueeze(1))
        at_target = scale * chosen.exp() - target_grad
        if smoothing and weight is None:
            grad = grad.sub_(smooth_grad.unsqueeze(1))
            at_target = at_target - smooth_grad
        elif smoothing:
            by_class = beside(weight.to(grad.dtype), grad)
            grad = grad.addcmul_(smooth_grad.unsqueeze(1).to(grad.dtype), by_class, value=-1)
            at_target = at_target - smooth_grad * token_weight
        # The target's own entry is near 0 once learnt, a difference of two numbers near 1: never taken in half precision.
        index, here = local_index(target, rows, vocab_axes, coordinates, classes)
        index = index.unsqueeze(1)
        if (padding := padding_of(rows, vocab_axes, coordinates, grad.device, classes)) is not None:
            grad = grad.masked_fill_(beside(padding, grad), 0)
        entry = torch.where(
            (here & (target != ignore_index)).unsqueeze(1), at_target.unsqueeze(1).to(grad.dtype), grad.gather(1, index)
        )
        return grad.scatter_(1, index, entry), *(None for _ in range(8 + len(coordinates)))


def beside(by_class: Tensor, logits: Tensor) -> Tensor:
    """One number per class, to stand beside logits [tokens, classes, ...]."""
    return by_class.view(-1, *(1,) * (logits.ndim - 2))


def smoothing_sums(logits: Tensor, maximum: Tensor, weight: Tensor | None, padding: Tensor | None) -> list[Tensor]:
    """Per row, over the local classes: the weighted sum of logits less the maximum, and the sum of weights."""
    counts = torch.full_like(maximum, logits.shape[1])
    if padding is not None:
        logits = logits.masked_fill(beside(padding, logits), 0)
        weight = None if weight is None else weight.masked_fill(padding, 0)
        counts = counts - padding.sum()
    if weight is None:
        return [logits.sum(1, dtype=maximum.dtype) - maximum * counts, counts]
    total = weight.to(maximum.dtype).sum()
    weighted = torch.tensordot(logits, weight.to(logits.dtype), ([1], [0]))
    return [weighted.to(maximum.dtype) - maximum * total, total.expand_as(maximum)]


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: int = MEAN,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    *,
    vocab_axes: Axes = (),
    vocab_coordinates: Sequence[Tensor] = (),
    token_axes: Axes = (),
    classes: int | None = None,
) -> Tensor:
    """aten.cross_entropy_loss for class indices, logits [tokens, vocab, ...] sharded over vocab, other dims, both or neither.

    Over `vocab_axes` logits and weight are S(vocab), target I; the result and the logits' gradient need nothing further (I);
    `classes` are there in all, if the axes cut them unevenly. Over `token_axes` logits and target are S in a dim of tokens; the
    result is P, or S with reduction NONE. The mean is over all tokens that are not ignored, wherever they are. Communicates per
    vocab axis a maximum and one sum of 2 to 5 numbers per token, per token axis one number; backward nothing. Keeps the logits
    and a few numbers per token, and backward makes one buffer of the logits' size, the gradient.
    """
    vocab, tokens = tuple(vocab_axes), tuple(token_axes)
    options = reduction, ignore_index, label_smoothing
    return run(CrossEntropy, logits, target, weight, *options, vocab, tokens, classes, *vocab_coordinates)


def nll_mean(log_probs: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, axes: Axes) -> Tensor:
    """aten.nll_loss_nd with reduction MEAN, log_probs [tokens, classes, ...] and target S in a dim of tokens; the result is P.

    The mean is over the weights of all tokens that are not ignored, wherever they are. Communicates one number per axis.
    """
    total: Tensor = torch.ops.aten.nll_loss_nd.default(log_probs, target, weight, SUM, ignore_index)
    kept = target != ignore_index
    weights = kept.to(total.dtype) if weight is None else weight[target.masked_fill(~kept, 0)].masked_fill(~kept, 0)
    return total / reduce_over(weights.sum(), axes)
