"""Profiles as tables for people: what a step costs, what the peak consists of, and which modules and ops cause it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from autopar.bytes import human, three_figures
from autopar.formula import spell
from autopar.profile_tree import Node, shown_depth, tree
from autopar.profile_view import Largest, View
from autopar.profiler.memory import STEP
from autopar.profiler.rows import OpAt
from autopar.render import human_flops, new_table, print_all, table_grid
from autopar.seconds import human_s

ALIVE, OPS = 8, 15
"""How many rows of what is alive at the peak, and of the ops that take longest."""

NAMES = {
    "optimizer": "optimizer state",
    "compute copies": "copies to compute with",
    "activations": "activations kept for backward",
}
SMALL = ("buffers", "inputs")
"""Of parts of the peak, where the key alone would not do; and those on one line."""

CAPTION = "Rounded, without terms that are nothing at these sizes; of a peak, the moment that is highest here. Exact: --json."

FORMULAS = (
    ("FLOPs forward", "forward_flops", human_flops),
    ("FLOPs backward", "backward_flops", human_flops),
    ("bytes moved", "moved_bytes", human),
    ("saved for backward", "saved_bytes", human),
    ("training peak", "peak_bytes", human),
    ("inference peak", "inference_peak_bytes", human),
)


def print_profile(view: View, *, depth: int | None = None, ops: bool = False, console: Console | None = None) -> None:
    """All tables of a profile; plain and 140 columns wide where the output is no terminal."""
    print_all(profile_renderables(view, depth=depth, ops=ops), console)


def profile_renderables(view: View, *, depth: int | None = None, ops: bool = False) -> list[RenderableType]:
    """The header, formulas if dims are open, the peak and what is alive there, modules, regions, and ops if asked for."""
    found: list[RenderableType] = [header(view)]
    found += [formulas_table(view)] if view.dims else []
    found += [peak_table(view), alive_table(view), modules_table(view, depth)]
    found += [regions_table(view)] if len(view.profile.regions) > 1 else []
    found += [ops_table(view)] if ops else []
    return [Group(renderable, Text()) for renderable in found]


def header(view: View) -> Panel:
    at, profile = view.at, view.profile
    grid = table_grid()
    grid.add_row("parameters", f"{human_count(at.parameter_count)}, {human(at.parameter_bytes)}{dtypes(view)}")
    held = f"{human(at.gradient_bytes)} of gradients, {human(at.optimizer_bytes)} of {profile.optimizer}'s state"
    grid.add_row("beside them", held)
    grid.add_row("work", f"forward {human_flops(at.forward_flops)}, backward {human_flops(at.backward_flops)}")
    if (at.torch_forward_flops, at.torch_backward_flops) != (at.forward_flops, at.backward_flops):
        counted = f"{human_flops(at.torch_forward_flops)} and {human_flops(at.torch_backward_flops)}"
        grid.add_row("", f"(torch's FlopCounterMode: {counted}; docs/profile-accuracy.md says why)")
    grid.add_row("memory traffic", f"{human(at.moved_bytes)} read and written")
    grid.add_row("saved", f"{human(at.saved_bytes)} from forward for backward")
    grid.add_row("training peak", peak_line(view))
    grid.add_row("inference peak", human(at.inference_peak_bytes))
    for line in time_lines(view):
        grid.add_row(*line)
    if view.largest:
        grid.add_row(f"within {human(view.budget_bytes or 0)}", "\n".join(answers(view)))
    if profile.assumptions:
        grid.add_row("holds while", ", ".join(map(str, profile.assumptions)))
    return Panel(grid, title=Text(view.title, style="bold"), title_align="left", expand=False, box=box.ROUNDED)


def dtypes(view: View) -> str:
    """In words, where mixed precision was asked for."""
    words = {"parameters": "at rest in", "compute": "computing in", "reduce": "gradients added up in"}
    found = [f"{text} {name}" for what, text in words.items() if (name := getattr(view.profile.precision, what))]
    return f" ({', '.join(found)})" if found else ""


def peak_line(view: View) -> Text:
    peak, memory = view.at.peak_bytes, view.memory
    where = (
        "in the optimizer's step" if memory.phase == STEP else f"in {memory.phase}, at {place(view, memory.path, memory.op)}"
    )
    room, of = view.budget_bytes, ""
    if room is None and view.on_named_hardware and view.profile.hardware is not None:
        room, of = view.profile.hardware.memory_bytes, f" on {view.profile.hardware.name}"
    text = Text(human(peak), style="bold")
    if room:
        style = "not bold bold red" if peak > room else "not bold"
        text.append(f" of {human(room)}{of} ({percent(peak / room)})", style)
    return text.append(f", {where}", "not bold")


def time_lines(view: View) -> Iterator[tuple[str, str]]:
    at, throughput, hardware = view.at, view.throughput, view.profile.hardware
    if throughput is None or hardware is None or at.forward_s is None or at.backward_s is None or at.optimizer_s is None:
        return
    parts = f"forward {human_s(at.forward_s)}, backward {human_s(at.backward_s)}, optimizer {human_s(at.optimizer_s)}"
    yield "step time", f"{human_s(throughput.step_s)} by the roofline of {hardware.name} ({parts})"
    rate = f"{throughput.tokens_per_s:,.0f}" if throughput.tokens_per_s >= 1000 else three_figures(throughput.tokens_per_s)
    yield "throughput", f"{rate} {throughput.unit}/s, model-FLOPs utilization {percent(throughput.mfu)}"


def answers(view: View) -> list[str]:
    if all(found.size == 0 for found in view.largest):
        return [f"not even {' or '.join(f'{found.dim} 1' for found in view.largest)} fits"]
    return [answer(view, found) for found in view.largest]


def answer(view: View, found: Largest) -> str:
    """One line such as `batch up to 24 at seq 2048`."""
    others = ", ".join(f"{name} {size}" for name, size in view.dims.items() if name != found.dim)
    at = f" at {others}" if others else ""
    if found.size is None:
        return f"any {found.dim}{at}"
    if found.size == 0:
        return f"not even {found.dim} 1 fits{at}"
    capped = found.by_memory is None or found.by_memory > found.size
    why = f", the model's own limit (memory allows {found.by_memory or 'any'})" if capped else ""
    return f"{found.dim} up to {found.size}{at}{why}"


def formulas_table(view: View) -> RenderableType:
    sizes = view.profile.values(view.dims)
    table = new_table("how it grows", "figure", ("formula", {"overflow": "fold"}))
    for name, attribute, unit in FORMULAS:
        table.add_row(name, spell(getattr(view.profile, attribute), unit, sizes))
    return Group(table, Text(CAPTION, style="dim"))


def peak_table(view: View) -> Table:
    memory, dims = view.memory, view.dims
    where = "the optimizer's step" if memory.phase == STEP else memory.phase
    table = new_table(f"memory at the peak, in {where}", "part")
    table.add_column("bytes", justify="right")
    table.add_column("share", justify="right")
    if dims:
        table.add_column("grows as", overflow="fold")
    sizes = view.profile.values(dims)
    parts = {(part,): NAMES.get(part, part) for part in memory.split if part not in SMALL} | {SMALL: " and ".join(SMALL)}
    for keys, name in parts.items():
        if size := sum(memory.split[key] for key in keys):
            growth = [spell(sum(memory.growth[key] for key in keys), human, sizes)] if dims else []
            table.add_row(name, human(size), percent(size / memory.peak_bytes), *growth)
    table.add_section()
    whole = [spell(sum(memory.growth.values()), human, sizes)] if dims else []
    table.add_row("together", human(memory.peak_bytes), percent(1.0), *whole, style="bold")
    return table


def alive_table(view: View) -> Table:
    """The largest of what comes and goes; what rests is in the table of the peak."""
    alive = view.memory.alive
    table = new_table("largest memory alive at the peak, beside what rests", "made by", "what")
    for column in ("pieces", "bytes", "share"):
        table.add_column(column, justify="right")
    for each in alive[:ALIVE]:
        share = percent(each.bytes / view.memory.peak_bytes)
        table.add_row(place(view, each.path, each.op), each.kind, str(each.count), human(each.bytes), share)
    if rest := alive[ALIVE:]:
        size = sum(each.bytes for each in rest)
        pieces = str(sum(each.count for each in rest))
        table.add_row(f"{len(rest)} others", "", pieces, human(size), percent(size / view.memory.peak_bytes), style="dim")
    return table


def modules_table(view: View, depth: int | None = None) -> Table:
    """The tree of modules to a depth; shares are of the whole model."""
    root = tree(view)
    limit = shown_depth(root) if depth is None else depth
    timed = view.at.step_s is not None
    table = new_table("modules, forward and backward together", ("module", {"overflow": "fold"}))
    for column in ("parameters", "FLOPs", "share", "saved", "share", *(("time", "share") if timed else ())):
        table.add_column(column, justify="right")
    for level, node in root.walk(limit):
        cells = (*cost(node.flops, root.flops, human_flops), *cost(node.saved_bytes, root.saved_bytes, human))
        times = cost(node.seconds, root.seconds, human_s) if timed else ()
        table.add_row(module_label(node, level), human_count(node.parameters), *cells, *times)
    return table


def module_label(node: Node, level: int) -> Text:
    label = Text("  " * level + node.label)
    return label.append(f" × {node.calls}", "dim") if node.calls > 1 else label


def cost(part: float, whole: float, unit: Callable[[float], str]) -> tuple[str, str]:
    return (unit(part), percent(share(part, whole))) if part else ("–", "–")


def regions_table(view: View) -> Table:
    table = new_table("region types", "region")
    for column in ("blocks", "parameters", "forward", "backward", "moved", "saved"):
        table.add_column(column, justify="right")
    for row in view.profile.regions:
        flops = (human_flops(view.number(f)) for f in (row.forward_flops, row.backward_flops))
        sizes = (human(view.number(b)) for b in (row.moved_bytes, row.saved_bytes))
        table.add_row(row.region, str(row.calls), human_count(row.parameters), *flops, *sizes)
    return table


def ops_table(view: View) -> Table:
    """Those that take longest; without hardware, that move most."""
    timed = view.at.step_s is not None
    ordered = sorted(view.ops, key=heaviness, reverse=True)
    whole = sum(map(heaviness, ordered))
    table = new_table("ops that take longest" if timed else "ops that move most", "op", "phase")
    for column in ("calls", "FLOPs", "moved", "FLOP/B", "time", "share"):
        table.add_column(column, justify="right")
    table.add_column("bound by")
    for op in ordered[:OPS]:
        flops = op.flops + op.other_flops
        figures = (human_flops(flops) if flops else "–", human(op.bytes), three_figures(op.intensity))
        time = "–" if op.seconds is None else human_s(op.seconds)
        name = place(view, op.row.path, op.row.op)
        table.add_row(
            name, op.row.phase, str(op.row.calls), *figures, time, percent(share(heaviness(op), whole)), op.bound or "–"
        )
    if rest := ordered[OPS:]:
        left = sum(map(heaviness, rest))
        time = human_s(left) if timed else "–"
        table.add_row(
            f"{len(rest)} others",
            "",
            str(sum(o.row.calls for o in rest)),
            "",
            "",
            "",
            time,
            percent(share(left, whole)),
            style="dim",
        )
    return table


def heaviness(op: OpAt) -> float:
    return float(op.bytes) if op.seconds is None else op.seconds


def place(view: View, path: str, op: str) -> str:
    """
    `mm of layers.*.mlp`; the model itself by its name.
    """
    return f"{short(op)} of {path or view.profile.name}"


def short(op: str) -> str:
    """Without namespace and overload where it is torch's own.

    >>> short("aten.mm.default"), short("mine.stubborn.default")
    ('mm', 'mine.stubborn')
    """
    space, _, rest = op.partition(".")
    name = rest.partition(".")[0]
    return name if space == "aten" else f"{space}.{name}".rstrip(".")


def share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def percent(part: float) -> str:
    """
    >>> percent(0.4567), percent(0.04567), percent(0.0), percent(12.3)
    ('46%', '4.6%', '0%', '1230%')
    """
    if 0 < part < 0.0005:
        return "<0.1%"
    return f"{part:.1%}" if 0 < part < 0.0995 else f"{part:.0%}"


def human_count(count: float) -> str:
    """
    >>> human_count(8030261248), human_count(131072), human_count(512), human_count(0)
    ('8.03B', '131k', '512', '–')
    """
    unit, scaled = "", float(count)
    for larger in "kMBT":
        if scaled < 999.5:
            break
        unit, scaled = larger, scaled / 1000
    return f"{three_figures(scaled)}{unit}" if count else "–"


__all__ = ["print_profile", "profile_renderables"]
