"""Plans for the tiny models of the tests, traced and measured once per process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from autopar.api import plan_program
from autopar.codegen.emit import Emitted
from autopar.codegen.measure import Counted
from autopar.errors import BudgetError
from autopar.ir.mesh import MeshSpec
from autopar.ir.plan import Plan
from autopar.ir.program import Program
from autopar.tracer import trace
from tests.hardware_toy import toy_hardware
from tests.models import MODELS

GAP, TIME_LIMIT_S = 0.02, 8.0
"""What these tests prove holds for any plan, so none needs to be the best one."""


@dataclass(frozen=True)
class Traced:
    model: nn.Module
    kwargs: dict[str, Any]
    program: Program


@lru_cache(maxsize=8)
def traced(name: str, dtype: torch.dtype = torch.float32) -> Traced:
    torch.manual_seed(0)
    model, kwargs = MODELS[name](dtype=dtype)
    return Traced(model, kwargs, trace(model, (), kwargs, name=name))


@lru_cache(maxsize=64)
def planned(
    name: str, mesh: str, memory: int | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Plan, Emitted, Counted]:
    """On hardware whose links are nearly free, so that sharding pays even for models this small."""
    spec = MeshSpec.of(mesh)
    return plan_program(
        traced(name, dtype).program, spec, memory=memory, hardware=toy_hardware(), gap=GAP, time_limit_s=TIME_LIMIT_S
    )


@lru_cache(maxsize=64)
def tightest(name: str, mesh: str, dtype: torch.dtype = torch.float32) -> int:
    """The smallest budget that the solver knows a plan for, in bytes."""
    try:
        planned(name, mesh, 1, dtype)
    except BudgetError as error:
        return error.smallest_bytes
    raise AssertionError(f"{name} fits into one byte")
