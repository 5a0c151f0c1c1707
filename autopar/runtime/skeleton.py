"""A model without its weights: what is kept of it so that it can be traced again."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger("autopar")


def skeleton(model: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers have shapes, strides, dtypes and devices, but no memory.

    A model that cannot be copied is kept as it is, weights included; that is logged.
    """
    memo: dict[int, Any] = {id(tensor): hollow(tensor) for tensor in (*model.parameters(), *model.buffers())}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        logger.warning("%s cannot be copied (%s): its weights stay in memory beside the shards", type(model).__name__, error)
        return model


def hollow(tensor: Tensor) -> Tensor:
    """A tensor like it on a storage of no bytes."""
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    if not empty.is_meta:
        empty.untyped_storage().resize_(0)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty.requires_grad_(tensor.requires_grad)
