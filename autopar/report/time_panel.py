"""Where the time of a step goes: what the plan counts on, and the clock's timeline of computation and every link."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from autopar.ir.plan import Plan
from autopar.ir.timeline import COMPUTE
from autopar.report.evidence import Evidence
from autopar.report.html import Content, Markup, absent, panel, tag
from autopar.report.legend import axis_class, swatches
from autopar.report.plot import time_ticks
from autopar.report.scale import percent, share
from autopar.report.tracks import Block, Track, Tracks, Usage, Window
from autopar.report.verdict import OVERLAPPED, Load, loads
from autopar.seconds import human_s

KINDS = {
    "k-forward": "forward",
    "k-backward": "backward",
    "k-again": "forward, again",
    "k-waits": "the device waits for a link",
}
STACKED = ("forward", "backward", "again", "waits")
LABELS = {"again": "forward again", "waits": "waits", "forward": "forward", "backward": "backward"}
PARTS = {"compute": "k-forward", "recomputation": "k-again", "optimizer": "k-optimizer"}
"""Parts of computation with a colour of their own."""


def time_panel(evidence: Evidence) -> Markup:
    plan = evidence.plan
    content: list[Content] = [busy(plan)]
    if evidence.inside is None:
        content.append(absent("The timeline is that of the model's graphs.", evidence.missing, evidence.remedy))
    else:
        content += timeline(plan, evidence.inside.tracks)
    hidden = plan.figures.time_s.get(OVERLAPPED, 0.0)
    lead = f"Computation and links work side by side: {human_s(-hidden)} of them are hidden. " if hidden < 0 else ""
    return panel("time", "Time", *content, lead=f"{lead}What is busy for longest bounds the step.")


def busy(plan: Plan) -> Markup:
    """A bar per resource, with the step's end."""
    found = loads(plan)
    longest = max([plan.step_time_s, *(load.seconds for load in found)])
    rows = [resource(plan, load, longest) for load in found]
    end = tag(
        "div",
        tag("span", f"step {human_s(plan.step_time_s)}", style=f"left:{percent(plan.step_time_s, longest)}%"),
        class_="stepend",
    )
    return tag("div", tag("h3", "As planned"), rows, end, class_="bars", role="group", aria_label="busy seconds as planned")


def resource(plan: Plan, load: Load, longest: float) -> Markup:
    axis = plan.mesh.names.index(load.name) if load.name in plan.mesh.names else None
    parts = [
        tag(
            "span",
            "",
            style=f"width:{percent(seconds, longest)}%",
            data_tip=f"{what}: {human_s(seconds)}",
            class_=PARTS.get(what, "k-other") if axis is None else axis_class(axis),
        )
        for what, seconds in load.parts
        if seconds > 0
    ]
    said = ", ".join(f"{what} {human_s(s)}" for what, s in load.parts if s > 0) if len(load.parts) > 1 else ""
    text = [
        human_s(load.seconds),
        tag("small", f"{share(load.seconds, plan.step_time_s)} of the step{f': {said}' if said else ''}"),
    ]
    name = load.name if axis is None else f"link {load.name}"
    return tag(
        "div",
        tag("span", name, class_="what"),
        tag("span", parts, class_="track"),
        tag("span", text, class_="number"),
        class_="barrow",
    )


def timeline(plan: Plan, found: Tracks) -> Iterator[Content]:
    part = "one of the micro-batches" if plan.micro_batches > 1 else "forward and backward"
    yield tag("h3", "On the clock")
    yield tag(
        "p",
        f"The plan's graphs, op by op: {part} takes {human_s(found.step_s)}, of which the device waits "
        f"{human_s(found.waited_s)}. The plan's own figure counts on gathers of parameters and reductions of gradients running "
        "beside the computation as far as it lasts; the clock keeps the order in which the graphs send and wait. The height "
        "of a bar says how much of that moment is used.",
    )
    there = {kind for usage in found.usage for s in usage.slices for kind in s.seconds}
    kinds = [(style, words) for style, words in KINDS.items() if style.removeprefix("k-") in there]
    yield swatches([*kinds, *((axis_class(i), f"link {name}") for i, name in enumerate(plan.mesh.names))])
    yield whole(plan, found)
    for window in found.close:
        took = human_s(window.end_s - window.start_s)
        yield tag("h4", "Close up: ", window.title, tag("small", f"{took}, from {human_s(window.start_s)} on"))
        yield drawn(plan, window)


def whole(plan: Plan, found: Tracks) -> Markup:
    """The step in slices, each as high as it is used."""
    rows = [
        lane(plan, usage.name, share(usage.busy_s, found.step_s), slices(plan, usage, found.step_s), class_="tall")
        for usage in found.usage
    ]
    return tag("figure", rows, axis(time_ticks(found.step_s)), class_="timeline", aria_label="timeline of the whole step")


def slices(plan: Plan, usage: Usage, step_s: float) -> Iterator[Markup]:
    count = len(usage.slices)
    width_s = step_s / count
    for place, found in enumerate(usage.slices):
        below = 0.0
        parts = [(kind, found.seconds[kind]) for kind in STACKED if kind in found.seconds] or list(found.seconds.items())
        busy = ", ".join(f"{LABELS.get(kind, 'busy')} {share(s, width_s)}" for kind, s in parts)
        for kind, seconds in parts:
            height = min(percent(seconds, width_s), 100 - below)
            below += height
            yield tag(
                "rect",
                tag("title", f"{human_s(place * width_s)}: {busy}, in {found.where}"),
                x=f"{100 * place / count:.3f}%",
                width=f"{100 / count + 0.02:.3f}%",
                y=f"{100 - below:.2f}%",
                height=f"{height:.2f}%",
                class_=colour(plan, usage.name, kind),
            )


def colour(plan: Plan, track: str, kind: str) -> str:
    return f"k-{kind}" if track == COMPUTE else axis_class(plan.mesh.names.index(track))


def axis(places: list[tuple[float, str]]) -> Markup:
    return tag("div", (tag("span", text, style=f"left:{p}%") for p, text in places), class_="xticks", aria_hidden="true")


def lane(plan: Plan, track: str, busy: str, shapes: Iterable[Markup], class_: str = "") -> Markup:
    name = "device" if track == COMPUTE else f"link {track}"
    svg = tag("svg", shapes, role="img", aria_label=f"{name}: busy {busy}")
    return tag("div", tag("span", name, tag("small", f"busy {busy}"), class_="what"), svg, class_=f"lane {class_}".strip())


def drawn(plan: Plan, window: Window) -> Markup:
    whole_s = window.end_s - window.start_s
    rows = [
        lane(plan, track.name, share(track.busy_s, whole_s), (bar(plan, track, b, window) for b in track.blocks))
        for track in window.tracks
    ]
    ticks = axis(time_ticks(window.end_s, window.start_s))
    return tag("figure", rows, ticks, class_="timeline", aria_label=f"timeline of {window.title}")


def bar(plan: Plan, track: Track, block: Block, window: Window) -> Markup:
    whole_s = window.end_s - window.start_s
    return tag(
        "rect",
        tag("title", block.text),
        x=f"{percent(block.start_s - window.start_s, whole_s)}%",
        width=f"{percent(block.end_s - block.start_s, whole_s)}%",
        y=0,
        height="100%",
        class_=colour(plan, track.name, block.kind),
    )
