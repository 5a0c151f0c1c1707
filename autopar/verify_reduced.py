"""A large plan verified at small sizes: its decisions on a smaller model of the same structure, which fits into one process."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from autopar.hardware import Hardware
from autopar.ir.plan import Plan
from autopar.models import Loaded, Options, load
from autopar.planning.planner import Aims, Planner, realise
from autopar.planning.transplant import layers_needed, transplanted
from autopar.reduced import products, reduced_config, shrunk
from autopar.solver.from_plan import to_solution
from autopar.tracer import trace

LEAST_BATCH, LEAST_SEQ = 2, 16


@dataclass(frozen=True, kw_only=True)
class Reduced:
    """The smaller model with its inputs, and the plan for it; `sizes` says what became of what, for people."""

    loaded: Loaded
    plan: Plan
    sizes: str


def reduce(plan: Plan, large: Loaded, config: Path, hardware: Hardware, stage: Callable[[str], None]) -> Reduced:
    """The plan on the reduced model of its config; raises PlanError where that is not of the same structure."""
    axes, layers = plan.mesh.sizes, layers_needed(plan)
    stage("tracing")
    program = trace(large.model, large.args, dict(large.kwargs), name=plan.model, precision=plan.precision, progress=stage)
    plan.require(program, plan.mesh)
    stage("building the smaller model")
    fields = reduced_config(config, axes, layers)
    small = small_model(fields, large, axes)
    stage("tracing the smaller model")
    small_program = trace(small.model, small.args, dict(small.kwargs), name=plan.model, precision=plan.precision)
    decisions = transplanted(plan, program, small_program)
    aims = Aims(hardware=hardware, optimizer=plan.optimizer, overlap=plan.overlap)
    planner = Planner(small_program, aims, micro_batches=plan.micro_batches, progress=stage)
    priced = planner.priced(plan.mesh)
    solution = to_solution(priced.builder, priced.problem, decisions)
    found = realise(priced.builder, priced.problem, solution)
    shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in found.plan.inputs.items())
    return Reduced(
        loaded=small, plan=found.plan, sizes=f"{small_program.parameter_count} parameters, {layers} layers, {shapes}"
    )


def small_model(fields: dict[str, object], large: Loaded, axes: tuple[int, ...]) -> Loaded:
    shape = next(tensor.shape for tensor in large.kwargs.values() if tensor.ndim)
    tokens = large.kwargs.get("input_ids")
    options = Options(
        batch=shrunk(shape[0], products(axes), least=LEAST_BATCH),
        seq=None if tokens is None else shrunk(tokens.shape[1], products(axes), least=LEAST_SEQ),
        dtype=str(next(large.model.parameters()).dtype).removeprefix("torch."),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.json")
        path.write_text(json.dumps(fields))
        return load(str(path), options)
