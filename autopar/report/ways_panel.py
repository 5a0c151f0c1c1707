"""The plan beside the known ways to parallelize the same model on the same mesh."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autopar.bytes import human
from autopar.report.evidence import Evidence
from autopar.report.html import Content, Markup, absent, panel, table, tag
from autopar.report.legend import axis_chip
from autopar.report.mesh import main, purposes
from autopar.report.scale import percent
from autopar.seconds import human_s

if TYPE_CHECKING:
    from autopar.planning.compare import Comparison, Way


def ways_panel(evidence: Evidence) -> Markup:
    title, found = "Against the known ways", evidence.comparison
    if found is None:
        why = evidence.uncompared or evidence.missing
        return panel("ways", title, absent("The known ways to parallelize this model were not counted.", why, evidence.remedy))
    slowest = max(way.step_time_s for way in found.ways)
    rows = [row(evidence, found, way, slowest) for way in found.ways]
    head = [
        "way",
        "axes cut",
        "made again",
        "step time",
        "on the clock",
        "memory",
        *(f"sent on {name}" for name in evidence.plan.mesh.names),
    ]
    parts: list[Content] = [table(head, rows, class_="ways")]
    if found.absent:
        parts.append(tag("p", f"No place here: {', '.join(found.absent)} (no dim to cut so on this mesh)."))
    lead = (
        f"Each known way is the same program with its strategies fixed, priced and counted as the plan is; {best_words(found)}"
    )
    return panel("ways", title, *parts, lead=lead)


def best_words(found: Comparison) -> str:
    if found.best is None:
        return "none of them fits the budget."
    ratio = found.best.step_time_s / found.ours.step_time_s
    return f"the fastest that fits, {found.best.name}, takes {ratio:.2f} times as long."


def row(evidence: Evidence, found: Comparison, way: Way, slowest: float) -> list[Content]:
    ours = way is found.ours
    names = evidence.plan.mesh.names
    cut = [", ".join(main(weights)[:2]) for weights in purposes(evidence)] if ours else way.purposes
    bar = tag("span", tag("span", "", style=f"width:{percent(way.step_time_s, slowest)}%"), class_=f"bar{' ours' * ours}")
    times = None if ours else tag("small", f"{way.step_time_s / (found.ours.step_time_s or 1):.2f}×")
    return [
        [tag("b", way.name) if ours else way.name, tag("span", "best that fits", class_="pill") if way is found.best else None],
        [axis_chip(axis, purpose) for axis, purpose in enumerate(cut) if purpose],
        way.checkpoint,
        [bar, human_s(way.step_time_s), times],
        [human_s(way.clock_s), None if ours else tag("small", f"{way.clock_s / (found.ours.clock_s or 1):.2f}×")],
        [memory_bar(evidence, found, way), human(way.peak_bytes), None if way.fits else tag("small", "too much", class_="bad")],
        *(human(way.sent_bytes.get(name, 0)) for name in names),
    ]


def memory_bar(evidence: Evidence, found: Comparison, way: Way) -> Markup:
    """Against the budget, or against the largest of all where there is none."""
    whole = evidence.plan.budget_bytes or max(w.peak_bytes for w in found.ways)
    filled = min(percent(way.peak_bytes, whole), 100.0)
    return tag("span", tag("span", "", style=f"width:{filled}%"), class_=f"bar{'' if way.fits else ' over'}")
