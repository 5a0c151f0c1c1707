"""The head of the page: what the plan is, and in one sentence and four figures what it comes to."""

from __future__ import annotations

from dataclasses import dataclass

from autopar.bytes import human
from autopar.ir.plan import Plan
from autopar.ir.timeline import step_on_clock_s
from autopar.render import PROVEN, human_flops
from autopar.report.evidence import Evidence
from autopar.report.html import Content, Markup, tag
from autopar.report.scale import percent, share
from autopar.seconds import human_s

COMMUNICATION = "communication on "
OVERLAPPED = "overlapped"


@dataclass(frozen=True, kw_only=True)
class Load:
    """How long the device, or the link of a mesh axis, is busy in a step, and with what."""

    name: str
    seconds: float
    parts: tuple[tuple[str, float], ...]


def loads(plan: Plan) -> list[Load]:
    """The device first, then every axis that carries something; from the plan's own figures."""
    own = [(what, s) for what, s in plan.figures.time_s.items() if not what.startswith(COMMUNICATION) and what != OVERLAPPED]
    found = [Load(name="computation", seconds=sum(s for _, s in own), parts=tuple(own))]
    for name in plan.mesh.names:
        seconds = plan.figures.time_s.get(f"{COMMUNICATION}{name}", 0.0)
        if seconds:
            found.append(Load(name=name, seconds=seconds, parts=((name, seconds),)))
    return found


def bound(plan: Plan) -> Load:
    """What is busy for longest."""
    return max(loads(plan), key=lambda load: load.seconds)


def bound_words(plan: Plan) -> str:
    found = bound(plan)
    return found.name if found.name == "computation" else f"communication on {found.name}"


def gap_words(plan: Plan) -> str:
    """
    >>> from types import SimpleNamespace
    >>> gap_words(SimpleNamespace(lower_bound_s=1.0, gap=0.0)), gap_words(SimpleNamespace(lower_bound_s=1.0, gap=0.02))
    ('no plan is faster', 'no plan is more than 2.00 % faster')
    """
    if not plan.lower_bound_s:
        return "no bound is known"
    return "no plan is faster" if plan.gap <= 0 else f"no plan is more than {max(plan.gap, 1e-4):.2%} faster".replace("%", " %")


def verdict(evidence: Evidence, nav: Markup) -> Markup:
    plan = evidence.plan
    return tag(
        "header",
        tag("p", "autopar report", class_="eyebrow"),
        tag("h1", plan.model),
        tag("p", subtitle(evidence), class_="subtitle"),
        tag("p", sentence(plan), class_="verdict"),
        tag("div", cards(evidence), class_="cards"),
        nav,
    )


def subtitle(evidence: Evidence) -> Content:
    plan = evidence.plan
    parts = [f"{' × '.join(map(str, plan.mesh.sizes))} {plan.hardware}", f"optimizer {plan.optimizer}"]
    if plan.micro_batches > 1:
        parts.append(f"{plan.micro_batches} micro-batches")
    parts += [f"{name} {' × '.join(map(str, t.shape)) or 'scalar'}" for name, t in list(plan.inputs.items())[:2]]
    if plan.precision is not None:
        parts.append(str(plan.precision))
    if evidence.front:
        parts.append(f"point {evidence.point + 1} of {len(evidence.front)}")
    return [tag("span", part) for part in parts]


def sentence(plan: Plan) -> Content:
    devices = f"{plan.mesh.devices} device{'s' * (plan.mesh.devices > 1)}"
    again = plan.figures.redone_flops / (plan.figures.forward_flops or 1)
    rest = f", and {share(again, 1)} of forward is computed again in backward to save memory" if again else ""
    fits = "fits the budget" if plan.budget_bytes else "had no budget to fit"
    return [
        f"A step on {devices} is predicted to take ",
        tag("strong", human_s(plan.step_time_s)),
        ", bound by ",
        tag("strong", bound_words(plan)),
        "; with ",
        tag("strong", human(plan.peak_bytes)),
        f" per device it {fits}{rest}. Of all plans that were open to the solver, {gap_words(plan)}.",
    ]


def cards(evidence: Evidence) -> list[Markup]:
    plan = evidence.plan
    found = [time_card(evidence), memory_card(plan), bound_card(plan)]
    return [*found, compared_card(evidence) or work_card(plan)]


def card(title: str, figure: str, *below: Content) -> Markup:
    return tag("div", tag("h2", title), tag("p", figure, class_="figure"), (tag("p", line) for line in below), class_="card")


def time_card(evidence: Evidence) -> Markup:
    plan = evidence.plan
    bound_s = f"predicted; at least {human_s(plan.lower_bound_s)}" if plan.lower_bound_s else "predicted; no bound is known"
    proven = "proven optimal" if plan.gap <= PROVEN else "within the gap that was asked for"
    sure = proven if plan.status == "optimal" else "the search was stopped by its limit"
    gap = f"gap {plan.gap:.2%}, {sure}" if plan.lower_bound_s else sure
    clock_s = step_on_clock_s(plan, evidence.inside.tracks.step_s) if evidence.inside else 0.0
    clock = [f"{human_s(clock_s)} on the clock of its graphs"] if evidence.inside else []
    return card("Step time", human_s(plan.step_time_s), bound_s, gap, *clock)


def memory_card(plan: Plan) -> Markup:
    where = f"highest in {plan.peak_where}"
    if not plan.budget_bytes:
        return card("Memory per device", human(plan.peak_bytes), "no budget was given", where)
    filled = percent(plan.peak_bytes, plan.budget_bytes)
    meter = tag(
        "span",
        tag("span", "", style=f"width:{min(filled, 100.0)}%"),
        class_="meter",
        role="img",
        aria_label=f"{filled:.0f} percent of the budget",
    )
    return card(
        "Memory per device", human(plan.peak_bytes), meter, f"{filled:.0f} % of the budget of {human(plan.budget_bytes)}", where
    )


def bound_card(plan: Plan) -> Markup:
    found = bound(plan)
    others = [load for load in loads(plan) if load.name != found.name]
    busy = f"busy for {human_s(found.seconds)} of {human_s(plan.step_time_s)}"
    beside = "beside it " + ", ".join(f"{load.name} {human_s(load.seconds)}" for load in others) if others else ""
    return card(
        "Bound by", "computation" if found.name == "computation" else f"link {found.name}", busy, *([beside] * bool(beside))
    )


def work_card(plan: Plan) -> Markup:
    figures = plan.figures
    whole = (figures.forward_flops + figures.backward_flops) * plan.micro_batches
    rate = whole / plan.step_time_s if plan.step_time_s else 0.0
    redone = figures.redone_flops * plan.micro_batches
    again = f"{human_flops(redone)} again" if redone else "nothing is computed again"
    return card("Work per device", human_flops(whole), f"{human_flops(rate)}/s on average", again)


def compared_card(evidence: Evidence) -> Markup | None:
    """How much faster than the best known way; None without comparison, or if none fits."""
    comparison = evidence.comparison
    if comparison is None or comparison.best is None:
        return None
    best = comparison.best
    ratio = best.step_time_s / evidence.plan.step_time_s
    return card(
        "Against known ways",
        f"{ratio:.2f}× as fast",
        f"as {best.name} ({human_s(best.step_time_s)})",
        f"checkpoints: {best.checkpoint}; the fastest that fits",
    )
