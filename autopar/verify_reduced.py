"""A large plan verified at small sizes: its decisions on a smaller model of the same structure, which fits into one process."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from autopar.errors import AutoparError, InputError, PlanError
from autopar.hardware import Hardware
from autopar.ir.plan import Plan
from autopar.ir.program import Program
from autopar.models import Loaded, Options, load
from autopar.planning.planner import Aims, Planner, realise
from autopar.planning.transplant import FULL, layers_needed, transplanted, unlike
from autopar.reduced import WINDOWS, depth, present, products, reduced_config, shrunk
from autopar.solver.from_plan import to_solution
from autopar.tracer import trace

LEAST_BATCH, LEAST_SEQ = 2, 16


@dataclass(frozen=True, kw_only=True)
class Reduced:
    """The smaller model with its inputs, and the plan for it; `sizes` says what became of what, for people.

    Where the config names no size that could be smaller these are the model and the plan themselves, and `sizes` is empty.
    """

    loaded: Loaded
    plan: Plan
    sizes: str = ""


def reduce(plan: Plan, large: Loaded, config: Path, hardware: Hardware, stage: Callable[[str], None]) -> Reduced:
    """The plan on the reduced model of its config; raises PlanError where that is not of the same structure."""
    axes = plan.mesh.sizes
    stage("tracing")
    program = trace(large.model, large.args, dict(large.kwargs), name=plan.model, precision=plan.precision, progress=stage)
    plan.require(program, plan.mesh)
    stage("building the smaller model")
    with of_smaller("cannot be built"):
        fields = reduced_config(config, axes, layers_needed(plan, program, depth(config)))
        small = small_model(fields, large, axes)
    if parameters(small) >= parameters(large):
        return Reduced(loaded=large, plan=plan)
    stage("tracing the smaller model")
    with of_smaller("cannot be traced"):
        traced = trace(small.model, small.args, dict(small.kwargs), name=plan.model, precision=plan.precision)
    decisions = transplanted(plan, program, traced)
    with of_smaller("cannot be planned so"):
        found = planned(traced, decisions, hardware, stage)
    return Reduced(loaded=small, plan=found, sizes=sizes(program, traced))


def planned(program: Program, decisions: Plan, hardware: Hardware, stage: Callable[[str], None]) -> Plan:
    """The plan that makes these decisions, with figures of its own; raises PlanError where the planner has no such choice."""
    aims = Aims(hardware=hardware, optimizer=decisions.optimizer, overlap=decisions.overlap)
    priced = Planner(program, aims, micro_batches=decisions.micro_batches, progress=stage).priced(decisions.mesh)
    for region in priced.problem.regions:
        units = decisions.regions[region.name].units
        if other := [unit.name for unit in region.units if unit.name not in units]:
            raise unlike(f"{other[0]} of {region.name} is a unit there, and none of the plan")
    return realise(priced.builder, priced.problem, to_solution(priced.builder, priced.problem, decisions)).plan


@contextmanager
def of_smaller(what: str) -> Iterator[None]:
    """Errors of a model that nobody has written say which it is, and what to do."""
    try:
        yield
    except AutoparError as error:
        if str(error).endswith(FULL):
            raise
        raise PlanError(f"the smaller model {what}: {error}; {FULL}") from error


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
        path.write_text(json.dumps(fields | windows(large, options.seq)))
        try:
            return load(str(path), options)
        except InputError as error:
            raise InputError(str(error).replace(str(path), "its config")) from error


def windows(large: Loaded, seq: int | None) -> dict[str, int]:
    """Windows of attention that are shorter than the sequence, to be so in one of `seq` tokens: half of it."""
    if seq is None:
        return {}
    found = present(large.model.config, WINDOWS)
    return {name: seq // 2 for name, size in found if size < large.kwargs["input_ids"].shape[1]}


def parameters(loaded: Loaded) -> int:
    return sum(parameter.numel() for parameter in loaded.model.parameters())


def sizes(large: Program, small: Program) -> str:
    """Parameters, layers that come again, and inputs of the small program, beside how many the large one has.

    A layer is a call of a part that the large program has several calls of.
    """
    repeated = [name for name in large.regions if len(large.calls_of(name)) > 1]
    here, there = (sum(len(program.calls_of(name)) for name in repeated) for program in (small, large))
    layers = f", {here} of {there} repeated layers" if repeated else ""
    shapes = "".join(f", {name} {[*small.values[name].shape]}" for name in small.inputs if name)
    return f"{small.parameter_count} of {large.parameter_count} parameters{layers}{shapes}"
