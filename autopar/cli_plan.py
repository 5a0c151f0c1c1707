"""`autopar plan`, `show` and `diff`: the best plan of one setting or of many, or time against memory; what two differ in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autopar.cli_options import (
    BanOption,
    BatchOption,
    ConstraintsOption,
    DtypeOption,
    FreeCheckpointsOption,
    GapOption,
    HardwareOption,
    MemoryOption,
    MinMicroBatchOption,
    ModelArgument,
    NoOverlapOption,
    NoRecomputeOption,
    OptimizerOption,
    PinOption,
    PrecisionOption,
    SeqOption,
    TraceOption,
    WholeParametersOption,
    check_arguments,
    check_trace,
    echo,
    load_model,
    read_constraints,
    stages,
)
from autopar.cli_origin import origin, with_origin
from autopar.cli_profile import check_picture
from autopar.cli_sizes import DynamicOption, other_sizes, with_other_sizes
from autopar.errors import InputError, MeshError

if TYPE_CHECKING:
    from autopar import Pareto, Plan
    from autopar.hardware import Hardware
    from autopar.models import Loaded


def plan(
    model: ModelArgument,
    mesh: Annotated[
        str | None, typer.Option("--mesh", help="Devices per axis, slowest link first, as 8, 2x4, data=2,tensor=4@pcie-4.")
    ] = None,
    devices: Annotated[int | None, typer.Option(help="Instead of a mesh: so many devices, as 64, in the best shape.")] = None,
    hardware: HardwareOption = "cpu",
    memory: MemoryOption = None,
    batch: BatchOption = None,
    global_batch: Annotated[
        int | None, typer.Option(help="Samples per step, as 256: in as many micro-batches as are best, or of --batch samples.")
    ] = None,
    seq: SeqOption = None,
    dtype: DtypeOption = None,
    precision: PrecisionOption = None,
    optimizer: OptimizerOption = "adamw",
    time_limit: Annotated[
        float | None, typer.Option(help="Seconds for the solver, as 120; 60, or 600 for several settings, if left out.", min=1)
    ] = None,
    gap: GapOption = 1e-3,
    no_overlap: NoOverlapOption = False,
    pareto: Annotated[bool, typer.Option("--pareto", help="Several plans: step time against memory.")] = False,
    points: Annotated[int, typer.Option(help="With --pareto: how many plans at most, as 5.", min=2)] = 8,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --pareto: draw it, as front.png, .svg or .pdf.")
    ] = None,
    pin: PinOption = None,
    ban: BanOption = None,
    constraints: ConstraintsOption = None,
    no_recompute: NoRecomputeOption = False,
    whole_parameters: WholeParametersOption = False,
    min_micro_batch: MinMicroBatchOption = None,
    free_checkpoints: FreeCheckpointsOption = False,
    dynamic: DynamicOption = None,
    trace: TraceOption = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Search even if this very plan was found before.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File for the plan or plans, as plan.json.")] = None,
) -> None:
    """Find the cheapest plan that fits, and print it. Needs no devices and no weights."""
    limits = read_constraints(
        constraints,
        pin,
        ban,
        no_recompute=no_recompute,
        whole_parameters=whole_parameters,
        min_micro_batch=min_micro_batch,
        free_checkpoints=free_checkpoints,
    )
    if precision is not None:
        from autopar.ir.precision import Precision

        Precision.parse(precision)
    check_setting(mesh, devices, pareto, global_batch, batch, plot)
    sizes = other_sizes(dynamic, single=not pareto and global_batch is None)
    check_trace(trace)
    if pareto and trace is not None:
        raise InputError(
            "--trace shows one plan: take it from the front with `autopar show --point`, and verify it with --trace"
        )
    check_arguments(mesh=mesh, memory=memory, hardware=hardware, output=output, constraints=limits)
    options: dict[str, Any] = {
        "precision": precision,
        "memory": memory,
        "hardware": hardware,
        "optimizer": optimizer,
        "gap": gap,
    }
    options |= {"constraints": limits, "overlap": not no_overlap} | ({} if time_limit is None else {"time_limit_s": time_limit})
    with stages() as stage:
        loaded = load_model(model, hardware, batch, seq, dtype, stage)
        import autopar

        example: tuple[Any, ...] = (loaded.model, mesh, loaded.args, dict(loaded.kwargs))
        options |= {"name": loaded.name, "progress": stage}
        micro_batch = None if global_batch is None else batch
        found: Plan | Pareto
        if pareto:
            found = autopar.pareto(*example, points=points, **options)
        else:
            options |= {"cache": not no_cache}
            found = autopar.plan(*example, devices=devices, global_batch=global_batch, micro_batch=micro_batch, **options)
        told = {"batch": batch, "seq": seq, "dtype": dtype, "global_batch": global_batch}
        found = with_origin(found, origin(model=model, hardware=hardware, **told))
        if sizes:
            found = with_other_sizes(alone(found, Path("this")), sizes, time_limit, stage)
        if trace is not None and not hasattr(found, "plans"):
            stage("writing the timeline")
            write_timeline(trace, loaded, found, hardware, global_batch)
    if output is not None:
        save(found, output)
    echo(found)
    if plot is not None:
        draw(found, plot)
    for path in (output, plot, trace):
        if path is not None:
            typer.echo(f"wrote {path}", err=True)


def write_timeline(path: Path, loaded: Loaded, plan: Plan, hardware: str | Hardware, global_batch: int | None = None) -> None:
    """Of one micro-batch, if the plan is for several."""
    import autopar
    from autopar.planning.batches import with_batch

    args, kwargs = loaded.args, dict(loaded.kwargs)
    if global_batch is not None:
        args, kwargs = with_batch(args, kwargs, global_batch // plan.micro_batches)
    autopar.timeline(loaded.model, plan, args, kwargs, hardware=hardware).save(path)


def check_setting(
    mesh: str | None, devices: int | None, pareto: bool, global_batch: int | None, batch: int | None, plot: Path | None
) -> None:
    """Raise for options that do not go together, before anything slow happens."""
    from autopar import MeshSpec
    from autopar.planning.batches import micro_batch_counts
    from autopar.planning.shapes import one_or_all

    if global_batch is not None:
        micro_batch_counts(global_batch, micro_batch=batch)
    one_or_all(None if mesh is None else MeshSpec.of(mesh), devices)
    if pareto and (devices is not None or global_batch is not None):
        raise MeshError("--pareto is for one mesh and one batch: find them with --devices and --global-batch first")
    if plot is not None:
        if not pareto:
            raise InputError(f"--plot {plot} draws step time against memory: it needs --pareto")
        check_picture(plot, "front.png")


def show(
    path: Annotated[Path, typer.Argument(metavar="PLAN", help="A file that `autopar plan -o` wrote, as plan.json.")],
    point: Annotated[
        int | None, typer.Option(metavar="N", help="Of several plans (--pareto) one, as 2; the smallest is 1.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="With --point: a file for that plan alone, as plan.json.")
    ] = None,
    module: Annotated[
        str | None, typer.Option("--module", metavar="GLOB", help='Only these modules, as "model.layers.*.mlp" or "lm_head".')
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Figures, and a row for each unit, as JSON.")] = False,
) -> None:
    """Print a plan, or several plans, as tables."""
    found = load_any(path)
    if point is not None:
        found = one_of(found, path, point)
    if output is not None:
        save(found, output)
    if as_json:
        import json

        typer.echo(json.dumps(summary(alone(found, path), module), indent=1))
    elif module is not None:
        from autopar.render import module_renderables, print_all

        print_all(module_renderables(alone(found, path), module))
    else:
        echo(found)
    if output is not None:
        typer.echo(f"wrote {output}", err=True)


def diff(
    before: Annotated[Path, typer.Argument(metavar="PLAN", help="A file that `autopar plan -o` wrote, as plan.json.")],
    after: Annotated[Path, typer.Argument(metavar="OTHER", help="Another one, as other.json.")],
    as_json: Annotated[bool, typer.Option("--json", help="A list of changes, as JSON.")] = False,
) -> None:
    """Say what a plan decides and predicts otherwise than another one; exit 1 if anything."""
    plans = one_plan(before), one_plan(after)
    from autopar.plan_diff import changes

    found = changes(*plans)
    if as_json:
        import json
        from dataclasses import asdict

        typer.echo(json.dumps([asdict(change) for change in found], indent=1))
    else:
        from autopar.render import print_all
        from autopar.render_diff import changes_renderables

        print_all(changes_renderables(found, (str(before), str(after))))
    if found:
        raise typer.Exit(1)


def one_plan(path: Path) -> Plan:
    """Raises PlanError, or InputError for a file of several plans."""
    return alone(load_any(path), path)


def alone(found: Plan | Pareto, path: Path) -> Plan:
    """Raises InputError for several plans."""
    from autopar.ir.pareto import Pareto

    if isinstance(found, Pareto):
        raise InputError(
            f"{path} has {len(found.plans)} plans: write one to a file, `autopar show {path} --point 1 -o one.json`"
        )
    return found


def summary(plan: Plan, module: str | None) -> dict[str, Any]:
    """The head of a plan, its figures, memory by purpose, and its units as rows; seconds and bytes."""
    from autopar.render import memory_split

    parts = {"regions", "state", "boundaries", "inputs", "tried", "figures"}
    figures = plan.figures.model_dump(mode="json")
    memory = memory_split(figures.pop("memory_bytes"))
    return {
        **plan.model_dump(mode="json", exclude=parts),
        "figures": figures | {"memory_bytes": memory},
        "units": plan.table(module),
    }


def plans_of(found: Plan | Pareto) -> tuple[Plan, ...]:
    """All of a front, or the one that it is."""
    from autopar import Pareto

    return found.plans if isinstance(found, Pareto) else (found,)


def one_of(found: Plan | Pareto, path: Path, point: int) -> Plan:
    """The plan with this number, from 1; raises InputError for one that is not there."""
    plans = plans_of(found)
    if not 1 <= point <= len(plans):
        raise InputError(f"{path} has {len(plans)} plan{'s' * (len(plans) > 1)}: --point {point} is none of them")
    return plans[point - 1]


def load_any(path: Path) -> Plan | Pareto:
    """What the file's format says it is; raises PlanError."""
    import autopar

    try:
        front = '"autopar-pareto"' in path.read_text()[:200]
    except (OSError, UnicodeDecodeError):
        front = False
    return autopar.Pareto.load(path) if front else autopar.Plan.load(path)


def save(found: Plan | Pareto, output: Path) -> None:
    try:
        found.save(output)
    except OSError as error:
        raise InputError(f"cannot write {output}: {error.strerror}: give another file with -o") from error


def draw(found: Any, path: Path) -> None:
    from autopar.plot_pareto import plot_front

    try:
        plot_front(found, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}: give another file with --plot") from error
