"""Step time against memory: the plans of a front, and the one that this report is of."""

from __future__ import annotations

from itertools import pairwise

from autopar.bytes import human, three_figures
from autopar.ir.plan import Plan
from autopar.report.evidence import Evidence
from autopar.report.html import Markup, panel, table, tag
from autopar.report.memory_panel import UNITS
from autopar.report.plot import SIDE, at_y, frame, over
from autopar.report.scale import percent, share, ticks
from autopar.seconds import human_s


def front_panel(evidence: Evidence) -> Markup | None:
    """None for a plan that is alone."""
    if len(evidence.front) < 2:
        return None
    smallest = "; nothing smaller exists" if evidence.front_complete else ""
    lead = (
        f"Each point is the fastest plan that was found for every budget up to the next point's memory{smallest}. "
        f"This report is of point {evidence.point + 1}."
    )
    return panel("front", "Step time against memory", picture(evidence), points(evidence), lead=lead)


def picture(evidence: Evidence) -> Markup:
    plans = evidence.front
    right, top = 1.08 * plans[-1].peak_bytes, 1.12 * plans[0].step_time_s
    unit, name = next((u for u in UNITS if right >= u[0]), UNITS[-1])

    def place(plan: Plan) -> tuple[float, float]:
        return percent(plan.peak_bytes, right), percent(plan.step_time_s, top)

    first = place(plans[0])
    steps = "".join(f"H{10 * x:g}V{at_y(y):g}" for x, y in map(place, plans[1:]))
    shapes = [tag("path", d=f"M{10 * first[0]:g} {at_y(first[1]):g}{steps}H{SIDE}", class_="stairs")]
    if evidence.front_complete:
        shapes.insert(0, tag("rect", x=0, y=0, width=10 * first[0], height=SIDE, class_="nothing"))
    dots = [dot(number, plan, *place(plan), number - 1 == evidence.point) for number, plan in enumerate(plans, 1)]
    y = [(percent(t, top), human_s(t) if t else "0") for t in ticks(top)]
    x = [(percent(t * unit, right), f"{three_figures(t)} {name}" if t else "0") for t in ticks(right / unit)]
    label = f"step time against memory of {len(plans)} plans"
    return tag("figure", frame(shapes, dots, y=y, x=x, label=label, class_="plot low"), class_="wide")


def dot(number: int, plan: Plan, left: float, bottom: float, chosen: bool) -> Markup:
    told = (
        f"point {number}: {human(plan.peak_bytes)}, {human_s(plan.step_time_s)}{', the one of this report' if chosen else ''}"
    )
    return over(str(number), f"dot{' chosen' if chosen else ''}", left=left, bottom=bottom, data_tip=told, tabindex=0)


def points(evidence: Evidence) -> Markup:
    slower = [None, *(later.step_time_s - before.step_time_s for before, later in pairwise(evidence.front))]
    rows = [
        [
            f"{number}{' (this report)' if number - 1 == evidence.point else ''}",
            human(plan.peak_bytes),
            human_s(plan.step_time_s),
            "" if gained is None else human_s(gained),
            share(plan.figures.redone_flops, plan.figures.forward_flops) if plan.figures.redone_flops else "–",
        ]
        for number, (plan, gained) in enumerate(zip(evidence.front, slower, strict=True), 1)
    ]
    return table(["point", "memory", "step time", "against the one before", "of forward done again"], rows, class_="figures")
