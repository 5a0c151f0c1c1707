"""Functions of a tensor whose code asks for its values. (pytest rewrites the assertions of test files, not of this one.)"""

from __future__ import annotations

import torch
from torch import Tensor

BIG = 1000.0


def clamped_if_not_finite(x: Tensor) -> Tensor:
    if not torch.isfinite(x).all():
        x = x.clamp(-BIG, BIG)
    return x * 2


def clamped_if_infinite_or_nan(x: Tensor) -> Tensor:
    if torch.isinf(x).any() or torch.isnan(x).any() or (x != x).any():
        x = x.clamp(-BIG, BIG)
    return x * 2


def clamped_if_one_of_many(x: Tensor) -> Tensor:
    bad = torch.isinf(x) | torch.isnan(x)
    if bad.sum().item() > 0:
        x = x.clamp(-BIG, BIG)
    return x * 2


def within_limits(x: Tensor) -> Tensor:
    assert (x > -BIG).all(), "too small"
    assert torch.all(x > -2 * BIG).item(), "far too small"
    if (x > 2 * BIG).any() or not (x < BIG).all():
        message = f"{x.shape} is too large"
        raise ValueError(message)
    return x * 2


def with_a_mask_of_ones(x: Tensor) -> Tensor:
    mask = torch.ones(x.shape[0], dtype=torch.long)
    mask[1:] = 0
    if (mask > 0).all() or mask.sum() != 1:
        x = x.clamp(-BIG, BIG)
    return x * int(mask.sum() + 1)


def clamped_if_infinite_by_comparison(x: Tensor) -> Tensor:
    if (x == torch.inf).any() or not (x != -torch.inf).all() or not (x == x).all():
        x = x.clamp(-BIG, BIG)
    return x * 2


def with_a_mask_of_infinities(x: Tensor) -> Tensor:
    mask = torch.full(x.shape, -torch.inf)
    if not torch.isinf(mask).all() or torch.isfinite(mask).any() or not (mask == -torch.inf).all():
        x = x.clamp(-BIG, BIG)
    return x * 2


def doubled(x: Tensor) -> Tensor:
    return x * 2


def overwritten(x: Tensor) -> Tensor:
    mask = torch.ones(4)
    mask[0] = x[0]
    return x * 2 if mask.all() else x


def inside(x: Tensor) -> Tensor:
    if abs(2 if (x > 0).any() else 1) > 1:
        raise ValueError
    return x


def lasting(x: Tensor) -> Tensor:
    if (x > 0).any():
        print(x.shape)
        raise ValueError
    return x


def counted(x: Tensor) -> Tensor:
    many = (x > 0).sum().item()
    return x * 2 if many > 2 else x
