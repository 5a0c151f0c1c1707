"""Answers about a plan as tables: the known ways beside it, where its time goes, and what other strategies would cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from autopar.bytes import human
from autopar.ir.region_view import factor_text
from autopar.plan_diff import changes
from autopar.render import human_flops, new_table
from autopar.render_diff import changes_renderables
from autopar.seconds import human_s

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from autopar.ir.plan import Plan
    from autopar.planning.compare import Comparison, Way
    from autopar.planning.costs import Cost
    from autopar.planning.explain import Alternative, Explained, WhyNot
    from autopar.planning.question import Question
    from autopar.planning.waits import Wait

SHOWN = 12
"""Strategies of a unit, and costs, that are listed if not all are asked for."""
KINDS = 4
"""Of collectives that are waited for."""
SAME = 0.005
"""Relative: step times that are not told apart."""
IN_FULL = 3
"""Of more units than this each is one row."""


def comparison_renderables(found: Comparison) -> list[RenderableType]:
    """A row for each way with each checkpoint, and the verdict."""
    budget = "no budget" if found.budget_bytes is None else f"budget {human(found.budget_bytes)}"
    title = f"{found.model} on {found.mesh} of {found.hardware}, {budget}: predicted per step and device"
    table = new_table(title, ("way", {"overflow": "fold"}), "checkpoint")
    for column in (
        "step time",
        "ours is",
        "on clock",
        "peak",
        "fits",
        *(f"sent on {axis}" for axis in found.mesh.names),
        "redone",
    ):
        table.add_column(column, justify="right")
    before = ""
    for way in found.ways:
        if way.name != before and before:
            table.add_section()
        table.add_row(*way_cells(found, way, first=way.name != before), style=way_style(found, way))
        before = way.name
    absent = f"no place here: {', '.join(found.absent)} (no dim to cut so)"
    lines = [Text(verdict(found)), *map(Text, clock_verdict(found))]
    return [table, *([Text(absent, style="dim")] if found.absent else []), *lines]


def way_cells(found: Comparison, way: Way, *, first: bool) -> Iterator[str]:
    purposes = f" ({', '.join(f'{axis} {purpose}' for axis, purpose in zip(found.mesh.names, way.purposes, strict=False))})"
    yield f"{way.name}{purposes if way.purposes else ''}" if first else ""
    yield way.checkpoint
    yield human_s(way.step_time_s)
    yield "" if way is found.ours else faster(way.step_time_s / found.ours.step_time_s)
    yield human_s(way.clock_s)
    yield human(way.peak_bytes)
    yield "yes" if way.fits else "no"
    for axis in found.mesh.names:
        yield human(way.sent_bytes[axis]) if way.sent_bytes[axis] else "–"
    yield human_flops(way.redone_flops) if way.redone_flops else "–"


def way_style(found: Comparison, way: Way) -> str | None:
    return "bold" if way is found.ours else "green" if way is found.best else None if way.fits else "dim"


def faster(ratio: float) -> str:
    """
    >>> faster(1.25), faster(0.98), faster(1.0)
    ('1.25× faster', '1.02× slower', 'as fast')
    """
    if abs(ratio - 1) < SAME:
        return "as fast"
    return f"{ratio:.2f}× faster" if ratio > 1 else f"{1 / ratio:.2f}× slower"


def verdict(found: Comparison) -> str:
    best = found.best
    if best is None:
        return "none of the known ways fits the budget"
    ours = faster(best.step_time_s / found.ours.step_time_s)
    return f"the best of the known ways that fit is {best.name}, checkpoint {best.checkpoint}: this plan is predicted {ours}"


def clock_verdict(found: Comparison) -> Iterator[str]:
    """A sentence if the clock has another winner than the plan."""
    best, on_clock, ours = found.best, found.best_on_clock, found.ours
    if best is None or on_clock is None:
        return
    planned, clocked = best.step_time_s / ours.step_time_s, on_clock.clock_s / ours.clock_s
    if leads(planned) != leads(clocked):
        other = f"{human_s(on_clock.clock_s)} of {on_clock.name}, checkpoint {on_clock.checkpoint}"
        yield (
            f"but on the clock of the graphs, which wait where nothing hides what is sent, this plan is {faster(clocked)}: "
            f"{human_s(ours.clock_s)}, against {other}"
        )


def leads(ratio: float) -> bool:
    """Whether what takes so many times as long as the plan is no faster, as far as `faster` tells them apart."""
    return ratio > 1 - SAME


def costs_renderables(plan: Plan, found: Sequence[Cost], all_of_them: bool = False) -> list[RenderableType]:
    shown = found if all_of_them else found[:SHOWN]
    whole = sum(cost.seconds for cost in found) or 1.0
    table = new_table(f"where the time of {plan.model} goes, if nothing ran beside it", ("", {"overflow": "fold"}))
    for name in ("layer type", "does"):
        table.add_column(name, overflow="fold")
    for name in ("calls", "time", "share"):
        table.add_column(name, justify="right")
    words = {"unit": "", "conversion": " →", "again": " again"}
    for cost in shown:
        name, share = f"{cost.of}{words[cost.what]}", f"{cost.seconds / whole:.1%}"
        table.add_row(Text(name), cost.region, Text(cost.does), str(cost.calls), human_s(cost.seconds), share)
    if rest := found[len(shown) :]:
        seconds = sum(cost.seconds for cost in rest)
        table.add_row(f"{len(rest)} more (--all)", "", "", "", human_s(seconds), f"{seconds / whole:.1%}", style="dim")
    table.add_section()
    beside = ("optimizer", "casts of parameters", "overlapped")
    for name in (name for name in beside if plan.figures.time_s.get(name)):
        table.add_row(name, "", "", "", human_s(plan.figures.time_s[name]), "")
    table.add_row("step time", "", "", "", human_s(plan.step_time_s), "", style="bold")
    return [table, Text("→: conversions of a tensor. Ask for a unit, a module or op=NAME to see what else it could do.")]


def clock_lines(question: Question, found: Sequence[Wait]) -> list[RenderableType]:
    """The step on the clock, and what the device waits for there."""
    more_s, waited_s = question.clock_s - question.plan.step_time_s, sum(wait.seconds for wait in found)
    apart = f"{human_s(abs(more_s))} {'more' if more_s > 0 else 'less'} than planned"
    head = f"on the clock of its graphs a step takes {human_s(question.clock_s)}, {apart}"
    if not waited_s:
        return [Text(f"{head}; the device waits for no collective")]
    queued_s = sum(wait.queued_s for wait in found)
    queued = f", {human_s(queued_s)} of that for links that carry something else" if queued_s > SAME * waited_s else ""
    kinds = [f"{wait.carries} on {wait.axis} ({wait.kind}) {human_s(wait.seconds)}" for wait in found[:KINDS]]
    return [Text(f"{head}; the device waits {human_s(waited_s)} for collectives{queued}"), Text(f"most for {', '.join(kinds)}")]


def explained_renderables(found: Sequence[Explained], all_of_them: bool = False) -> list[RenderableType]:
    """Each unit with its strategies; of many units one row each."""
    if len(found) > IN_FULL and not all_of_them:
        return [units_table(found), Text("Each with all else as it is; ask for one unit to see all its strategies.")]
    parts: list[RenderableType] = []
    for one in found:
        parts += [*map(Text, about(one)), strategies_table(one, all_of_them)]
        parts += [
            Text(f"{factor} ({one.sizes[factor]}) is cut by no strategy: {why}", style="dim")
            for factor, why in one.uncut.items()
        ]
        parts.append(Text())
    end = "Changes are of the whole plan, with all else as it is; --why-not plans everything anew around a wish."
    return [*parts, Text(end)]


def about(one: Explained) -> Iterator[str]:
    times = f", {one.calls} equal layers" if one.calls > 1 else ""
    yield f"{one.unit}: {one.op} ({one.kind}) of {one.path}{times}"
    sizes = ", ".join(f"{factor} {size}" for factor, size in one.sizes.items())
    yield f"{one.source}  factors: {sizes}" if one.source else f"factors: {sizes}"


def units_table(found: Sequence[Explained]) -> Table:
    table = new_table("units, and the best that each could do instead", ("unit", {"overflow": "fold"}))
    for name in ("chosen", "next best"):
        table.add_column(name, overflow="fold")
    for name in ("step time", "peak"):
        table.add_column(name, justify="right")
    for one in found:
        other = one.next_best
        cells = (axes_text(one, other), *changed(one, other)) if other else ("nothing else is possible", "", "")
        table.add_row(one.unit, axes_text(one, one.chosen), *cells)
    return table


def strategies_table(one: Explained, all_of_them: bool) -> Table:
    table = new_table("", "", *one.axes)
    for name in ("the unit itself", "step time", "peak"):
        table.add_column(name, justify="right")
    table.add_column("", overflow="fold")
    shown = one.alternatives if all_of_them else one.alternatives[:SHOWN]
    shown = shown if one.chosen in shown else (*shown, one.chosen)
    for a in shown:
        cells = (human_s(a.step_time_s or 0.0), "chosen", "") if a.chosen else (*changed(one, a), Text(a.forbidden))
        style = "bold" if a.chosen else "dim" if a.forbidden else None
        texts = (factor_text(f, r) for f, r in zip(a.factors, a.roles, strict=True))
        table.add_row("→" if a.chosen else "", *texts, human_s(a.own_s), *cells, style=style)
    if rest := len(one.alternatives) - len(shown):
        table.add_row("", f"{rest} more (--all)", style="dim")
    return table


def axes_text(one: Explained, a: Alternative) -> str:
    texts = (factor_text(f, r) for f, r in zip(a.factors, a.roles, strict=True))
    return ", ".join(f"{axis} {text}" for axis, text in zip(one.axes, texts, strict=True))


def changed(one: Explained, a: Alternative) -> tuple[str, str]:
    """By how much the plan's step time and estimated peak would change."""
    if a.step_time_s is None or a.estimated_peak_bytes is None:
        return "–", "–"
    chosen = one.chosen
    assert chosen.step_time_s is not None
    assert chosen.estimated_peak_bytes is not None
    slower, larger = a.step_time_s - chosen.step_time_s, a.estimated_peak_bytes - chosen.estimated_peak_bytes
    share = f"{slower / chosen.step_time_s:+.1%}" if chosen.step_time_s else ""
    return f"{sign(slower)}{human_s(abs(slower))} ({share})", f"{sign(larger)}{human(abs(larger))}" if larger else "same"


def sign(number: float) -> str:
    return "−" if number < 0 else "+"


def why_not_renderables(answer: WhyNot) -> list[RenderableType]:
    """What would change, and what it costs; why not, if it cannot be."""
    before, after = answer.before, answer.plan
    if after is None:
        return [Text(f"there is no such plan: {answer.reason}")]
    slower = after.step_time_s - before.step_time_s
    cost = f"{sign(slower)}{human_s(abs(slower))} per step ({slower / before.step_time_s:+.1%})" if slower else "no time"
    end = f"pin {answer.pin!r} costs {cost}; peak {human(before.peak_bytes)} → {human(after.peak_bytes)}"
    return [*changes_renderables(changes(before, after), ("as planned", "with the pin")), Text(end)]
