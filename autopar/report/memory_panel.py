"""Memory over one step as stacked areas below the budget, and what is there at the peak."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from autopar.bytes import human, three_figures
from autopar.ir.plan import Plan
from autopar.render import memory_split
from autopar.report.evidence import Evidence
from autopar.report.html import Content, Markup, absent, data, panel, table, tag
from autopar.report.legend import swatches
from autopar.report.memory import PURPOSES, Sample, StepMemory
from autopar.report.plot import SIDE, at_y, frame, over, time_ticks
from autopar.report.scale import percent, share, ticks

POINTS = 500
"""Samples that are drawn: as many as a picture has room for, the highest of each slice."""

LARGEST = 12
FAR = 2.5
"""A budget of so many times the peak is said, not drawn."""

UNITS = ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"))


def memory_panel(evidence: Evidence) -> Markup:
    plan = evidence.plan
    if evidence.inside is None:
        missing = absent("Memory over the step is counted on the model's graphs.", evidence.missing, evidence.remedy)
        return panel("memory", "Memory over one step", missing, estimate(plan))
    memory = evidence.inside.memory
    part = f" of one of {plan.micro_batches} micro-batches, and the optimizer" if plan.micro_batches > 1 else ""
    lead = (
        f"Bytes alive on one device{part}, counted on the graphs that will run; the peak is {human(memory.peak.total)} "
        f"({int(memory.peak.total):,} bytes). Point at a moment to see what lives there."
    )
    content = [
        swatches([(f"m-{p}", words) for p, words in used(memory)]),
        picture(plan, memory),
        living(memory),
        script_data(memory),
    ]
    return panel("memory", "Memory over one step", *content, lead=lead)


def used(memory: StepMemory) -> list[tuple[str, str]]:
    """The purposes that anything is there for, the topmost first."""
    return [(p, w) for i, (p, w) in enumerate(PURPOSES.items()) if any(s.bytes[i] for s in memory.samples)][::-1]


def top_bytes(plan: Plan, memory: StepMemory) -> float:
    peak = memory.peak.total
    budget = plan.budget_bytes or 0
    return 1.06 * (max(peak, budget) if budget <= FAR * peak else 1.1 * peak)


def picture(plan: Plan, memory: StepMemory) -> Markup:
    top, samples = top_bytes(plan, memory), memory.thinned(POINTS)
    unit, name = next((u for u in UNITS if memory.peak.total >= u[0]), UNITS[-1])
    y = [(percent(t * unit, top), f"{three_figures(t)} {name}" if t else "0") for t in ticks(top / unit)]
    shapes = list(areas(samples, memory.step_s, top))
    marks = [
        over(
            f"peak {human(memory.peak.total)}",
            "peak",
            left=percent(memory.peak.at_s, memory.step_s),
            bottom=percent(memory.peak.total, top),
            tabindex=0,
            data_peak=True,
        )
    ]
    if plan.budget_bytes and plan.budget_bytes <= top:
        height = at_y(percent(plan.budget_bytes, top))
        shapes.append(tag("line", x1=0, x2=SIDE, y1=height, y2=height, class_="budget"))
        marks.append(over(f"budget {human(plan.budget_bytes)}", "said budget", left=0, bottom=percent(plan.budget_bytes, top)))
    elif plan.budget_bytes:
        marks.append(over(f"the budget, {human(plan.budget_bytes)}, is far above", "said budget", left=0, bottom=96))
    label = f"memory over one step: highest {human(memory.peak.total)}, in {memory.peak.where}"
    plot = frame(
        shapes, marks, y=y, x=time_ticks(memory.step_s), label=label, below=phases(memory), id="memory-plot", tabindex=0
    )
    return tag("figure", plot, class_="wide")


def areas(samples: Sequence[Sample], step_s: float, top: float) -> Iterator[Markup]:
    """Each purpose down to the bottom, the topmost first: the next one covers what is not its own."""
    for place in reversed(range(len(PURPOSES))):
        if not any(s.bytes[place] for s in samples):
            continue
        steps = "".join(
            f"H{round(SIDE * s.at_s / step_s, 1):g}V{at_y(percent(sum(s.bytes[: place + 1]), top)):g}" for s in samples
        )
        yield tag("path", d=f"M0 {SIDE}{steps}H{SIDE}V{SIDE}Z", class_=f"m-{list(PURPOSES)[place]}")


def phases(memory: StepMemory) -> list[Markup]:
    """Where forward ends and backward does."""
    starts: dict[str, float] = {}
    for s in memory.samples:
        starts.setdefault(s.where.rpartition(" ")[2], s.at_s)
    named = [
        ("forward", 0.0),
        ("backward", starts.get("backward", memory.step_s)),
        ("optimizer", starts.get("step", memory.step_s)),
    ]
    found = []
    for (name, start), end in zip(named, [*(s for _, s in named[1:]), memory.step_s], strict=True):
        left, width = percent(start, memory.step_s), percent(end - start, memory.step_s)
        wide = width > 8
        found.append(tag("span", name if wide else "", class_=f"phase k-{name}", style=f"left:{left}%;width:{width}%"))
    return found


def living(memory: StepMemory) -> Markup:
    """A table of what is there at the peak."""
    total = memory.peak.total
    rows: list[list[Content]] = [
        [
            [
                tag("span", "", class_=f"swatch m-{thing.purpose}"),
                thing.what,
                tag("small", f"× {thing.count}") if thing.count > 1 else None,
            ],
            PURPOSES[thing.purpose],
            human(thing.bytes),
            share(thing.bytes, total),
        ]
        for thing in memory.living[:LARGEST]
    ]
    if rest := memory.living[LARGEST:]:
        rows.append(
            [f"{len(rest)} smaller entries", "", human(sum(t.bytes for t in rest)), share(sum(t.bytes for t in rest), total)]
        )
    where = f"{memory.peak.where}{f', at {memory.peak.what}' if memory.peak.what else ''}"
    body = table(["what", "for", "bytes", "share"], rows, class_="figures")
    return tag("details", tag("summary", f"What lives at the peak, in {where}"), body)


def script_data(memory: StepMemory) -> Markup:
    """For the script: samples with indices into the names of calls."""
    samples = memory.thinned(POINTS)
    calls = list(dict.fromkeys(s.where for s in samples))
    place = {name: i for i, name in enumerate(calls)}
    value = {
        "step": memory.step_s,
        "purposes": [[p, words] for p, words in PURPOSES.items()],
        "calls": calls,
        "samples": [[round(s.at_s, 9), place[s.where], s.what, *s.bytes] for s in samples],
        "peak": max(range(len(samples)), key=lambda i: samples[i].total),
        "living": [[t.what, t.purpose, t.count, t.bytes] for t in memory.living[:LARGEST]],
    }
    return data("memory-data", value)


def estimate(plan: Plan) -> Markup:
    """The solver's own split of its worst point, which the plan says."""
    parts = plan.figures.memory_bytes
    whole = sum(parts.values())
    rows = [[name, human(size), share(size, whole)] for name, size in memory_split(parts).items()]
    said = f"What the solver counted at its worst point, {plan.figures.estimated_peak_where}: an estimate from above"
    return table(["for", "bytes", "share"], rows, caption=said, class_="figures")
