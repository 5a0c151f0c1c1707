"""Sharded implementations of losses beside cross-entropy; see `autopar.ops.sharded.common`."""

from __future__ import annotations

import torch
from torch import Tensor

from autopar.ops.sharded.common import SUM, Axes, reduce_over


def nll_mean(log_probs: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, axes: Axes) -> Tensor:
    """aten.nll_loss_nd with reduction MEAN, log_probs [tokens, classes, ...] and target S in a dim of tokens; the result is P.

    The mean is over the weights of all tokens that are not ignored, wherever they are. Communicates one number per axis.
    """
    total: Tensor = torch.ops.aten.nll_loss_nd.default(log_probs, target, weight, SUM, ignore_index)
    kept = target != ignore_index
    weights = kept.to(total.dtype) if weight is None else weight[target.masked_fill(~kept, 0)].masked_fill(~kept, 0)
    return total / reduce_over(weights.sum(), axes)
