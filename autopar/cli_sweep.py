"""`autopar sweep`: plans for all combinations of some settings, as lines of JSON, a table and a picture."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autopar.cli_options import (
    BanOption,
    ConstraintsOption,
    DtypeOption,
    FreeCheckpointsOption,
    GapOption,
    MinMicroBatchOption,
    ModelArgument,
    NoOverlapOption,
    NoRecomputeOption,
    OptimizerOption,
    PinOption,
    PrecisionOption,
    WholeParametersOption,
    check_optimizer,
    complete_hardware,
    dtype_on,
    load_model,
    read_constraints,
    stages,
)
from autopar.cli_origin import origin, versions
from autopar.cli_profile import check_picture
from autopar.errors import InputError

if TYPE_CHECKING:
    from autopar import Plan
    from autopar.models import Loaded
    from autopar.planning.runs import Setting
    from autopar.planning.sweep import Sweep

INTERRUPTED = 130
SOLVER_THREADS = 2


def sweep(
    model: ModelArgument,
    meshes: Annotated[
        list[str],
        typer.Option("--meshes", metavar="MESH,…", help="As 8,2x4; repeated for named axes, as data=2,tensor=4."),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", help="For a line per finished setting, as runs.jsonl."),
    ],
    memory: Annotated[
        list[str] | None, typer.Option("--memory", metavar="BYTES,…", help="Budgets per device, as 40GiB,80GiB,none.")
    ] = None,
    batch: Annotated[
        list[str] | None, typer.Option("--batch", metavar="N,…", help="Global batch sizes of the example inputs, as 8,16.")
    ] = None,
    seq: Annotated[
        list[str] | None, typer.Option("--seq", metavar="N,…", help="Sequence lengths of the example inputs, as 2048,8192.")
    ] = None,
    hardware: Annotated[
        list[str] | None,
        typer.Option(
            "--hardware", metavar="NAME,…", autocompletion=complete_hardware, help="As a100-80gb,h100-sxm; cpu if left out."
        ),
    ] = None,
    dtype: DtypeOption = None,
    precision: PrecisionOption = None,
    optimizer: OptimizerOption = "adamw",
    time_limit: Annotated[float, typer.Option(help="Seconds for the solver, for each setting, as 120.", min=1)] = 60.0,
    gap: GapOption = 1e-3,
    no_overlap: NoOverlapOption = False,
    pin: PinOption = None,
    ban: BanOption = None,
    constraints: ConstraintsOption = None,
    no_recompute: NoRecomputeOption = False,
    whole_parameters: WholeParametersOption = False,
    min_micro_batch: MinMicroBatchOption = None,
    free_checkpoints: FreeCheckpointsOption = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Search even for plans that were found before.")] = False,
    jobs: Annotated[
        int | None, typer.Option(help="Processes, as 4; half as many as there are cores if left out.", min=1)
    ] = None,
    plans: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Save each plan there, as plans.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it, as sweep.png, .svg or .pdf.")] = None,
) -> None:
    """Plan every combination of settings, in several processes; started again, it does what is missing.

    Exit 1 if no setting fits, or some ended in an error.

    autopar sweep config.json --meshes 8,2x4 --memory 40GiB,80GiB --batch 8,16 -o runs.jsonl
    """
    limits = read_constraints(
        constraints,
        pin,
        ban,
        no_recompute=no_recompute,
        whole_parameters=whole_parameters,
        min_micro_batch=min_micro_batch,
        free_checkpoints=free_checkpoints,
    )
    check_optimizer(optimizer)
    if plot is not None:
        check_picture(plot, "sweep.png")
    shared: dict[str, Any] = {"precision": precision, "optimizer": optimizer, "overlap": not no_overlap, "gap": gap}
    shared |= {"time_limit_s": time_limit, "constraints": limits}
    settings = settings_of(model, meshes, hardware or ["cpu"], memory or ["none"], batch, seq, dtype, shared)
    from autopar.planning.ledger import ledger
    from autopar.planning.sweep import Sweep

    with ledger(output) as lines:
        made = Sweep(
            settings=settings,
            ledger=lines,
            make=partial(bench, cache=not no_cache),
            jobs=jobs or usual_jobs(),
            plans=plans,
            note=note,
        )
        for text in lines.notes:
            note(text)
        interrupted = ran(made)
    conclude(made, output, plot, interrupted)


def settings_of(
    model: str,
    meshes: Sequence[str],
    hardware: Sequence[str],
    memory: Sequence[str],
    batch: Sequence[str] | None,
    seq: Sequence[str] | None,
    dtype: str | None,
    shared: dict[str, Any],
) -> list[Setting]:
    """All combinations; raises for what can be seen to be wrong before anything slow happens."""
    from autopar import MeshSpec
    from autopar import hardware as devices
    from autopar.models import Options
    from autopar.planning.runs import combinations, split

    if shared["precision"] is not None:
        from autopar.ir.precision import Precision

        Precision.parse(shared["precision"])
    names = split(hardware, "--hardware")
    for name in names:
        devices.load(name)
    sizes = [numbers(values, what) for values, what in ((batch, "--batch"), (seq, "--seq"))]
    for a, b in ((sizes[0], (None,)), ((None,), sizes[1])):
        _ = [Options(batch=x, seq=y, dtype=dtype) for x in a for y in b]
    return combinations(
        model=model,
        meshes=[MeshSpec.of(text) for text in split(meshes, "--meshes")],
        hardware=names,
        memory=split(memory, "--memory"),
        batches=sizes[0],
        seqs=sizes[1],
        dtypes={name: dtype_on(model, name, dtype) for name in names},
        **shared,
    )


def numbers(values: Sequence[str] | None, what: str) -> Sequence[int | None]:
    """Whole numbers, or one setting without any."""
    from autopar.planning.runs import split

    found = split(values or (), what)
    if wrong := [text for text in found if not text.isdecimal()]:
        raise InputError(f"{what} {wrong[0]!r} is no whole number: give some as 8,16")
    return [int(text) for text in found] or (None,)


def bench(cache: bool) -> Callable[[Setting], Any]:
    """What plans settings, in a process of its own."""
    from autopar.planning.bench import Bench

    return Bench(load=load, sign=sign, versions=versions, cache=cache)


def load(setting: Setting) -> Loaded:
    given = (setting.batch, setting.seq, setting.dtype)
    return load_model(setting.model, setting.hardware, *given, lambda stage: None, quiet=True)


def sign(plan: Plan, setting: Setting) -> Plan:
    """As `autopar plan` does."""
    told = {name: getattr(setting, name) for name in ("model", "hardware", "batch", "seq", "dtype")}
    return plan.model_copy(update={"origin": origin(**told)})


def usual_jobs() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(cores // SOLVER_THREADS, 1)


def note(text: str) -> None:
    typer.echo(f"note: {text}", err=True)


def ran(made: Sweep) -> bool:
    """Whether it was interrupted."""
    with stages() as stage:
        made.tell = stage
        try:
            made.run()
        except KeyboardInterrupt:
            return True
    return False


def conclude(made: Sweep, output: Path, plot: Path | None, interrupted: bool) -> None:
    """Print and draw what is there; how to go on after an interrupt; the exit code."""
    from autopar.render_sweep import print_sweep

    runs = made.runs
    print_sweep(runs, len(made.settings))
    if plot is not None and runs:
        draw(runs, plot)
        typer.echo(f"wrote {plot}", err=True)
    if interrupted:
        done = f"{len(made.settings) - len(made.missing)} of {len(made.settings)} settings are in {output}"
        typer.echo(f"interrupted: {done}; the same command plans the others", err=True)
        raise typer.Exit(INTERRUPTED)
    typer.echo(f"wrote {output}", err=True)
    if any(run.outcome == "error" for run in runs) or not any(run.outcome == "fits" for run in runs):
        raise typer.Exit(1)


def draw(runs: Sequence[Any], path: Path) -> None:
    from autopar.plot_sweep import plot_sweep

    try:
        plot_sweep(runs, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}: give another file with --plot") from error
