"""The table: one row per op, by family. Pointwise ops need none: torch's own tag makes their rule.

See `autopar.ops.rule` for the notation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from autopar.ir.own_functions import KINDS
from autopar.ops import fits
from autopar.ops.families import (
    creation,
    elementwise,
    indexing,
    losses,
    matrices,
    movement,
    normalization,
    random,
    reductions,
    scatters,
    spatial,
    spectral,
)
from autopar.ops.rule import OpRule, Rows, Target
from autopar.torch_private import OpOverload

FAMILIES = (
    matrices,
    spatial,
    normalization,
    losses,
    reductions,
    indexing,
    scatters,
    movement,
    elementwise,
    spectral,
    random,
    creation,
)
TABLE: Rows = {target: rule for family in FAMILIES for target, rule in family.ROWS.items()}

POINTWISE = OpRule(kind="pointwise", fit=fits.elementwise)
KEPT_WHOLE = OpRule(kind="whole", fit=fits.all_whole)
USER_RULES: dict[Target, OpRule] = {}


USER_IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {}
"""What users gave for factors of their rules, by the names in the `sharded` column: functions of local tensors."""


def own_rule(target: Target) -> OpRule | None:
    """The row that a user gave to an op, or to the `autograd.Function` that it runs."""
    kind = KINDS.get(target)
    return USER_RULES.get(target) or (None if kind is None else USER_RULES.get(kind))


def rule_for(target: Target) -> OpRule | None:
    """The row of an op; None for an op that nobody wrote one for (`autopar.ops.discovered` looks for one)."""
    if (own := own_rule(target)) is not None:
        return own
    if target in TABLE:
        return TABLE[target]
    if isinstance(target, OpOverload) and torch.Tag.pointwise in target.tags:
        return POINTWISE
    return None
