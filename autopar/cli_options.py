"""What the commands share: options, checks of them, loading a model, and saying what is being done."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autopar.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.text import Text

    from autopar import Constraints
    from autopar.ir.shown import Shown
    from autopar.models import Loaded

ModelArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="As package.module:function, path/file.py:function, or a Hugging Face config.json."),
]


def complete_hardware(incomplete: str) -> list[str]:
    """Names that come with autopar; of several, separated by commas, the last."""
    from autopar import hardware as devices

    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in devices.known() if name.startswith(last)]


def complete_optimizer(incomplete: str) -> list[str]:
    from autopar.ir.optimizer import STATE_COPIES

    return [name for name in STATE_COPIES if name.startswith(incomplete)]


def complete_dtype(incomplete: str) -> list[str]:
    from autopar.models import DTYPES

    return [name for name in DTYPES if name.startswith(incomplete)]


HardwareOption = Annotated[
    str,
    typer.Option(
        "--hardware",
        autocompletion=complete_hardware,
        help="As h100-sxm: a name from `autopar hardware list`, or a JSON file.",
    ),
]
MemoryOption = Annotated[str | None, typer.Option("--memory", help="Budget per device, as 70GiB; no limit if left out.")]
BatchOption = Annotated[int | None, typer.Option("--batch", help="Global batch size of the example inputs, as 16.")]
SeqOption = Annotated[int | None, typer.Option("--seq", help="Sequence length of the example inputs, as 2048.")]
DtypeOption = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        autocompletion=complete_dtype,
        help="Of the weights of a config.json, as float32; bfloat16 on GPUs, else float32, if left out.",
    ),
]
OptimizerOption = Annotated[
    str, typer.Option("--optimizer", autocompletion=complete_optimizer, help="As adamw; or adam, momentum, sgd.")
]
GapOption = Annotated[float, typer.Option("--gap", help="Relative distance from the optimum to stop at, as 0.01.", min=0)]
NoOverlapOption = Annotated[bool, typer.Option("--no-overlap", help="Count on nothing running beside the computation.")]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision", metavar="DTYPES", help="Mixed precision, as parameters=float32,compute=bfloat16,reduce=float32."
    ),
]
TraceOption = Annotated[
    Path | None,
    typer.Option("--trace", metavar="FILE", help="Write a step's predicted timeline for Perfetto, as trace.json."),
]
PinOption = Annotated[
    list[str] | None,
    typer.Option("--pin", metavar="RULE", help='What must be so, as "model.layers.*.mlp: tensor=gpu"; may be repeated.'),
]
BanOption = Annotated[
    list[str] | None,
    typer.Option("--ban", metavar="RULE", help='What must not be so, as "kind=attention: sequence=node"; may be repeated.'),
]
ConstraintsOption = Annotated[
    Path | None,
    typer.Option("--constraints", metavar="FILE", help="Pins, bans and the like in YAML, as rules.yaml (docs/constraints.md)."),
]
NoRecomputeOption = Annotated[bool, typer.Option("--no-recompute", help="No op runs again in backward.")]
WholeParametersOption = Annotated[
    bool, typer.Option("--whole-parameters", help="Every device holds all parameters; none is sharded or gathered.")
]
MinMicroBatchOption = Annotated[
    int | None, typer.Option("--min-micro-batch", help="Fewest rows of the batch that a device may get, as 2.", min=1)
]
FreeCheckpointsOption = Annotated[
    bool, typer.Option("--free-checkpoints", help="The model's torch.utils.checkpoint regions do not bind the plan.")
]


def read_constraints(
    file: Path | None,
    pins: list[str] | None,
    bans: list[str] | None,
    *,
    no_recompute: bool = False,
    whole_parameters: bool = False,
    min_micro_batch: int | None = None,
    free_checkpoints: bool = False,
) -> Constraints:
    """Those of the file, and the options on top of them; raises ConstraintError."""
    from dataclasses import replace

    from autopar import Constraints

    given = Constraints() if file is None else Constraints.load(file)
    options: dict[str, Any] = {"pins": (*given.pins, *(pins or ())), "bans": (*given.bans, *(bans or ()))}
    options |= {"recompute": "never"} if no_recompute else {}
    options |= {"parameters": "whole"} if whole_parameters else {}
    options |= {"min_micro_batch": min_micro_batch} if min_micro_batch is not None else {}
    options |= {"checkpoints": "free"} if free_checkpoints else {}
    return replace(given, **options)


def check_arguments(
    *,
    mesh: str | None = None,
    memory: str | None = None,
    hardware: str | None = None,
    output: Path | None = None,
    constraints: Constraints | None = None,
) -> None:
    """Raise for what can be seen to be wrong before anything slow happens."""
    import autopar
    from autopar import hardware as devices
    from autopar.bytes import parse_bytes

    spec = None if mesh is None else autopar.MeshSpec.of(mesh)
    if spec is not None and constraints is not None:
        constraints.require_axes(spec.names)
    if memory is not None:
        parse_bytes(memory)
    if hardware is not None:
        device = devices.load(hardware)
        _ = spec and device.axis_links(spec)
    if output is not None and output.is_dir():
        raise InputError(f"{output} is a folder: give a file for the plan, as {output / 'plan.json'}")


def check_optimizer(name: str) -> None:
    """Raise for one whose state is unknown."""
    from autopar.ir.optimizer import STATE_COPIES

    if name not in STATE_COPIES:
        raise InputError(f"unknown optimizer {name!r}: use one of {', '.join(sorted(STATE_COPIES))}")


def check_trace(path: Path | None) -> None:
    """Raise if a timeline cannot be written there."""
    if path is not None and path.is_dir():
        raise InputError(f"--trace {path} is a folder: give a file, as {path / 'trace.json'}")


def load_model(
    spec: str,
    hardware: str,
    batch: int | None,
    seq: int | None,
    dtype: str | None,
    stage: Callable[[str], None],
    *,
    quiet: bool = False,
    values: bool = False,
    device: str = "meta",
) -> Loaded:
    """The model on a device (meta: shapes alone), inputs too unless they shall have `values`; notices unless `quiet`."""
    from autopar.models import Options, load

    stage("building the model")
    loaded = load(spec, Options(batch=batch, seq=seq, dtype=dtype_on(spec, hardware, dtype), values=values, device=device))
    for notice in () if quiet else loaded.notices:
        typer.echo(f"note: {notice}", err=True)
    return loaded


def dtype_on(spec: str, hardware: str, dtype: str | None) -> str | None:
    """What the weights of a config.json have on this hardware, if nothing else was said."""
    from autopar import hardware as devices

    is_config = spec.endswith(".json") or Path(spec).is_dir()
    return "bfloat16" if dtype is None and is_config and devices.load(hardware).device_type != "cpu" else dtype


class Status:
    """One line that says what is being done and for how long, however often that changes."""

    def __init__(self) -> None:
        self.stage, self.began_s = "starting", time.monotonic()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """The seconds are there however long the rest is."""
        from rich.text import Text

        stage, seconds = Text(self.stage, no_wrap=True), f", {time.monotonic() - self.began_s:.0f} s"
        stage.truncate(max(options.max_width - len(seconds), 1), overflow="ellipsis")
        yield stage.append(seconds)


@contextmanager
def stages() -> Iterator[Callable[[str], None]]:
    """A callable that shows what is being done, and since when, on a terminal only."""
    from rich.console import Console

    console, status = Console(file=sys.stderr), Status()  # whatever sys.stderr is redirected to while a model is traced
    if not console.is_terminal:
        yield lambda stage: None
        return
    with console.status(status):
        yield lambda stage: setattr(status, "stage", stage)


def echo(value: Shown) -> None:
    """Print its tables: plain and 140 columns wide where the output is no terminal."""
    from autopar.render import print_all

    print_all([value])
