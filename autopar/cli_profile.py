"""`autopar profile`: what a training step of a model costs on one device, printed, as JSON, and as a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autopar.cli_options import (
    BatchOption,
    DtypeOption,
    ModelArgument,
    PrecisionOption,
    SeqOption,
    check_arguments,
    complete_hardware,
    load_model,
    stages,
)
from autopar.errors import AutoparError, InputError

if TYPE_CHECKING:
    from autopar.models import Loaded
    from autopar.profile_view import View
    from autopar.profiler.profile import Profile

DIMS = {"batch": 0, "seq": 1}
SMALLEST = 2
"""Example size of a dim that is left open: torch takes sizes of 1 for fixed. Figures are given for any size."""

PICTURES = (".png", ".svg", ".pdf")


def profile(
    model: ModelArgument,
    batch: BatchOption = None,
    seq: SeqOption = None,
    dtype: DtypeOption = None,
    dynamic: Annotated[
        str | None, typer.Option(metavar="DIMS", help="Leave these open in formulas, as batch, seq or batch,seq.")
    ] = None,
    hardware: Annotated[
        str | None,
        typer.Option(autocompletion=complete_hardware, help="For times, as h100-sxm, or a JSON file; cpu if left out."),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="BYTES", help="Budget, as 80GiB: how large batch and seq may be within it.")
    ] = None,
    optimizer: Annotated[str, typer.Option(help="As adamw; or adam, adam8bit, adafactor, momentum, sgd.")] = "adamw",
    precision: PrecisionOption = None,
    depth: Annotated[
        int | None, typer.Option(min=0, help="Levels of modules to show, as 3; as many as fit if left out.")
    ] = None,
    ops: Annotated[bool, typer.Option("--ops", help="Show the ops that take longest.")] = False,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write everything in JSON, as profile.json; to stdout if -.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the memory of a step, as memory.png, .svg or .pdf.")
    ] = None,
) -> None:
    """What a training step costs on one device: FLOPs, memory and time, as numbers and as formulas.

    Nothing runs: no weights, data or device are needed.
    """
    check(memory, hardware, optimizer, precision, json, plot)
    chosen = dims_named(dynamic)
    asked = {name: size for name, size in (("batch", batch), ("seq", seq)) if size is not None}
    options = {"hardware": hardware or "cpu", "optimizer": optimizer, "precision": precision}
    with stages() as stage:
        loaded = load_model(model, hardware or "cpu", batch, seq, dtype, stage, values=True)

        def load(least: Mapping[str, int]) -> Loaded:
            """With example sizes of at least these."""
            sizes = {name: max(size, least.get(name, 1)) for name, size in asked.items()}
            if sizes == asked:
                return loaded
            given = (hardware or "cpu", sizes.get("batch"), sizes.get("seq"), dtype, stage)
            return load_model(model, *given, quiet=True, values=True)

        found, notes = measure(load, openings(chosen, memory, loaded), options, stage)
        shown = view(found, loaded, asked, memory, on_named_hardware=hardware is not None)
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    show(shown, depth, ops, json, plot)


def check(
    memory: str | None, hardware: str | None, optimizer: str, precision: str | None, json: Path | None, plot: Path | None
) -> None:
    """Raise for what can be seen to be wrong before anything slow happens."""
    check_arguments(memory=memory, hardware=hardware)
    if json is not None and json.is_dir():
        raise InputError(f"{json} is a folder: give a file, as {json / 'profile.json'}")
    if plot is not None:
        check_picture(plot, "memory.png")
    from autopar.ir.precision import Precision
    from autopar.profiler.optimizers import OPTIMIZERS

    if optimizer not in OPTIMIZERS:
        raise InputError(f"unknown optimizer {optimizer!r}: use one of {', '.join(OPTIMIZERS)}")
    if precision is not None:
        Precision.parse(precision)


def check_picture(plot: Path, example: str) -> None:
    """Raise for a picture that could not be drawn."""
    from importlib.util import find_spec

    if plot.is_dir():
        raise InputError(f"{plot} is a folder: give a file, as {plot / example}")
    if plot.suffix not in PICTURES:
        raise InputError(f"--plot {plot}: its name must end in one of {', '.join(PICTURES)}")
    if find_spec("matplotlib") is None:
        raise InputError("--plot needs the matplotlib package: pip install 'autopar[examples]'")


def dims_named(text: str | None) -> dict[str, int]:
    chosen = [name.strip() for name in (text or "").split(",") if name.strip()]
    if unknown := [name for name in chosen if name not in DIMS]:
        raise InputError(f"--dynamic {text}: {unknown[0]!r} is none of {', '.join(DIMS)}")
    return {name: DIMS[name] for name in chosen}


def openings(chosen: dict[str, int], memory: str | None, loaded: Loaded) -> list[dict[str, int]]:
    """Which dims to leave open, best first. Where a budget asks for a size, all that the model does not fix."""
    if chosen or memory is None:
        return [chosen]
    dims = {name: DIMS[name] for name in sizes_of(loaded)}
    return [dims, *({name: dim} for name, dim in dims.items() if len(dims) > 1), {}]


def measure(
    load: Callable[[Mapping[str, int]], Loaded],
    openings: list[dict[str, int]],
    options: Mapping[str, Any],
    stage: Callable[[str], None],
) -> tuple[Profile, list[str]]:
    """The profile with the first of these dims left open that the model allows, and what prevented those before."""
    import autopar

    notes = []
    for dims in openings:
        loaded = load(dict.fromkeys(dims, SMALLEST))
        try:
            arguments = (loaded.model, loaded.args, dict(loaded.kwargs))
            found = autopar.profile(
                *arguments, dynamic=dims, name=loaded.name, progress=lambda what: stage(f"profiling: {what}"), **options
            )
        except AutoparError as error:
            if dims == openings[-1]:
                raise
            notes.append(f"largest {' and '.join(dims)} not found: {error}")
        else:
            return found, notes
    raise AssertionError("the last opening returned or raised")


def sizes_of(loaded: Loaded) -> dict[str, int]:
    """Sizes of batch and, where an input is of tokens, seq in the example inputs."""
    tensors = list(tensors_of(loaded))
    tokens = [t for t in tensors if t.ndim == 2 and not t.is_floating_point()]
    rows = tokens or [t for t in tensors if t.ndim]
    found = {"batch": int(rows[0].shape[0])} if rows else {}
    return found | ({"seq": int(tokens[0].shape[1])} if tokens else {})


def tensors_of(loaded: Loaded) -> Iterator[Any]:
    import torch

    from autopar.torch_private import pytree

    yield from (leaf for leaf in pytree.tree_leaves((loaded.args, dict(loaded.kwargs))) if isinstance(leaf, torch.Tensor))


def view(found: Profile, loaded: Loaded, asked: Mapping[str, int], memory: str | None, *, on_named_hardware: bool) -> View:
    """The profile at the sizes that were asked for, else at those of the example inputs."""
    from autopar.bytes import parse_bytes
    from autopar.profile_view import View

    return View(
        profile=found,
        sizes=sizes_of(loaded) | dict(found.examples) | dict(asked),
        budget_bytes=None if memory is None else parse_bytes(memory),
        limits=loaded.limits,
        on_named_hardware=on_named_hardware,
    )


def show(shown: View, depth: int | None, ops: bool, json: Path | None, plot: Path | None) -> None:
    if json is not None:
        from autopar.profile_json import to_json

        write_json(to_json(shown), json)
    if json is None or str(json) != "-":
        from autopar.render_profile import print_profile

        print_profile(shown, depth=depth, ops=ops)
    if plot is not None:
        from autopar.plot_profile import plot_memory

        try:
            plot_memory(shown, plot)
        except OSError as error:
            raise InputError(f"cannot write {plot}: {error.strerror}: give another file with --plot") from error
    for path in (json, plot):
        if path is not None and str(path) != "-":
            typer.echo(f"wrote {path}", err=True)


def write_json(text: str, path: Path) -> None:
    from autopar.ir.document import write_atomically

    if str(path) == "-":
        typer.echo(text, nl=False)
        return
    try:
        write_atomically(path, text)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}: give another file with --json") from error
