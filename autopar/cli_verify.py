"""`autopar verify`: a plan, or a model with a plan that is searched, against the serial run of the same model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autopar.cli_options import (
    BanOption,
    BatchOption,
    ConstraintsOption,
    DtypeOption,
    FreeCheckpointsOption,
    HardwareOption,
    MemoryOption,
    MinMicroBatchOption,
    NoRecomputeOption,
    PinOption,
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
from autopar.cli_origin import AgainOption, again
from autopar.cli_plan import one_plan, write_timeline
from autopar.errors import InputError

if TYPE_CHECKING:
    from autopar import Constraints
    from autopar.verification import Report

AS_IT_IS = "as it is: its config names no size that could be smaller"


def verify(
    subject: Annotated[
        str, typer.Argument(metavar="PLAN or MODEL", help="A file that `autopar plan -o` wrote, or a model as for `plan`.")
    ],
    mesh: Annotated[
        str | None, typer.Option("--mesh", help="Of a model: devices per axis, as 8, 2x4, data=2,tensor=4@pcie-4.")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option("--plan", help="Of a model: the plan to verify, as plan.json; searched if left out.")
    ] = None,
    memory: MemoryOption = None,
    batch: BatchOption = None,
    seq: SeqOption = None,
    dtype: DtypeOption = None,
    steps: Annotated[int, typer.Option(help="AdamW steps to compare weights after, as 5.", min=1)] = 3,
    hardware: HardwareOption = "cpu",
    full: Annotated[bool, typer.Option("--full", help="A plan of a config.json at full size, not on a reduced model.")] = False,
    model: AgainOption = None,
    trace: TraceOption = None,
    pin: PinOption = None,
    ban: BanOption = None,
    constraints: ConstraintsOption = None,
    no_recompute: NoRecomputeOption = False,
    whole_parameters: WholeParametersOption = False,
    min_micro_batch: MinMicroBatchOption = None,
    free_checkpoints: FreeCheckpointsOption = False,
) -> None:
    """Run every rank in one process and compare loss, gradients and weights with the serial run; exit 1 if they differ.

    A plan of a Hugging Face config is verified on a model of fewer layers and smaller widths, whose graphs correspond.
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
    check_trace(trace)
    if is_document(subject):
        of_search = {"--mesh": mesh, "--plan": plan, "--memory": memory, "--batch": batch, "--seq": seq, "--dtype": dtype}
        if given := [name for name, value in of_search.items() if value is not None] + ["constraints"] * bool(limits):
            raise InputError(f"{subject} is a plan and says all that: leave out {given[0]}, or name the model instead of it")
        report = verify_plan(Path(subject), steps, model, full, trace)
    else:
        if mesh is None and ":" not in subject and not is_config(Path(subject)):
            one_plan(Path(subject))  # says what is wrong with it
        if mesh is None:
            raise InputError(f"{subject} is a model, so it needs a mesh: --mesh 2x4")
        if full or model is not None:
            raise InputError("--full and --model are for a plan in the place of the model")
        check_arguments(mesh=mesh, memory=memory, hardware=hardware, constraints=limits)
        wanted = {"memory": memory, "hardware": hardware}
        report = verify_model(subject, mesh, plan, (batch, seq, dtype), steps, wanted, limits, trace)
    echo(report)
    if trace is not None:
        typer.echo(f"wrote {trace}", err=True)
    if not report.ok:
        raise typer.Exit(1)


def is_document(subject: str) -> bool:
    """Whether it is a file of ours, a plan or several; what it lacks shows when it is loaded."""
    try:
        return '"autopar-' in Path(subject).read_text(encoding="utf-8")[:200]
    except (OSError, UnicodeDecodeError):
        return False


def is_config(path: Path) -> bool:
    """Whether a file, or folder, says which Hugging Face model it is of."""
    try:
        file = path / "config.json" if path.is_dir() else path
        return '"model_type"' in file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def device_for(model: str) -> str:
    """Functions make their own inputs, with values that fit; those of a config are made up anyway."""
    return "meta" if model.endswith(".json") or Path(model).is_dir() else "cpu"


def verify_model(
    model: str,
    mesh: str,
    plan: Path | None,
    sizes: tuple[int | None, int | None, str | None],
    steps: int,
    wanted: dict[str, str | None],
    limits: Constraints,
    trace: Path | None,
) -> Report:
    """`sizes`: batch, seq and dtype. `wanted`: memory and hardware."""
    import autopar

    given, hardware = None if plan is None else autopar.Plan.load(plan), str(wanted["hardware"])
    with stages() as stage:
        loaded = load_model(model, hardware, *sizes, stage, device=device_for(model))
        stage("running every rank in this process")
        precision = None if given is None else given.precision
        options: dict[str, Any] = {"plan": given, "steps": steps, "constraints": limits, "precision": precision, **wanted}
        report = autopar.verify(loaded.model, mesh, loaded.args, dict(loaded.kwargs), **options)
        write(trace, loaded, report, hardware, stage)
    return report


def verify_plan(path: Path, steps: int, model: str | None, full: bool, trace: Path | None) -> Report:
    """Of a config.json on a reduced model, unless `full`; of other models as they are."""
    plan = one_plan(path)
    import autopar

    with stages() as stage:
        named = model or (plan.origin.model if plan.origin else "")
        made = again(plan, path, stage, model, device=device_for(named))
        loaded = made.loaded
        if not full and (named.endswith(".json") or Path(named).is_dir()):
            from autopar.verify_reduced import reduce

            reduced = reduce(plan, loaded, Path(named), made.hardware, stage)
            loaded, plan = reduced.loaded, reduced.plan
            how = f"on a reduced model: {reduced.sizes} (--full: as it is)" if reduced.sizes else AS_IT_IS
            typer.echo(f"note: verified {how}", err=True)
        stage("running every rank in this process")
        options: dict[str, Any] = {"plan": plan, "steps": steps, "precision": plan.precision}
        report = autopar.verify(loaded.model, plan.mesh, loaded.args, dict(loaded.kwargs), **options)
        write(trace, loaded, report, made.hardware, stage)
    return report


def write(trace: Path | None, loaded: Any, report: Report, hardware: Any, stage: Callable[[str], None]) -> None:
    if trace is not None:
        stage("writing the timeline")
        write_timeline(trace, loaded, report.plan, hardware)
