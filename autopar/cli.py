"""The command line. Imports of torch wait until a command needs them, so that help answers at once.

Every error that a user can mend is one message on stderr and exit code 2; 1 means that a comparison failed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from autopar.cli_hardware import hardware_app
from autopar.cli_options import (
    BanOption,
    BatchOption,
    ConstraintsOption,
    DtypeOption,
    FreeCheckpointsOption,
    HardwareOption,
    MemoryOption,
    MeshOption,
    MinMicroBatchOption,
    ModelArgument,
    NoRecomputeOption,
    PinOption,
    SeqOption,
    TraceOption,
    WholeParametersOption,
    check_arguments,
    check_trace,
    load_model,
    read_constraints,
    stages,
)
from autopar.cli_plan import diff, plan, show, write_timeline
from autopar.cli_profile import profile
from autopar.cli_sweep import sweep
from autopar.errors import AutoparError

WRONG, INTERRUPTED, UNREAD = 2, 130, 141
"""Exit codes, the last two as shells have them for signals. UNREAD: nobody reads the output any more, as after `head`."""


class Commands(TyperGroup):
    """Turns errors that a user can mend into one message."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except AutoparError as error:
            typer.secho("error: ", fg=None if os.environ.get("NO_COLOR") else "red", bold=True, err=True, nl=False)
            typer.echo(str(error), err=True)
            raise typer.Exit(WRONG) from error
        except KeyboardInterrupt as error:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from error
        except BrokenPipeError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the end
            raise typer.Exit(UNREAD) from error


HELP = {"no_args_is_help": True, "context_settings": {"help_option_names": ["-h", "--help"]}, "rich_markup_mode": None}
app = typer.Typer(cls=Commands, pretty_exceptions_enable=False, **HELP)  # type: ignore[arg-type]
app.add_typer(hardware_app, name="hardware")


def version(asked: bool) -> None:
    if asked:
        import autopar

        typer.echo(f"autopar {autopar.__version__}")
        raise typer.Exit


@app.callback()
def common(
    show_version: Annotated[bool, typer.Option("--version", callback=version, is_eager=True, help="Say it and exit.")] = False,
) -> None:
    """Plan the parallel training of an unmodified PyTorch model: sharding, collectives and recomputation in one ILP."""


app.command("plan")(plan)
app.command("show")(show)
app.command("diff")(diff)
app.command("sweep")(sweep)


@app.command()
def verify(
    model: ModelArgument,
    mesh: MeshOption,
    plan: Annotated[Path | None, typer.Option("--plan", help="The plan to verify, as plan.json; searched if left out.")] = None,
    memory: MemoryOption = None,
    batch: BatchOption = None,
    seq: SeqOption = None,
    dtype: DtypeOption = None,
    steps: Annotated[int, typer.Option(help="AdamW steps to compare weights after, as 5.", min=1)] = 3,
    hardware: HardwareOption = "cpu",
    trace: TraceOption = None,
    pin: PinOption = None,
    ban: BanOption = None,
    constraints: ConstraintsOption = None,
    no_recompute: NoRecomputeOption = False,
    whole_parameters: WholeParametersOption = False,
    min_micro_batch: MinMicroBatchOption = None,
    free_checkpoints: FreeCheckpointsOption = False,
) -> None:
    """Run every rank in one process and compare loss, gradients and weights with the serial run; exit 1 if they differ."""
    limits = read_constraints(
        constraints,
        pin,
        ban,
        no_recompute=no_recompute,
        whole_parameters=whole_parameters,
        min_micro_batch=min_micro_batch,
        free_checkpoints=free_checkpoints,
    )
    check_arguments(mesh=mesh, memory=memory, hardware=hardware, constraints=limits)
    check_trace(trace)
    import autopar

    given = None if plan is None else autopar.Plan.load(plan)
    with stages() as stage:
        loaded = load_model(model, hardware, batch, seq, dtype, stage)
        stage("running every rank in this process")
        report = autopar.verify(
            loaded.model,
            mesh,
            loaded.args,
            dict(loaded.kwargs),
            plan=given,
            memory=memory,
            steps=steps,
            hardware=hardware,
            constraints=limits,
        )
        if trace is not None:
            stage("writing the timeline")
            write_timeline(trace, loaded, report.plan, hardware)
    print_report(report, loaded.name, mesh, steps)
    if trace is not None:
        typer.echo(f"wrote {trace}", err=True)
    if not report.ok:
        raise typer.Exit(1)


app.command("profile")(profile)


@app.command()
def rules(
    name: Annotated[str | None, typer.Argument(metavar="[OP]", help="As aten.linear; all rows if left out.")] = None,
    mesh: Annotated[str, typer.Option("--mesh", help="Whose strategies to show, as 2x4.")] = "2x2",
) -> None:
    """The rule of an op: its factors, its strategies on a mesh and their conversions; or all rows of the table."""
    import autopar

    typer.echo(autopar.ops.explain(name, mesh))


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}, add_help_option=False
)
def demo(ctx: typer.Context) -> None:
    """Plan and train a small GPT-2 on local processes, and compare with the serial run (`autopar demo --help`)."""
    from autopar.demo import main as run_demo

    if code := run_demo(list(ctx.args)):
        raise typer.Exit(code)


def print_report(report: Any, model: str, mesh: str, steps: int, worst: int = 5) -> None:
    """The verdict, the worst difference of each kind of tensor, and the worst tensors if they differ."""
    from autopar.render import new_console, new_table

    parts = [(t.name, t.kind, t.relative_error) for t in report.tensors]
    table = new_table(f"{model} on {mesh} against one device, {steps} steps", "tensors", "compared", "largest relative error")
    for kind in dict.fromkeys(kind for _, kind, _ in parts):
        errors = [error for _, k, error in parts if k == kind]
        table.add_row(kind, str(len(errors)), f"{max(errors):.2e}")
    if not report.ok:
        table.add_section()
        for name, kind, error in sorted(parts, key=lambda part: -part[2])[:worst]:
            table.add_row(f"{name} ({kind})", "", f"{error:.2e}")
    new_console().print(table)
    verdict = "equal" if report.ok else "NOT equal"
    typer.echo(f"{verdict}: largest relative error {report.max_relative_error:.2e}")


def main() -> None:
    """Entry point of the `autopar` script."""
    app()


if __name__ == "__main__":
    main()
