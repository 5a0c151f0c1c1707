"""Pareto: plans of one program on one mesh, none of which is both faster and smaller than another, as versioned JSON."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, Literal

from pydantic import model_validator

from autopar.ir.document import Document
from autopar.ir.plan import Plan
from autopar.ir.shown import Shown


class Pareto(Document, Shown):
    """Step time against memory: each point is a plan, the smallest first, each faster than the one before.

    `complete`: the first plan is proven to be the smallest there is, up to a tolerance of 0.2 %.
    """

    WHAT: ClassVar[str] = "front"
    FORMAT: ClassVar[str] = "autopar-pareto"
    VERSION: ClassVar[int] = 1
    AGAIN: ClassVar[str] = "make it again with `autopar plan --pareto`"

    format: Literal["autopar-pareto"] = "autopar-pareto"
    version: int = 1
    complete: bool = False
    notes: tuple[str, ...] = ()
    plans: tuple[Plan, ...]

    @model_validator(mode="after")
    def _ordered(self) -> Pareto:
        if not self.plans:
            raise ValueError("a front has at least one plan")
        for before, after in pairwise(self.plans):
            if not (before.peak_bytes < after.peak_bytes and before.step_time_s > after.step_time_s):
                raise ValueError("plans must be ordered by peak, each faster than the one before")
            if (before.fingerprint, before.mesh) != (after.fingerprint, after.mesh):
                raise ValueError("plans must be of one program on one mesh")
        return self

    def __repr__(self) -> str:
        """In short; `rich.print(front)` shows its table."""
        first = self.plans[0]
        return f"<Pareto of {first.model} on {first.mesh}: {len(self.plans)} plans>"

    __str__ = __repr__

    def require_consistent(self, where: str) -> None:
        """Raise PlanError, naming the field, where one of the plans contradicts itself."""
        for i, plan in enumerate(self.plans):
            plan.require_consistent(f"{where}: plan {i + 1}")

    def within(self, budget_bytes: float) -> Plan | None:
        """The fastest of the plans that fit; None if none does."""
        return next((plan for plan in reversed(self.plans) if plan.peak_bytes <= budget_bytes), None)
