"""The functions that users call; they put the stages together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from autopar.bytes import human, parse_bytes
from autopar.codegen.emit import Emitted, emit
from autopar.codegen.measure import Counted
from autopar.codegen.measure import measure as count
from autopar.codegen.module import ParallelModule, PlannedOnFirstBatch
from autopar.errors import AutoparError, BudgetError, InputError, MeshError, UnshardableError
from autopar.hardware import Hardware, load
from autopar.ir.mesh import MeshLike, MeshSpec
from autopar.ir.optimizer import STATE_COPIES
from autopar.ir.plan import Plan
from autopar.ir.program import Program
from autopar.ops.strategies import PASS_PARTIAL
from autopar.ops.units import random_places
from autopar.profiler.model_cost import ModelCost, measure
from autopar.profiler.precision import Precision
from autopar.profiler.profile import Profile, profile_model
from autopar.solver.baselines import solve_baselines
from autopar.solver.build import Builder, Setting
from autopar.solver.problem import Problem
from autopar.solver.search import solve
from autopar.solver.to_plan import to_plan
from autopar.tracer import trace
from autopar.tracer.capture import check_signature
from autopar.tracer.dynamic import Dynamic

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

logger = logging.getLogger("autopar")
Progress = Callable[[str], None]
TIGHTENINGS = 4
"""How often a plan whose emitted graphs exceed the budget is searched again under a tighter one."""


def plan(
    model: nn.Module,
    mesh: MeshLike,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    memory: int | str | None = None,
    hardware: str | Hardware = "cpu",
    optimizer: str = "adamw",
    time_limit_s: float = 60.0,
    gap: float = 1e-3,
    name: str | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Decide placements, conversions and what backward keeps, for one training step on example inputs.

    Nothing runs and no weights are needed: model and inputs may be on the meta device. `mesh` is "8x8", sizes, a MeshSpec
    or a DeviceMesh; `memory` the budget per device ("70GiB" or bytes; None: no limit); `hardware` a known name or a file.
    The plan's emitted graphs are counted before it is returned: their liveness peak is within the budget.

    Raises TraceError, BudgetError (with the smallest budget that works), UnshardableError, SolverError.

    >>> # plan = autopar.plan(model, "2x4", kwargs=batch, memory="70GiB", hardware="h100-sxm")
    """
    said = progress or (lambda stage: None)
    said("tracing")
    program = trace(model, args, dict(kwargs or {}), name=name, progress=said)
    return plan_program(
        program,
        MeshSpec.of(mesh),
        memory=memory,
        hardware=hardware,
        optimizer=optimizer,
        time_limit_s=time_limit_s,
        gap=gap,
        progress=said,
    )[0]


def plan_program(
    program: Program,
    mesh: MeshSpec,
    *,
    memory: int | str | None = None,
    hardware: str | Hardware = "cpu",
    optimizer: str = "adamw",
    time_limit_s: float = 60.0,
    gap: float = 1e-3,
    progress: Progress = lambda stage: None,
) -> tuple[Plan, Emitted, Counted]:
    """As `plan`, for a traced program; also the emitted graphs and what was counted on them."""
    if optimizer not in STATE_COPIES:
        raise InputError(f"unknown optimizer {optimizer!r}: use one of {', '.join(sorted(STATE_COPIES))}")
    budget = None if memory is None else parse_bytes(memory)
    device = hardware if isinstance(hardware, Hardware) else load(hardware)
    if places := random_places(program):
        logger.warning("%s draws random numbers, at %s: it can be planned, but not yet run", program.name, places[0])
    progress("profiling")
    cost = measure(program)
    builder = Builder(cost, Setting(mesh=mesh, hardware=device, budget_bytes=budget, optimizer=optimizer))
    progress("pricing strategies and conversions")
    problem = builder.problem()
    require_shardable(problem, mesh, program)
    return search(builder, problem, cost, time_limit_s=time_limit_s, gap=gap, progress=progress)


def search(
    builder: Builder, problem: Problem, cost: ModelCost, *, time_limit_s: float, gap: float, progress: Progress
) -> tuple[Plan, Emitted, Counted]:
    """Solve, emit, count; where the emitted graphs need more than the budget, tighten it by as much and solve again."""
    budget = problem.budget_bytes
    incumbents = [s for s in solve_baselines(problem).values() if s is not None]
    notes: tuple[str, ...] = ()
    for _ in range(TIGHTENINGS):
        progress("solving")
        solution = solve(problem, gap=gap, time_limit_s=time_limit_s, incumbents=incumbents)
        found = to_plan(builder, problem, solution)
        progress("emitting and counting")
        emitted = emit(cost.program, found)
        again = {name: tuple((h.redone, h.reconverted) for h in region.classes) for name, region in emitted.regions.items()}
        found = to_plan(builder, problem, solution, again)
        counted = count(emitted)
        if budget is None or counted.peak_bytes <= budget:
            final = found.model_copy(
                update={"budget_bytes": None if budget is None else int(budget), "notes": found.notes + notes}
            )
            return final, replace(emitted, plan=final), counted
        assert problem.budget_bytes is not None
        tighter = problem.budget_bytes - (counted.peak_bytes - budget) * 1.02
        notes = (*notes, f"emitted graphs needed {human(counted.peak_bytes)}: searched again under {human(tighter)}")
        logger.info(notes[-1])
        problem = replace(problem, budget_bytes=tighter)
    raise BudgetError(
        f"no plan whose emitted program fits {human(int(budget or 0))}: the last one needs {human(counted.peak_bytes)} "
        f"({counted.peak_where}). Give it that much",
        smallest_bytes=counted.peak_bytes,
    )


def require_shardable(problem: Problem, mesh: MeshSpec, program: Program) -> None:
    """Raise UnshardableError if some axis divides no factor of any unit: every device would do the same work."""
    for axis, (name, size) in enumerate(zip(mesh.names, mesh.sizes, strict=True)):
        factors = {s.factors[axis] for r in problem.regions for u in r.units for s in u.strategies}
        if size > 1 and factors <= {None, PASS_PARTIAL}:
            sizes = sorted({int(n) for value in program.values.values() for n in value.shape if n != 1}, reverse=True)
            raise UnshardableError(
                f"axis {name} of mesh {mesh} has {size} devices, and no dim of {program.name} "
                f"(sizes {sizes[:6]}) divides by {size}: "
                "use a smaller axis, or pad batch, sequence or hidden size to a multiple of it"
            )


def compile(
    model: nn.Module,
    mesh: DeviceMesh,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    memory: int | str | None = None,
    plan: Plan | str | None = None,
    hardware: str | Hardware = "cpu",
    optimizer: str = "adamw",
    time_limit_s: float = 60.0,
    gap: float = 1e-3,
) -> ParallelModule:
    """The model, parallelized over `mesh`: an nn.Module with DTensor parameters that trains as the original does.

    Call it on every process of the mesh with the same example inputs (the global batch); without any, planning waits for
    the first batch. Rank 0 searches for a plan and sends it to the others, unless `plan` gives one (a Plan or a path).

    >>> # parallel = autopar.compile(model, mesh, kwargs=batch, memory="2GiB")
    """
    spec = MeshSpec.of(mesh)
    options: dict[str, Any] = {"hardware": hardware, "optimizer": optimizer, "time_limit_s": time_limit_s, "gap": gap}

    def build(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Emitted:
        program = trace(model, args, dict(kwargs))
        require_no_randomness(program)
        if isinstance(plan, Plan):
            found = plan
        elif plan is not None:
            found = from_rank_0(lambda: Plan.load(plan))
        else:
            found = from_rank_0(lambda: plan_program(program, spec, memory=memory, **options)[0])
        found.require(program, spec)
        return emit(program, found, mesh.device_type)

    if not args and not kwargs:
        return PlannedOnFirstBatch(build, model, mesh)
    return ParallelModule(build(args, kwargs or {}), model, mesh)


def require_no_randomness(program: Program) -> None:
    """Raise InputError for dropout: devices would draw other numbers for equal pieces, or equal ones for different pieces."""
    if places := random_places(program):
        raise InputError(
            f"dropout is active at {places[0]} and {len(places) - 1} more places: random numbers are not yet coordinated "
            "between devices, so replicas would drift apart. Set the dropout probabilities to 0, or call model.eval() before "
            "compiling"
        )


def from_rank_0(make: Callable[[], Plan]) -> Plan:
    """Make a plan on rank 0 and send it to all; an error there is raised everywhere."""
    import torch.distributed as dist

    if not dist.is_initialized():
        raise MeshError("compile needs a process group: start with torchrun and build the mesh with init_device_mesh")
    box: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            box = [make().to_json()]
        except AutoparError as error:
            box = [error]
    dist.broadcast_object_list(box, src=0)
    if isinstance(box[0], AutoparError):
        raise box[0]
    return Plan.from_json(box[0], "the plan of rank 0")


def profile(
    model: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: Mapping[str, int | Mapping[str, int]] | None = None,
    hardware: str | Hardware = "cpu",
    optimizer: str = "adamw",
    precision: str | Precision | None = None,
    name: str | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> Profile:
    """What a model costs on one device: FLOPs, bytes and seconds, closed forms in the dynamic dims.

    Its code runs once on shapes alone, forward and backward: no weights, no data and no device are needed, and figures are
    those of an eager run. `dynamic` names dims of the inputs, {"batch": 0, "seq": 1} or {"batch": {"input_ids": 0}}.
    `optimizer`: adam, adamw, adam8bit, adafactor, momentum or sgd. `precision`: as in
    "parameters=float32,compute=bfloat16,reduce=float32". Raises TraceError for code that needs data or fixes a dynamic dim.

    >>> # profile = autopar.profile(model, kwargs=batch, dynamic={"batch": 0}); profile.at(batch=64).peak_bytes
    """
    kwargs = dict(kwargs or {})
    check_signature(model, args, kwargs)
    return profile_model(
        model,
        args,
        kwargs,
        Dynamic(dynamic or {}).marks(model, args, kwargs),
        name=name or type(model).__name__,
        hardware=hardware if isinstance(hardware, Hardware) else load(hardware),
        optimizer=optimizer,
        precision=Precision.parse(precision) if isinstance(precision, str) else precision,
        progress=progress,
    )
