"""The table: one row per op, by family. Pointwise ops need none: torch's own tag makes their rule.

See `autopar.ops.rule` for the notation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import TypeVar

import torch

from autopar.ops import fits
from autopar.ops.factors import Factor
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
from autopar.ops.rule import OpRule, Rows, Target, parse
from autopar.torch_private import OpOverload

logger = logging.getLogger("autopar")

Op = TypeVar("Op", bound=Callable[..., object])

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


def op_rule(text: str, *, kind: str = "matmul", sharded: dict[Factor, str] | None = None) -> Callable[[Op], Op]:
    """Decorator: give a custom op (a `torch.library.custom_op`, or an OpOverload such as `torch.ops.mine.experts.default`)
    a row of the rule table, in the notation of `autopar.ops.rule`; it replaces the row that the op had, if any.

    `kind` groups the op with others for composing and for the known plans; `sharded` names, per factor, the implementation
    that runs where it is cut. Returns the op unchanged; raises ValueError if the row is malformed.

    >>> @torch.library.custom_op("docs::experts", mutates_args=())
    ... def experts(tokens: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    ...     return torch.einsum("tk,ekn->tn", tokens, weight)
    >>> _ = op_rule("t k, e k n -> t n")(experts)
    >>> rule_for(torch.ops.docs.experts.default).text
    't k, e k n -> t n'
    """
    parse(text)
    rule = OpRule(kind=kind, text=text, sharded=sharded or {})

    def register(op: Op) -> Op:
        USER_RULES[getattr(op, "_opoverload", op)] = rule
        return op

    return register


def rule_for(target: Target) -> OpRule | None:
    """The row of an op; None for an op that nobody wrote one for."""
    if target in USER_RULES:
        return USER_RULES[target]
    if target in TABLE:
        return TABLE[target]
    if isinstance(target, OpOverload) and torch.Tag.pointwise in target.tags:
        return POINTWISE
    return None


@cache
def warn_kept_whole(name: str) -> None:
    logger.warning("no rule for %s: kept whole on every device (add one with @autopar.op_rule)", name)
