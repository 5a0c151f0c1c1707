"""Plans as tables for people: what is decided per layer type, what rests where, what moves, and what it costs.

Beside `measured` (what the emitted graphs were counted to do) every predicted figure stands next to the counted one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from autopar.bytes import human, three_figures
from autopar.ir.constraints import Selector
from autopar.ir.plan import Plan, PlannedCollective, PlannedTensor
from autopar.ir.plan_table import units_of
from autopar.ir.region_view import RegionView, pattern, region_view
from autopar.render_search import other_sizes_table, tried_table
from autopar.seconds import human_s
from autopar.tables import new_console as new_console
from autopar.tables import new_table as new_table
from autopar.tables import table_grid as table_grid

if TYPE_CHECKING:
    from autopar.codegen.measure import Counted

MEMORY = (
    (" at rest [", "state at rest: parameters, gradients, optimizer"),
    ("(program input)", "inputs"),
    (" kept once", "kept for backward"),
    (" kept x ", "kept for backward"),
    (" saved inside x ", "kept for backward"),
    (" again", "made again in backward"),
    (" inside redone", "made again in backward"),
    ("gradient of ", "gradients between layers"),
    ("optimizer step of ", "optimizer step"),
    (" temporaries", "working values"),
    (" across ", "working values"),
)
"""Words in the names of `Figures.memory_bytes` -> what they are summed up under."""

NARROW = (24, 16)
"""Columns for the names of units and for conversions where a table would be wider than the console."""

PROVEN = 1e-3
"""A plan with at most this gap is called optimal."""

NOTHING_S = 5e-10
"""Parts of a step that are nothing but rounding are left out."""

LARGEST = 5
"""How many single entries of the memory split are shown."""

BYTES_PER_DTYPE = {"bool": 1, "int8": 1, "uint8": 1, "int16": 2, "bfloat16": 2, "float16": 2, "int32": 4, "float32": 4}


def print_plan(plan: Plan, measured: Counted | None = None, console: Console | None = None) -> None:
    """All tables of a plan; plain and 140 columns wide where the output is no terminal."""
    print_all(plan_renderables(plan, measured), console)


def print_all(parts: Iterable[RenderableType], console: Console | None = None) -> None:
    """One below the other; plain and 140 columns wide where the output is no terminal."""
    console = console or new_console()
    for part in parts:
        console.print(part)


def plan_renderables(plan: Plan, measured: Counted | None = None) -> list[RenderableType]:
    """The header, one table per region type, state at rest, collectives, memory, and predicted against counted figures."""
    found: list[RenderableType] = [header(plan)]
    found += [RegionTable(plan, region_view(plan, name)) for name in plan.regions]
    found += [legend(), state_table(plan), collectives_table(plan, measured), memory_table(plan)]
    found += [measured_table(plan, measured)] if measured else []
    found += [discovered_table(plan)] if any(region.discovered for region in plan.regions.values()) else []
    found += [tried_table(plan)] if plan.tried else []
    found += [other_sizes_table(plan)] if plan.other_sizes else []
    return [Group(renderable, Text()) for renderable in found]


def header(plan: Plan) -> Panel:
    mesh = " × ".join(f"{name} {size}" for name, size in zip(plan.mesh.names, plan.mesh.sizes, strict=True))
    proven = "proven optimal" if plan.gap <= PROVEN else "within the gap that was asked for"
    how_sure = proven if plan.status == "optimal" else "stopped by the time limit"
    share = f"of {human(plan.budget_bytes)} ({plan.peak_bytes / plan.budget_bytes:.0%})" if plan.budget_bytes else "(no budget)"
    figures = plan.figures
    grid = table_grid()
    grid.add_row("mesh", f"{plan.mesh} ({mesh}), {plan.hardware}, optimizer {plan.optimizer}")
    if plan.precision is not None:
        grid.add_row("precision", str(plan.precision))
    bound = f"at least {human_s(plan.lower_bound_s)}, gap {plan.gap:.2%}" if plan.lower_bound_s else "no bound"
    grid.add_row("step time", f"{human_s(plan.step_time_s)} predicted ({bound}: {how_sure})")
    grid.add_row("", ", ".join(f"{name} {human_s(s)}" for name, s in figures.time_s.items() if abs(s) > NOTHING_S))
    grid.add_row("peak", f"{human(plan.peak_bytes)} {share}, in {plan.peak_where}")
    part = f" and micro-batch, of {plan.micro_batches}" if plan.micro_batches > 1 else ""
    flops = f"forward {human_flops(figures.forward_flops)}, backward {human_flops(figures.backward_flops)}"
    grid.add_row("work", f"{flops}, redone {human_flops(figures.redone_flops)} per device{part}")
    for line in plan.constraints.lines():
        grid.add_row("wanted", Text(line))
    for note in plan.notes:
        grid.add_row("note", Text(note))
    return Panel(grid, title=Text(plan.model, style="bold"), title_align="left", expand=False, box=box.ROUNDED)


def module_renderables(plan: Plan, module: str) -> list[RenderableType]:
    """The units of modules that match a glob, and where their parameters rest; raises InputError if nothing matches."""
    found: list[RenderableType] = [
        RegionTable(plan, region_view(plan, r, units)) for r, units in units_of(plan, module).items()
    ]
    wanted = (Selector(path=module), Selector(path=f"**.{module}"))
    state = {name: tensor for name, tensor in plan.state.items() if any(one.has_path(name) for one in wanted)}
    found += [legend(), state_table(plan.model_copy(update={"state": state}))]
    return [Group(renderable, Text()) for renderable in found]


@dataclass(frozen=True)
class RegionTable:
    """The table of a region type: on one line per row where there is room, else with names and conversions broken."""

    plan: Plan
    view: RegionView

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        wide = self.table(None, None)
        yield wide if wide.__rich_measure__(console, options).maximum < options.max_width else self.table(*NARROW)

    def table(self, name_width: int | None, conversion_width: int | None) -> Table:
        view = self.view
        table = new_table(f"layer type {view.name}{f' × {view.calls}' if view.calls > 1 else ''}")
        table.add_column("unit", overflow="fold", max_width=name_width)
        for axis in self.plan.mesh.names:
            table.add_column(axis, no_wrap=name_width is None)
        table.add_column("conversions", overflow="fold", max_width=conversion_width)
        for calls in view.classes:
            table.add_column(calls)
        for row in view.rows:
            style = "dim" if row.minor else None
            table.add_row(row.name, *row.axes, "\n".join(row.conversions), *map(mark, row.marks), style=style)
        return table


def legend() -> Text:
    return Text.assemble(
        "Below a unit stand its parameters, with where they rest, and the results that are converted. For backward: ",
        ("keep", "green"),
        " holds results, ",
        ("inside", "green"),
        " holds only what the unit itself saves, ",
        ("redo", "yellow"),
        " runs it again, ",
        ("again", "yellow"),
        " converts again; blank: not needed.",
    )


def mark(text: str) -> Text:
    colored = Text(text)
    colored.highlight_words(["redo", "again"], "yellow")
    colored.highlight_words(["keep", "inside"], "green")
    return colored


def state_table(plan: Plan) -> Table:
    """Equal tensors of repeated layers as one row."""
    repeated = repeated_patterns(plan)
    groups = Counter((repeated.get(name, name), tensor) for name, tensor in plan.state.items())
    table = new_table("state at rest", ("tensor", {"overflow": "fold"}), "shape")
    for axis in plan.mesh.names:
        table.add_column(axis)
    table.add_column("per device", justify="right")
    for (name, tensor), count in groups.items():
        shape = f"{tensor.dtype} {list(tensor.shape)}"
        cells = str(tensor.placement).partition(" nested ")[0].split(", ")
        table.add_row(f"{name}{f' × {count}' if count > 1 else ''}", shape, *cells, human(count * local_bytes(plan, tensor)))
    return table


def repeated_patterns(plan: Plan) -> dict[str, str]:
    """`h.*.weight` for `h.0.weight` and `h.1.weight`; names that no other tensor shares a pattern with are left out."""
    counts = Counter(map(pattern, plan.state))
    return {name: pattern(name) for name in plan.state if counts[pattern(name)] > 1}


def local_bytes(plan: Plan, tensor: PlannedTensor) -> int:
    """One device's piece of the tensor itself, without gradient and optimizer state."""
    total = BYTES_PER_DTYPE.get(tensor.dtype, 8)
    for size in tensor.placement.local_shape(tensor.shape, plan.mesh.sizes):
        total *= size
    return total


def collectives_table(plan: Plan, measured: Counted | None = None) -> RenderableType:
    """How often and how much per step; where something else was counted, that too."""
    planned = by_key(plan.figures.collectives)
    counted = by_key(measured.collectives) if measured else planned
    one = "step" if plan.micro_batches == 1 else f"micro-batch, of {plan.micro_batches} in a step"
    table = new_table(f"collectives per {one}", "axis", "collective")
    for phase in ("forward", "backward"):
        table.add_column(phase, justify="right")
    order = {name: i for i, name in enumerate(plan.mesh.names)}
    for axis, kind in sorted({key[:2] for key in planned | counted}, key=lambda key: (order.get(key[0], -1), key[1])):
        cells = []
        for phase in ("forward", "backward"):
            expected, found = (d.get((axis, kind, phase), (0, 0)) for d in (planned, counted))
            cell = Text(traffic(*expected))
            cells.append(cell if expected == found else cell.append(f", counted {traffic(*found)}", "bold red"))
        table.add_row(axis, kind, *cells)
    return table if table.rows else Text("no collectives: every device works alone\n", style="italic")


def by_key(collectives: Iterable[PlannedCollective]) -> dict[tuple[str, str, str], tuple[int, int]]:
    return {(c.axis, c.kind, c.phase): (c.count, c.bytes) for c in collectives}


def traffic(count: int, total: int) -> str:
    return f"{human(total)} in {count}" if count else "–"


def memory_table(plan: Plan) -> Table:
    """The peak by what it is for, then its largest single entries."""
    figures = plan.figures
    parts = figures.memory_bytes
    whole = sum(parts.values()) or 1.0
    title = f"memory as the solver estimates it: {human(figures.estimated_peak_bytes)} in {figures.estimated_peak_where}"
    table = new_table(title, ("for", {"overflow": "fold"}))
    table.add_column("bytes", justify="right")
    table.add_column("share", justify="right")
    for name, size in memory_split(parts).items():
        table.add_row(name, human(size), f"{size / whole:.0%}")
    table.add_section()
    repeated = repeated_patterns(plan)
    for name, size in sorted(parts.items(), key=lambda item: -item[1])[:LARGEST]:
        state, at_rest, where = name.partition(" at rest ")
        shown = f"{repeated.get(state, state)}{at_rest}{where}"
        table.add_row(shown, human(size), f"{size / whole:.0%}", style="dim")
    return table


def memory_split(parts: Mapping[str, float]) -> dict[str, float]:
    """Bytes by purpose, largest first."""
    found: Counter[str] = Counter()
    for name, size in parts.items():
        found[next((purpose for words, purpose in MEMORY if words in name), "other")] += size  # type: ignore[assignment]
    return dict(found.most_common())


def measured_table(plan: Plan, measured: Counted) -> Table:
    """Predicted figures against those counted on the emitted graphs."""
    figures = plan.figures
    table = new_table("predicted against counted on the emitted graphs", "figure")
    for column in ("predicted", "counted", "difference"):
        table.add_column(column, justify="right")

    def add(name: str, predicted: float, counted: float, text: str, found: str) -> None:
        gap = "equal" if predicted == counted else f"{(counted - predicted) / predicted:+.2%}" if predicted else "unexpected"
        table.add_row(name, text, found, Text(gap, style="green" if gap == "equal" else ""))

    flops = (
        ("forward FLOPs", figures.forward_flops, measured.forward_flops),
        ("backward FLOPs", figures.backward_flops + figures.redone_flops, measured.backward_flops + measured.redone_flops),
    )
    for name, predicted, counted in flops:
        add(name, predicted, counted, f"{predicted:,}", f"{counted:,}")
    for kind in sorted({c.kind for c in (*figures.collectives, *measured.collectives)}):
        predicted, counted = (
            sum(c.bytes for c in found if c.kind == kind) for found in (figures.collectives, measured.collectives)
        )
        add(f"{kind} bytes", predicted, counted, f"{predicted:,}", f"{counted:,}")
    estimate = figures.estimated_peak_bytes
    add("peak bytes (the solver's estimate)", estimate, measured.peak_bytes, f"{estimate:,.0f}", f"{measured.peak_bytes:,}")
    return table


def discovered_table(plan: Plan) -> Table:
    """Ops that nobody wrote a rule for: what was found by trying them."""
    table = new_table("ops without a rule, as they were tried", ("op", {"overflow": "fold"}), "layer type")
    for column in ("node", "found"):
        table.add_column(column, overflow="fold")
    for name, region in plan.regions.items():
        for node, rule in region.discovered.items():
            table.add_row(rule.op, name, node, Text(rule.row if not rule.reason else f"kept whole: {rule.reason}"))
    return table


def human_flops(flops: float) -> str:
    """A multiply-add is two.

    >>> human_flops(54525952), human_flops(0)
    ('54.5 MFLOP', '0 FLOP')
    """
    unit, scaled = "", float(flops)
    for larger in "kMGTPE":
        if scaled < 999.5:
            break
        unit, scaled = larger, scaled / 1000
    return f"{three_figures(scaled)} {unit}FLOP"


__all__ = ["plan_renderables", "print_plan"]
