"""Proof by running, by the code that users have as `autopar.check_rule`."""

from __future__ import annotations

from autopar.errors import RuleError as WrongRule
from autopar.ops.proof import Call, prove, unit_of

__all__ = ["Call", "WrongRule", "prove", "unit_of"]
