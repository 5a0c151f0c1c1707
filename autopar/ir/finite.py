"""Checks for numbers that are not finite, as guards against overflow make them, and what they find where all are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

aten = torch.ops.aten

ALONE = {
    aten.isinf.default: False,
    aten.isnan.default: False,
    aten.isposinf.default: False,
    aten.isneginf.default: False,
    aten.isfinite.default: True,
}
WITH_ITSELF = {aten.eq.Tensor: True, aten.ne.Tensor: False}
"""Only nan differs from itself."""
WITH_INFINITY = {aten.eq.Scalar: False, aten.ne.Scalar: True}


def found_if_finite(target: Any, args: Sequence[Any]) -> bool | None:
    """What the op finds for every element of its first argument if that is a finite number; None of an op that is no check.

    Tensors may be whatever stands for them: only whether two are the same counts.
    """
    if target in ALONE:
        return ALONE[target]
    if target in WITH_ITSELF and args[0] is args[1]:
        return WITH_ITSELF[target]
    if target in WITH_INFINITY and args[1] in (math.inf, -math.inf):
        return WITH_INFINITY[target]
    return None
