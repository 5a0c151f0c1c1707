"""Pareto: plans of one program on one mesh, none of which is both faster and smaller than another, as versioned JSON."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from autopar.errors import PlanError
from autopar.ir.plan import Plan, write_atomically

VERSION = 1


class Pareto(BaseModel):
    """Step time against memory: each point is a plan, the smallest first, each faster than the one before.

    `complete`: the first plan is proven to be the smallest there is, up to a tolerance of 0.2 %.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["autopar-pareto"] = "autopar-pareto"
    version: int = VERSION
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

    def within(self, budget_bytes: float) -> Plan | None:
        """The fastest of the plans that fit; None if none does."""
        return next((plan for plan in reversed(self.plans) if plan.peak_bytes <= budget_bytes), None)

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=1) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all plans; the file is replaced in one step."""
        write_atomically(Path(path), self.to_json())

    @classmethod
    def from_json(cls, text: str, where: str = "front") -> Pareto:
        """Raises PlanError naming what is wrong."""
        again = "make it again with `autopar plan --pareto`"
        try:
            data: Any = json.loads(text)
        except json.JSONDecodeError as error:
            raise PlanError(f"{where} is no JSON (line {error.lineno}: {error.msg}): {again}") from error
        if not isinstance(data, dict) or data.get("format") != "autopar-pareto":
            raise PlanError(f"{where} is no front of plans: it lacks format 'autopar-pareto'")
        if data.get("version") != VERSION:
            raise PlanError(f"{where} has version {data.get('version')}, this autopar reads version {VERSION}: {again}")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            raise PlanError(f"{where}: field {'.'.join(map(str, first['loc']))}: {first['msg']}: {again}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Pareto:
        """Read and validate; raises PlanError."""
        try:
            text = Path(path).read_text()
        except OSError as error:
            raise PlanError(f"cannot read {os.fspath(path)}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise PlanError(f"{os.fspath(path)} is not text") from error
        return cls.from_json(text, os.fspath(path))
