"""CTC loss as one op: ATen's own has a second result, for its backward, of a size that only the targets' lengths tell.

And its targets, where they are chosen by a mask: padded, as only data tell how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from autopar.ir.own_ops import annotated, define

REDUCTIONS = ("none", "mean", "sum")
"""By ATen's numbers."""
Lengths = Tensor | Sequence[int] | int
Losses = Callable[[Tensor, Tensor, Tensor, Tensor, int, bool], Tensor]


def losses(
    log_probs: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor, blank: int, zero_infinity: bool
) -> Tensor:
    """One per sequence. log_probs [steps, batch, classes], targets [batch, length], or all one after the other, lengths
    [batch] -> [batch]."""
    return functional.ctc_loss(log_probs, targets, input_lengths, target_lengths, blank, "none", zero_infinity)


OP = define(
    "ctc_loss",
    losses,
    annotated(losses, "ctc_loss"),
    1,
    lambda log_probs, *_: (log_probs.new_empty(log_probs.shape[1]),),
    namespace="autopar",
)
CTC_LOSS = torch.ops.autopar.ctc_loss.default


def ctc_loss_by(
    op: Losses,
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Lengths,
    target_lengths: Lengths,
    blank: int = 0,
    reduction: str | int = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """`torch.nn.functional.ctc_loss` and `torch.ctc_loss`, by an op that gives one loss per sequence. Half precision is
    computed in single, as under autocast."""
    reduction = reduction if isinstance(reduction, str) else REDUCTIONS[reduction]
    batched = log_probs.ndim == 3
    if not batched:
        log_probs, targets = log_probs.unsqueeze(1), targets.reshape(1, -1)
    if log_probs.dtype in (torch.float16, torch.bfloat16):
        log_probs = log_probs.float()
    inputs, lengths = (as_lengths(given, log_probs.device) for given in (input_lengths, target_lengths))
    found = op(log_probs, targets, inputs, lengths, blank, zero_infinity)
    if reduction == "mean":
        return (found / lengths.clamp(min=1)).mean()
    if reduction == "sum":
        return found.sum()
    return found if batched else found.squeeze(0)


def padded_targets(labels: Tensor, mask: Tensor, lengths: Tensor, by_rows: bool, apart: bool = False) -> Tensor:
    """The chosen labels, which lie one after the other, as [batch, width]: `lengths` [batch] of them in each row, then zeros.
    Labels and mask have one shape; the width is that of their rows, or without `by_rows` their number. `apart`: each row's
    length is the number of labels that are chosen in it.

    Raises ValueError if the lengths are not those of so many labels, as `ctc_loss` does.
    """
    width = padded_width(labels, by_rows)
    places = torch.arange(width, device=labels.device)
    if int(lengths.sum()) != int(mask.sum()) or (lengths > width).any():
        raise ValueError(f"{int(mask.sum())} targets of a CTC loss were selected, for sequences of {lengths.tolist()}")
    taken = places < lengths.unsqueeze(1)
    at = places + (lengths.cumsum(0) - lengths).unsqueeze(1)
    first = mask.flatten().logical_not().int().argsort(stable=True)
    return labels.flatten()[first][at.where(taken, 0)].long().where(taken, 0)


def padded_width(labels: Tensor, by_rows: bool) -> int:
    return labels.shape[1] if by_rows else labels.numel()


CTC_TARGETS_OP = define(
    "ctc_targets",
    padded_targets,
    annotated(padded_targets, "ctc_targets"),
    1,
    lambda labels, mask, lengths, by_rows, *_: (
        labels.new_empty((lengths.shape[0], padded_width(labels, by_rows)), dtype=torch.int64),
    ),
    namespace="autopar",
)
CTC_TARGETS = torch.ops.autopar.ctc_targets.default


def as_lengths(given: Lengths, device: torch.device) -> Tensor:
    """[batch]"""
    return (given if isinstance(given, Tensor) else torch.tensor(given, device=device)).reshape(-1).long()
