"""`autopar hardware`: the descriptions that plans can be made for, and making one by measuring."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autopar.cli_options import complete_hardware
from autopar.errors import AutoparError, InputError

if TYPE_CHECKING:
    from rich.table import Table

    from autopar.hardware import Hardware

WRONG = 2
HELP = {"no_args_is_help": True, "context_settings": {"help_option_names": ["-h", "--help"]}, "rich_markup_mode": None}
hardware_app = typer.Typer(help="Devices and links that plans can be made for.", **HELP)  # type: ignore[arg-type]

JsonOption = Annotated[bool, typer.Option("--json", help="As a hardware file, to copy and change.")]


@hardware_app.command("list")
def hardware_list() -> None:
    """The descriptions that come with autopar."""
    from autopar import hardware
    from autopar.bytes import human
    from autopar.render import new_console, new_table

    table = new_table("hardware", "name", "type")
    for column in ("bfloat16", "float32", "memory", "bandwidth", "per node", "links inside a node, between nodes"):
        table.add_column(column, justify="left" if column.startswith("links") else "right")
    for name in hardware.known():
        found = hardware.load(name)
        rates = [per_second(found.peak_flops_per_s[dtype], "FLOP") for dtype in ("bfloat16", "float32")]
        links = ", ".join(found.links[key].name for key in (hardware.INTRA_NODE, hardware.INTER_NODE))
        size, moved = human(found.memory_bytes), per_second(found.peak_bytes_per_s, "B")
        table.add_row(name, found.device_type, *rates, size, moved, str(found.devices_per_node), links)
    new_console().print(table)


@hardware_app.command("show")
def hardware_show(
    name: Annotated[str, typer.Argument(metavar="NAME", autocompletion=complete_hardware, help="As h100-sxm, or a JSON file.")],
    as_json: JsonOption = False,
) -> None:
    """One description: each figure with its source, and how its links carry out collectives."""
    from autopar import hardware

    found = hardware.load(name)
    if as_json:
        typer.echo(hardware.to_json(found), nl=False)
    else:
        print_hardware(found)


@hardware_app.command("calibrate")
def hardware_calibrate(
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the description, as mine.json.")],
    device: Annotated[str | None, typer.Option(help="As cpu, or cuda; cuda where there is one.")] = None,
    mesh: Annotated[str | None, typer.Option(help="Under torchrun: the mesh whose axes to measure, as 2x4.")] = None,
    like: Annotated[
        str | None,
        typer.Option(autocompletion=complete_hardware, help="Whose figures fill in what cannot be measured, as h100-sxm."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer sizes, less exact: some 10 seconds.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Measure this machine, and under torchrun its links, and write a description of it.

    torchrun --nproc-per-node 4 -m autopar.cli hardware calibrate --mesh 2x2 -o mine.json
    """
    import os

    speaks = os.environ.get("RANK", "0") == "0"
    try:
        calibrate_to(output, device, mesh, like, quick, force, speaks)
    except AutoparError as error:
        if speaks:
            raise
        raise typer.Exit(WRONG) from error  # every process fails alike; one message is enough


def calibrate_to(
    output: Path, device: str | None, mesh: str | None, like: str | None, quick: bool, force: bool, speaks: bool
) -> None:
    """Check, measure, write and print; only the process that `speaks` does the last two."""
    check_output(output, force)
    with stages(speaks) as stage:
        stage("loading torch")
        import torch

        from autopar.hardware.calibrate import bad_fits, calibrate

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        found = calibrate(output.stem, device_type=device, mesh=mesh, like=like, quick=quick, progress=stage)
    if not speaks:
        return
    write(found, output)
    print_hardware(found)
    for line in bad_fits(found):
        typer.echo(f"note: {line}", err=True)
    typer.echo(f"wrote {output}", err=True)


def check_output(output: Path, force: bool) -> None:
    if output.is_dir():
        raise InputError(f"{output} is a folder: give a file for the description, as {output / 'mine.json'}")
    if output.exists() and not force:
        raise InputError(f"{output} exists: give another file with -o, or --force to overwrite it")
    if not output.parent.is_dir():
        raise InputError(f"{output.parent} is no folder: make it first, or give another file with -o")


def write(found: Hardware, output: Path) -> None:
    from autopar.hardware import to_json
    from autopar.ir.document import write_atomically

    try:
        write_atomically(output, to_json(found))
    except OSError as error:
        raise InputError(f"cannot write {output}: {error.strerror}: give another file with -o") from error


@contextmanager
def stages(speaks: bool) -> Iterator[Callable[[str], None]]:
    """A callable that says what is being measured: as a status on a terminal, else a line each on stderr."""
    from rich.console import Console

    console = Console(stderr=True)
    if not speaks or not console.is_terminal:
        yield (lambda stage: typer.echo(stage, err=True)) if speaks else (lambda stage: None)
        return
    with console.status("starting") as status:
        yield lambda stage: status.update(stage)


def print_hardware(found: Hardware) -> None:
    from autopar.render import new_console

    console = new_console()
    for table in (figures_table(found), links_table(found), *([fit_table(found)] if found.fit else [])):
        console.print(table)
        console.print()


def figures_table(found: Hardware) -> Table:
    from autopar.render import new_table

    table = new_table(f"{found.name} ({found.device_type})", "figure")
    table.add_column("value", justify="right")
    table.add_column("source", overflow="fold")
    rows = [(name, value, source(found, path)) for name, value, path in figures(found)]
    for i, (name, value, text) in enumerate(rows):
        table.add_row(name, value, "as above" if i and rows[i - 1][2] == text else text)
    return table


def figures(found: Hardware) -> Iterator[tuple[str, str, str]]:
    """Name, value as text, and path in the file of every figure."""
    from autopar.bytes import human
    from autopar.seconds import human_s

    for dtype, peak in found.peak_flops_per_s.items():
        yield f"peak rate, {dtype}", per_second(peak, "FLOP"), f"peak_flops_per_s.{dtype}"
    yield "peak memory bandwidth", per_second(found.peak_bytes_per_s, "B"), "peak_bytes_per_s"
    for key, share in found.efficiency.items():
        yield f"efficiency, {key}", f"{share:.0%}", f"efficiency.{key}"
    if found.update_bytes_per_s is not None:
        yield "memory bandwidth, optimizer", per_second(found.update_bytes_per_s, "B"), "update_bytes_per_s"
    yield "launch", human_s(found.launch_s), "launch_s"
    yield "communication hidden", f"{found.overlap:.0%}", "overlap"
    yield "waiting for each other", human_s(found.skew_s), "skew_s"
    yield "memory", human(found.memory_bytes), "memory_bytes"
    yield "devices per node", str(found.devices_per_node), "devices_per_node"
    for key, link in found.links.items():
        yield f"{key}, bandwidth", per_second(link.bytes_per_s, "B"), f"links.{key}.bytes_per_s"
        yield f"{key}, latency", human_s(link.latency_s), f"links.{key}.latency_s"


def links_table(found: Hardware) -> Table:
    """Which algorithm each collective runs by on each link, and what it costs over n devices."""
    from autopar.hardware import ALGORITHMS
    from autopar.hardware.link import USUAL
    from autopar.render import new_table
    from autopar.seconds import human_s

    table = new_table("collectives over n devices", "link", "collective", "algorithm")
    for column in ("rounds", "sent by each", "latency of a round", "bandwidth"):
        table.add_column(column, justify="right")
    for key, link in found.links.items():
        title = f"{key} ({link.name})"
        for kind in ALGORITHMS:
            figures = link.figures.get(kind, link)
            name = link.algorithms.get(kind, USUAL[kind])
            speed = (human_s(figures.latency_s), per_second(figures.bytes_per_s, "B"))
            table.add_row(title, kind, name, *link.algorithm(kind).formulas, *speed)
            title = ""
    return table


def fit_table(found: Hardware) -> Table:
    from autopar.render import new_table

    table = new_table("fit: relative error of predicted against measured seconds", "figure")
    for column in ("points", "median", "worst"):
        table.add_column(column, justify="right")
    for name, quality in found.fit.items():
        table.add_row(name, str(quality.points), f"{quality.median_error:.1%}", f"{quality.worst_error:.1%}")
    return table


def source(found: Hardware, path: str) -> str:
    """The line for this figure, or for the part of the file that it is in."""
    parts = path.split(".")
    return next((found.sources[p] for n in range(len(parts), 0, -1) if (p := ".".join(parts[:n])) in found.sources), "–")


def per_second(rate: float, unit: Any) -> str:
    """
    >>> per_second(989e12, "FLOP"), per_second(3.35e12, "B")
    ('989 TFLOP/s', '3.35 TB/s')
    """
    from autopar.bytes import three_figures

    prefix, scaled = "", rate
    for larger in "kMGTPE":
        if scaled < 999.5:
            break
        prefix, scaled = larger, scaled / 1000
    return f"{three_figures(scaled)} {prefix}{unit}/s"
