"""The command line. Imports of torch wait until a command needs them, so that help answers at once.

Every error that a user can mend is one message on stderr and exit code 2; 1 means that a comparison failed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from autopar.cli_hardware import hardware_app
from autopar.errors import AutoparError, InputError

if TYPE_CHECKING:
    from autopar.models import Loaded

WRONG, INTERRUPTED = 2, 130


class Commands(TyperGroup):
    """Turns errors that a user can mend into one message."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except AutoparError as error:
            typer.secho("error: ", fg="red", bold=True, err=True, nl=False)
            typer.echo(str(error), err=True)
            raise typer.Exit(WRONG) from error
        except KeyboardInterrupt as error:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from error


HELP = {"no_args_is_help": True, "context_settings": {"help_option_names": ["-h", "--help"]}, "rich_markup_mode": None}
app = typer.Typer(cls=Commands, add_completion=False, pretty_exceptions_enable=False, **HELP)  # type: ignore[arg-type]
app.add_typer(hardware_app, name="hardware")

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="package.module:function, path/file.py:function, or a Hugging Face config.json.")
]
MeshOption = Annotated[
    str, typer.Option("--mesh", help="Devices per axis, slowest link first: 8, 2x4, data=2,tensor=4@pcie-4.")
]
HardwareOption = Annotated[str, typer.Option("--hardware", help="A name from `autopar hardware list`, or a JSON file.")]
MemoryOption = Annotated[str | None, typer.Option("--memory", help="Budget per device, as 70GiB; no limit if left out.")]
BatchOption = Annotated[int | None, typer.Option("--batch", help="Global batch size of the example inputs.")]
SeqOption = Annotated[int | None, typer.Option("--seq", help="Sequence length of the example inputs.")]
DtypeOption = Annotated[
    str | None, typer.Option("--dtype", help="Of the weights of a config.json; bfloat16 on GPUs, else float32.")
]


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


@app.command()
def plan(
    model: ModelArgument,
    mesh: MeshOption,
    hardware: HardwareOption = "cpu",
    memory: MemoryOption = None,
    batch: BatchOption = None,
    seq: SeqOption = None,
    dtype: DtypeOption = None,
    optimizer: Annotated[str, typer.Option(help="adamw, adam, momentum or sgd.")] = "adamw",
    time_limit: Annotated[float, typer.Option(help="Seconds for the solver.", min=1)] = 60.0,
    gap: Annotated[float, typer.Option(help="Relative distance from the optimum to stop at.", min=0)] = 1e-3,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File for the plan, as JSON.")] = None,
) -> None:
    """Find the cheapest plan that fits, and print it. Needs no devices and no weights."""
    check_arguments(mesh=mesh, memory=memory, hardware=hardware, output=output)
    with stages() as stage:
        loaded = load_model(model, hardware, batch, seq, dtype, stage)
        import autopar

        found = autopar.plan(
            loaded.model,
            mesh,
            loaded.args,
            dict(loaded.kwargs),
            memory=memory,
            hardware=hardware,
            optimizer=optimizer,
            time_limit_s=time_limit,
            gap=gap,
            name=loaded.name,
            progress=stage,
        )
    if output is not None:
        save(found, output)
    print_tables(found)
    if output is not None:
        typer.echo(f"wrote {output}", err=True)


@app.command()
def show(path: Annotated[Path, typer.Argument(metavar="PLAN", help="A file that `autopar plan -o` wrote.")]) -> None:
    """Print a plan as tables."""
    import autopar

    print_tables(autopar.Plan.load(path))


@app.command()
def verify(
    model: ModelArgument,
    mesh: MeshOption,
    plan: Annotated[Path | None, typer.Option("--plan", help="The plan to verify; searched if left out.")] = None,
    memory: MemoryOption = None,
    batch: BatchOption = None,
    seq: SeqOption = None,
    dtype: DtypeOption = None,
    steps: Annotated[int, typer.Option(help="AdamW steps to compare weights after.", min=1)] = 3,
    hardware: HardwareOption = "cpu",
) -> None:
    """Run every rank in one process and compare loss, gradients and weights with the serial run; exit 1 if they differ."""
    check_arguments(mesh=mesh, memory=memory, hardware=hardware)
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
        )
    print_report(report, loaded.name, mesh, steps)
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def profile(
    model: ModelArgument,
    batch: BatchOption = None,
    seq: SeqOption = None,
    dtype: DtypeOption = None,
    dynamic: Annotated[str | None, typer.Option(help="Dims to leave open: batch, or batch,seq (dims 0 and 1).")] = None,
    hardware: HardwareOption = "cpu",
) -> None:
    """What a model costs on one device: FLOPs and bytes, as formulas in the dims that are left open."""
    check_arguments(hardware=hardware)
    dims = dynamic_dims(dynamic)
    with stages() as stage:
        loaded = load_model(model, hardware, batch, seq, dtype, stage)
        stage("profiling")
        import autopar

        found = autopar.profile(loaded.model, loaded.args, dict(loaded.kwargs), dynamic=dims, hardware=hardware)
    names = ("parameter_bytes", "forward_flops", "backward_flops", "saved_bytes", "peak_bytes")
    print_pairs(loaded.name, [(name, str(getattr(found, name))) for name in names])


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}, add_help_option=False
)
def demo(ctx: typer.Context) -> None:
    """Plan and train a small GPT-2 on local processes, and compare with the serial run (`autopar demo --help`)."""
    from autopar.demo import main as run_demo

    if code := run_demo(list(ctx.args)):
        raise typer.Exit(code)


def check_arguments(
    *, mesh: str | None = None, memory: str | None = None, hardware: str | None = None, output: Path | None = None
) -> None:
    """Raise for what can be seen to be wrong before anything slow happens."""
    import autopar
    from autopar import hardware as devices
    from autopar.bytes import parse_bytes

    spec = None if mesh is None else autopar.MeshSpec.of(mesh)
    if memory is not None:
        parse_bytes(memory)
    if hardware is not None:
        device = devices.load(hardware)
        _ = spec and device.axis_links(spec)
    if output is not None and output.is_dir():
        raise InputError(f"{output} is a folder: give a file for the plan, as {output / 'plan.json'}")


def load_model(
    spec: str, hardware: str, batch: int | None, seq: int | None, dtype: str | None, stage: Callable[[str], None]
) -> Loaded:
    """The model on the meta device; notices about it go to stderr."""
    from autopar import hardware as devices
    from autopar.models import Options, load

    stage("building the model")
    if dtype is None and (spec.endswith(".json") or Path(spec).is_dir()) and devices.load(hardware).device_type != "cpu":
        dtype = "bfloat16"
    loaded = load(spec, Options(batch=batch, seq=seq, dtype=dtype))
    for notice in loaded.notices:
        typer.echo(f"note: {notice}", err=True)
    return loaded


def dynamic_dims(text: str | None) -> dict[str, int] | None:
    names = {"batch": 0, "seq": 1}
    chosen = [name.strip() for name in (text or "").split(",") if name.strip()]
    if unknown := [name for name in chosen if name not in names]:
        raise InputError(f"--dynamic {text}: {unknown[0]!r} is none of {', '.join(names)}")
    return {name: names[name] for name in chosen} or None


def save(found: Any, output: Path) -> None:
    try:
        found.save(output)
    except OSError as error:
        raise InputError(f"cannot write {output}: {error.strerror}: give another file with -o") from error


@contextmanager
def stages() -> Iterator[Callable[[str], None]]:
    """A callable that shows what is being done, on a terminal only."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda stage: None
        return
    with console.status("starting") as status:
        yield lambda stage: status.update(stage)


def print_tables(found: Any) -> None:
    from autopar.render import print_plan

    print_plan(found)


def print_pairs(title: str, pairs: list[tuple[str, str]]) -> None:
    from autopar.render import new_console, new_table

    table = new_table(title, "figure", "value")
    for pair in pairs:
        table.add_row(*pair)
    new_console().print(table)


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
    try:
        app()
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output went away, as `head` does


if __name__ == "__main__":
    main()
