"""A sweep as a table: a row per setting, what all have in common in the title, the best of each column marked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text

from autopar.bytes import human, three_figures
from autopar.planning.runs import Run, Setting
from autopar.seconds import human_s

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table

BEST = " *"
"""Behind the best of a column, in colour where there is one."""

OUTCOME_COLUMNS, REASON_COLUMNS = 40, 70
"""Where a line breaks, and how much of a reason is shown."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A column of numbers. `best` chooses among them; None where none is better than another."""

    title: str
    value: Callable[[Run], float | None]
    text: Callable[[float], str]
    best: Callable[[Sequence[float]], float] | None = None


VARIED: tuple[tuple[str, Callable[[Setting], str | None]], ...] = (
    ("hardware", lambda setting: setting.hardware),
    ("mesh", lambda setting: setting.mesh),
    ("memory", lambda setting: setting.memory),
    ("batch", lambda setting: None if setting.batch is None else str(setting.batch)),
    ("seq", lambda setting: None if setting.seq is None else str(setting.seq)),
)
"""What a sweep varies: name and text."""

FIGURES = (
    Figure(title="step time", value=lambda run: run.step_time_s, text=human_s, best=min),
    Figure(title="samples/s", value=lambda run: run.samples_per_s, text=lambda rate: number(rate), best=max),
    Figure(title="peak", value=lambda run: run.peak_bytes, text=human, best=min),
    Figure(title="gap", value=lambda run: run.gap, text=lambda gap: f"{gap:.2%}"),
)


FEWER = (FIGURES[:3], (FIGURES[0], FIGURES[2]))
"""Where there is little room, and less."""


def print_sweep(runs: Sequence[Run], asked: int, console: Console | None = None) -> None:
    """The table, and how much of what was asked for is missing."""
    from autopar.tables import new_console

    console = console or new_console()
    if runs:
        console.print(SweepTable(runs=runs))
    if any(run.outcome == "fits" for run in runs):
        console.print(Text(f"{BEST.strip()} the best of its column"), style="dim")
    if len(runs) < asked:
        console.print(Text(f"{asked - len(runs)} of {asked} settings are not finished"))


@dataclass(frozen=True, kw_only=True)
class SweepTable:
    """With all columns and reasons where there is room, else with fewer columns, and outcomes in a few words."""

    runs: Sequence[Run]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        tables = [self.table(FIGURES, outcome), *(self.table(figures, brief) for figures in FEWER)]
        fitting = (table for table in tables if table.__rich_measure__(console, options).maximum < options.max_width)
        yield next(fitting, tables[-1])

    def table(self, figures: Sequence[Figure], outcome: Callable[[Run], Text]) -> Table:
        from autopar.tables import new_table

        runs, columns = self.runs, varied([run.setting for run in self.runs])
        table = new_table(title(runs))
        for name, _ in columns:
            table.add_column(name, no_wrap=name != "mesh", overflow="fold")
        for figure in figures:
            table.add_column(figure.title, justify="right", no_wrap=True)
        table.add_column("outcome", overflow="fold", max_width=OUTCOME_COLUMNS)
        best = {figure.title: chosen for figure in figures if (chosen := best_of(figure, runs)) is not None}
        for run in runs:
            cells = [text(run.setting) or "–" for _, text in columns]
            table.add_row(*map(Text, cells), *(cell(figure, run, best.get(figure.title)) for figure in figures), outcome(run))
        return table


def varied(settings: Sequence[Setting]) -> list[tuple[str, Callable[[Setting], str | None]]]:
    """What differs between settings, and the mesh."""
    return [(name, text) for name, text in VARIED if name == "mesh" or len({text(setting) for setting in settings}) > 1]


def title(runs: Sequence[Run]) -> str:
    """The model, and what all settings have in common."""
    settings, columns = [run.setting for run in runs], varied([run.setting for run in runs])
    common = [(name, text(settings[0])) for name, text in VARIED if (name, text) not in columns]
    named = [text if name == "hardware" else f"{name} {text}" for name, text in common if text is not None]
    return ", ".join([settings[0].model, *(text for text in named if text is not None)])


def best_of(figure: Figure, runs: Sequence[Run]) -> float | None:
    found = [value for run in runs if (value := figure.value(run)) is not None]
    return figure.best(found) if figure.best is not None and len(found) > 1 else None


def cell(figure: Figure, run: Run, best: float | None) -> Text:
    value = figure.value(run)
    if value is None:
        return Text("–")
    return Text(figure.text(value) + BEST, style="bold green") if value == best else Text(figure.text(value))


def outcome(run: Run) -> Text:
    if run.outcome == "fits":
        return Text("fits" if run.status == "optimal" else "fits, stopped by the time limit")
    if run.outcome == "does not fit" and run.smallest_bytes is not None:
        return Text(f"does not fit: needs {human(run.smallest_bytes)}", style="yellow")
    short = run.message if len(run.message) <= REASON_COLUMNS else run.message[: REASON_COLUMNS - 1] + "…"
    return Text(f"{run.outcome}: {short}", style="red" if run.outcome == "error" else "yellow")


def brief(run: Run) -> Text:
    if run.outcome == "does not fit" and run.smallest_bytes is not None:
        return Text(f"needs {human(run.smallest_bytes)}", style="yellow")
    return Text(run.outcome, style={"fits": "", "error": "red"}.get(run.outcome, "yellow"))


def number(value: float) -> str:
    """
    >>> number(12345.6), number(12.345)
    ('12,346', '12.3')
    """
    return f"{value:,.0f}" if value >= 1000 else three_figures(value)
