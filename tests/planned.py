"""Plans for the tiny models of the tests, traced and measured once per process, searched once per run of the suite."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autopar.api import plan_program
from autopar.codegen.emit import Emitted, emit
from autopar.codegen.measure import Counted
from autopar.codegen.measure import measure as count
from autopar.hardware import load
from autopar.ir.mesh import MeshSpec
from autopar.ir.plan import Plan
from autopar.ir.program import Program
from autopar.planning.planner import realise
from autopar.profiler.model_cost import measure
from autopar.solver.baselines import try_baselines
from autopar.solver.build import Builder, Setting
from autopar.solver.smallest import smallest
from autopar.tracer import trace
from tests.hardware_toy import toy_hardware
from tests.models import MODELS

GAP, TIME_LIMIT_S = 0.02, 8.0
"""What these tests prove holds for any plan, so none needs to be the best one."""


Realised = tuple[Plan, Emitted, Counted]


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


def once(program: Program, key: str, find: Callable[[], Realised]) -> Realised:
    """As `find`; what another process of this run found is read from the folder that tests/conftest.py names."""
    if (folder := os.environ.get("AUTOPAR_TEST_PLANS")) is None:
        return find()
    path = Path(folder) / f"{key}.json"
    if path.exists():
        emitted = emit(program, Plan.load(path))
        return emitted.plan, emitted, count(emitted)
    found = find()
    found[0].save(path)
    return found


@lru_cache(maxsize=64)
def planned(name: str, mesh: str, memory: int | None = None, dtype: torch.dtype = torch.float32) -> Realised:
    """On hardware whose links are nearly free, so that sharding pays even for models this small."""
    program, spec = traced(name, dtype).program, MeshSpec.of(mesh)
    options: dict[str, Any] = {"hardware": toy_hardware(), "gap": GAP, "time_limit_s": TIME_LIMIT_S}
    key = f"{name}-{mesh}-{memory}-{dtype}"
    return once(program, key, lambda: plan_program(program, spec, memory=memory, **options))


@lru_cache(maxsize=64)
def tightest(name: str, mesh: str, dtype: torch.dtype = torch.float32) -> Realised:
    """The plan with the lowest peak that the solver finds in a few seconds, under a budget of just that peak."""
    program = traced(name, dtype).program

    def find() -> Realised:
        builder = Builder(measure(program), Setting(mesh=MeshSpec.of(mesh), hardware=toy_hardware()))
        problem = builder.problem()
        least = smallest(problem, time_limit_s=TIME_LIMIT_S)
        found = realise(builder, replace(problem, budget_bytes=least.bytes), least.solution)
        return found.plan, found.emitted, found.counted

    return once(program, f"{name}-{mesh}-tightest-{dtype}", find)


@lru_cache(maxsize=16)
def known_way(name: str, mesh: str, way: str, dtype: torch.dtype = torch.float32) -> Emitted:
    """The graphs of a known way to parallelize ("fsdp", "ddp", ...), without checkpoints, on the hardware "cpu"."""
    builder = Builder(measure(traced(name, dtype).program), Setting(mesh=MeshSpec.of(mesh), hardware=load("cpu")))
    problem = builder.problem()
    found = next(tried.solution for tried in try_baselines(problem, names=[way], checkpoints=["none"]))
    assert found is not None, f"{way} has no place on {mesh}"
    return realise(builder, problem, found).emitted
