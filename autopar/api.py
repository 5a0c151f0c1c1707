"""The functions that users call; they put the stages together."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from autopar.bytes import parse_bytes
from autopar.cache.start import is_first_here, remembered_joint, remembered_program
from autopar.codegen.backend import Backend, require_backend
from autopar.codegen.emit import Emitted, emit
from autopar.codegen.hold import hold
from autopar.codegen.measure import Counted
from autopar.codegen.module import ParallelModule, PlannedOnFirstBatch
from autopar.codegen.randomness import Random, shared_randomness
from autopar.errors import AutoparError, ConstraintError, HardwareError, InputError, MeshError, RankError
from autopar.hardware import Hardware, load
from autopar.ir.constraints import NO_CONSTRAINTS, Constraints
from autopar.ir.mesh import MeshLike, MeshSpec, require_device_mesh
from autopar.ir.pareto import Pareto
from autopar.ir.placement import Placement
from autopar.ir.plan import Plan
from autopar.ir.precision import Precision, PrecisionLike
from autopar.ir.program import Program
from autopar.ops.joint import trace_joint
from autopar.ops.units import unknown_draws
from autopar.planning.advice import find_or_advise
from autopar.planning.batches import batch_of, micro_batch_counts, with_batch
from autopar.planning.cache import remembered
from autopar.planning.front import FrontSearch
from autopar.planning.planner import Aims, Planner, Progress, silent
from autopar.planning.settings import SettingSearch
from autopar.planning.shapes import one_or_all
from autopar.profiler.profile import Profile, profile_model
from autopar.runtime.agreement import agree, commitments
from autopar.runtime.compiled import build_of, prepared
from autopar.runtime.ending import settle_at_exit
from autopar.runtime.peers import peers
from autopar.runtime.replan import Programs
from autopar.tracer import trace
from autopar.tracer.capture import check_signature
from autopar.tracer.dynamic import Dynamic
from autopar.tracer.opaque import with_ops

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

logger = logging.getLogger("autopar")
LIMIT_S, SEVERAL_LIMIT_S = 60.0, 600.0
"""What the search for one plan, or over several settings, may take if the user does not say."""


def plan(
    model: nn.Module,
    mesh: MeshLike | None = None,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    devices: int | None = None,
    global_batch: int | None = None,
    micro_batch: int | None = None,
    memory: int | str | None = None,
    hardware: str | Hardware = "cpu",
    optimizer: str = "adamw",
    time_limit_s: float | None = None,
    gap: float = 1e-3,
    overlap: bool = True,
    constraints: Constraints = NO_CONSTRAINTS,
    precision: PrecisionLike | None = None,
    cache: bool = True,
    name: str | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Decide placements, conversions and what backward keeps, for one training step on example inputs.

    Nothing runs and no weights are needed: model and inputs may be on the meta device. `mesh` is "8x8", sizes, a MeshSpec
    or a DeviceMesh; with `devices` in its place all shapes of 1 to 3 axes are considered. With `global_batch` a step is that
    many samples, in as many micro-batches as are best, or of `micro_batch` samples; dim 0 of the inputs is the batch, and the
    plan is for one micro-batch.
    `memory` is the budget per device ("70GiB" or bytes; None: no limit), `hardware` a known name or a file. With `overlap`
    gathers of parameters and reductions of their gradients are counted as running beside the computation, as far as it lasts;
    without it everything runs one after the other. `constraints` are pins and bans that every plan has to obey; the plan
    records them. A plan for one mesh and batch that was searched before comes from the `cache` (docs/planning.md).
    `precision`: torch's `MixedPrecisionPolicy`, or text as "compute=bfloat16,reduce=float32" (docs/precision.md).
    `time_limit_s`: for the solver, 60 if left out; with several settings for all of them together, then 600.
    The plan's emitted graphs are counted before it is returned: their liveness peak is within the budget.

    Raises TraceError, BudgetError (with the smallest budget that works), ConstraintError, UnshardableError, SolverError.

    >>> # plan = autopar.plan(model, "2x4", kwargs=batch, memory="70GiB", hardware="h100-sxm")
    """
    said, kwargs = progress or silent, dict(kwargs or {})
    meshes = one_or_all(None if mesh is None else MeshSpec.of(mesh), devices)
    if micro_batch is not None and global_batch is None:
        raise InputError("micro_batch divides a global_batch: give both, or size the example inputs")
    counts = (1,) if global_batch is None else micro_batch_counts(global_batch, constraints.min_micro_batch, micro_batch)
    several = devices is not None or global_batch is not None
    if not several:
        constraints.require_axes(meshes[0].names)
    limit_s = time_limit_s if time_limit_s is not None else SEVERAL_LIMIT_S if several else LIMIT_S
    aims = aims_of(hardware, optimizer, limit_s, gap, overlap, constraints)
    budget = None if memory is None else parse_bytes(memory)

    def planner_of(count: int, said: Progress) -> Planner:
        """Of the model on one of so many micro-batches."""
        said("tracing")
        given = (args, kwargs) if global_batch is None else with_batch(args, kwargs, global_batch // count)
        program = trace(model, *given, name=name, precision=precision, progress=said)
        return Planner(program, aims, micro_batches=count, progress=said)

    def halved() -> Planner | None:
        """Of half the example batch, in twice the micro-batches; None if it cannot be halved."""
        batch = batch_of(args, kwargs)
        if batch % 2:
            return None
        smaller = trace(model, *with_batch(args, kwargs, batch // 2), name=name, precision=precision)
        return Planner(smaller, aims, micro_batches=2)

    if not several:
        planner, (only,) = planner_of(1, said), meshes
        return remembered(planner, only, budget, lambda: find_or_advise(planner, only, budget, halved).plan, use=cache)
    search = SettingSearch(planner_of, meshes, counts, budget, time_limit_s=limit_s, gap=gap, progress=said)
    return search.run().plan


def pareto(
    model: nn.Module,
    mesh: MeshLike,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    points: int = 8,
    memory: int | str | None = None,
    hardware: str | Hardware = "cpu",
    optimizer: str = "adamw",
    time_limit_s: float = SEVERAL_LIMIT_S,
    gap: float = 1e-3,
    overlap: bool = True,
    constraints: Constraints = NO_CONSTRAINTS,
    precision: PrecisionLike | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> Pareto:
    """Step time against memory: at most so many plans, from the one that needs least to the fastest (within `memory`).

    Other arguments as for `plan`; `time_limit_s` is for all points together. Each plan is the fastest within its memory, up
    to `gap`, and can be saved and run by itself; none is both slower and larger than another.

    >>> # front = autopar.pareto(model, "8x8", kwargs=batch, hardware="h100-sxm"); front.within(40 * 2**30).save("plan.json")
    """
    said, spec = progress or silent, MeshSpec.of(mesh)
    constraints.require_axes(spec.names)
    aims = aims_of(hardware, optimizer, time_limit_s, gap, overlap, constraints)
    budget = None if memory is None else parse_bytes(memory)
    said("tracing")
    program = trace(model, args, dict(kwargs or {}), name=name, precision=precision, progress=said)
    planner = Planner(program, aims, progress=said)
    return FrontSearch(planner, spec, points=points, budget_bytes=budget, time_limit_s=time_limit_s).run()


def plan_program(
    program: Program,
    mesh: MeshSpec,
    *,
    memory: int | str | None = None,
    hardware: str | Hardware = "cpu",
    optimizer: str = "adamw",
    time_limit_s: float = 60.0,
    gap: float = 1e-3,
    overlap: bool = True,
    constraints: Constraints = NO_CONSTRAINTS,
    progress: Progress = silent,
) -> tuple[Plan, Emitted, Counted]:
    """As `plan`, for a traced program; also the emitted graphs and what was counted on them."""
    aims = aims_of(hardware, optimizer, time_limit_s, gap, overlap, constraints)
    budget = None if memory is None else parse_bytes(memory)
    found = find_or_advise(Planner(program, aims, progress=progress), mesh, budget)
    return found.plan, found.emitted, found.counted


def aims_of(
    hardware: str | Hardware, optimizer: str, time_limit_s: float, gap: float, overlap: bool, constraints: Constraints
) -> Aims:
    """From the arguments as users give them."""
    device = hardware if isinstance(hardware, Hardware) else load(hardware)
    return Aims(
        hardware=device, optimizer=optimizer, time_limit_s=time_limit_s, gap=gap, overlap=overlap, constraints=constraints
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
    overlap: bool = True,
    constraints: Constraints = NO_CONSTRAINTS,
    precision: PrecisionLike | None = None,
    replan: bool = True,
    cache: bool = True,
    seed: int | None = None,
    random: Random = "counters",
    backend: Backend = "eager",
) -> ParallelModule:
    """The model, parallelized over `mesh`: an nn.Module with DTensor parameters that trains as the original does.

    Call it on every process of the mesh with the same example inputs (the global batch); without any, planning waits for
    the first batch. Rank 0 searches for a plan and sends it to the others, unless `plan` gives one (a Plan or a path).
    `constraints` are for that search. A plan that was searched before for just this comes from the `cache`.
    `precision`: torch's `MixedPrecisionPolicy`, or text as in "compute=bfloat16"; parameters and their gradients stay as they
    are, which is what the optimizer sees. `torch.autocast` around this call is honoured.
    Dropout and other random numbers follow from `seed` (by default from rank 0's `torch.manual_seed`), and are the same on
    every mesh; `random="serial"` draws those of the serial run, slowly, for tests. `parallel.randomness` is their state.
    `backend="inductor"` compiles each region's graphs, once for all its layers, before it returns (docs/training.md); plans are
    the same for both. Raises BackendError, beside what `plan` raises, where Inductor has no C++ compiler.

    A call with other shapes, or in a mode (train, eval) that makes it another program, is planned when it comes, around the
    parameters as they rest; with `replan=False` it is an InputError. docs/data.md says more.

    >>> # parallel = autopar.compile(model, mesh, kwargs=batch, memory="2GiB")
    """
    spec = MeshSpec.of(mesh)
    require_device_mesh(mesh)
    require_processes(spec)
    require_backend(backend)
    constraints.require_axes(spec.names)
    options: dict[str, Any] = {"hardware": hardware, "optimizer": optimizer, "time_limit_s": time_limit_s, "gap": gap}
    options |= {"overlap": overlap, "constraints": constraints, "memory": memory}

    @functools.cache
    def given() -> Plan | None:
        return plan if plan is None or isinstance(plan, Plan) else from_rank_0(lambda: Plan.load(plan))

    def traced(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Program:
        program = remembered_program(
            *(model, args, kwargs, precision),
            lambda around: trace(model, args, dict(kwargs), precision=precision, around=around),
            use=cache,
            keep=is_first_here(),
        )
        require_known_draws(program)
        return program

    def planned(program: Program, resting: Mapping[str, Placement]) -> Emitted:
        """The plan that was given is for the first program; later ones are planned as it was."""
        first = given()
        if first is not None and not resting:
            found = first
        else:
            wished = options if first is None else options | options_of(first, options)
            found = from_rank_0(lambda: find_plan(program, spec, resting, cache=cache, **wished))
        found.require(program, spec)
        emitted = emit(program, found, mesh.device_type, remembered_joint if cache else trace_joint)
        hold(emitted, peak=mesh.device_type == "cpu")
        return prepared(emitted, mesh, build)

    chosen = {"plan": plan if plan is None or isinstance(plan, Plan) else "a file", "replan": replan, "precision": precision}
    said = commitments(model, mesh, options | chosen | {"seed": seed, "random": random, "backend": backend})
    agree({"about": "compile", **said})
    settle_at_exit()
    build = build_of(backend)
    programs = Programs(model=model, trace=traced, plan=planned, said=said, allowed=replan)
    randomness, watched = shared_randomness(mesh, seed, random), peers()
    if not args and not kwargs:
        parallel: ParallelModule = PlannedOnFirstBatch(programs.first, model, mesh, programs, randomness)
    else:
        with watched.guard():
            parallel = ParallelModule(programs.first(args, kwargs or {}), model, mesh, programs, randomness)
    parallel.guard = watched.guard
    return parallel


def find_plan(
    program: Program,
    mesh: MeshSpec,
    resting: Mapping[str, Placement],
    *,
    memory: int | str | None,
    micro_batches: int = 1,
    cache: bool,
    **aims: Any,
) -> Plan:
    """The best plan for a program whose parameters are at `resting` already (if they are anywhere), or a remembered one.

    Pins and bans that cannot hold for a later shape (a batch of 5 on 2 devices) are left out there, with a notice.
    """
    if resting and aims["constraints"]:
        try:
            return _find_plan(program, mesh, resting, memory, micro_batches, cache, **aims)
        except ConstraintError as error:
            logger.warning("%s is planned without pins and bans for the shape at hand: %s", program.name, error)
            loose = replace(aims["constraints"], pins=(), bans=(), parameters="free", min_micro_batch=1)
            aims = aims | {"constraints": loose}
    return _find_plan(program, mesh, resting, memory, micro_batches, cache, **aims)


def _find_plan(
    program: Program,
    mesh: MeshSpec,
    resting: Mapping[str, Placement],
    memory: int | str | None,
    micro_batches: int,
    cache: bool,
    **aims: Any,
) -> Plan:
    planner = Planner(program, replace(aims_of(**aims), resting=resting), micro_batches=micro_batches)
    budget = None if memory is None else parse_bytes(memory)
    return remembered(planner, mesh, budget, lambda: find_or_advise(planner, mesh, budget).plan, use=cache)


def options_of(plan: Plan, said: Mapping[str, Any]) -> dict[str, Any]:
    """How to plan as a plan was made, where the user says nothing else: its budget, optimizer, hardware, and constraints."""
    found: dict[str, Any] = {"micro_batches": plan.micro_batches, "optimizer": plan.optimizer}
    if said["memory"] is None:
        found["memory"] = plan.budget_bytes
    if said["constraints"] == NO_CONSTRAINTS:
        found["constraints"] = plan.constraints
    with suppress(HardwareError):
        found["hardware"] = load(plan.hardware)
    return found


def require_processes(mesh: MeshSpec) -> None:
    """Raise MeshError unless there is a process group with one process per device of the mesh."""
    import torch.distributed as dist

    if not dist.is_initialized():
        raise MeshError("compile needs a process group: start with torchrun and build the mesh with init_device_mesh")
    if (processes := dist.get_world_size()) != mesh.devices:
        raise MeshError(
            f"mesh {mesh} has {mesh.devices} devices, the process group has {processes} processes: build the mesh over all "
            f"of them, or start with torchrun --nproc-per-node {mesh.devices}"
        )


def require_known_draws(program: Program) -> None:
    """Raise InputError for random ops that autopar cannot draw: replicas would drift apart."""
    if places := unknown_draws(program):
        more = f" and {len(places) - 1} more places" if len(places) > 1 else ""
        raise InputError(
            f"random numbers are drawn by {places[0]}{more}: autopar does not know how to give equal pieces equal numbers "
            "there. Write it with dropout, rand, randn, randint or bernoulli (docs/randomness.md), or call model.eval() first"
        )


def from_rank_0(make: Callable[[], Plan]) -> Plan:
    """Make a plan on rank 0 and send it to all; an error there is raised everywhere."""
    import torch.distributed as dist

    box: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            box = [make().to_json()]
        except AutoparError as error:
            box = [error]
        except BaseException as error:
            dist.broadcast_object_list([RankError(f"rank 0 failed while planning: {type(error).__name__}: {error}")], src=0)
            raise
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
    precision: PrecisionLike | None = None,
    name: str | None = None,
    progress: Progress = silent,
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
        with_ops(model),
        args,
        kwargs,
        Dynamic(dynamic or {}).marks(model, args, kwargs),
        name=name or type(model).__name__,
        hardware=hardware if isinstance(hardware, Hardware) else load(hardware),
        optimizer=optimizer,
        precision=Precision.of(precision),
        progress=progress,
    )
