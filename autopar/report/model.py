"""The model as nested, foldable lists: modules, in them ops with their placements, and on the way to and from an op what is
converted."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from autopar.bytes import human
from autopar.ir.conversion import Conversion
from autopar.ir.placement import Placement
from autopar.ir.region_view import PARTIAL_FACTOR, dims_text
from autopar.report.anatomy import EdgeFacts
from autopar.report.evidence import Evidence
from autopar.report.html import Markup, panel, tag
from autopar.report.legend import axis_class, legend, placement_chip
from autopar.report.scale import percent, share
from autopar.report.tree import Edge, Marks, Module, Op, tree
from autopar.seconds import human_s

OPEN = 120
"""Models with more rows than this begin folded, below their layers."""

MARKS = {
    "keep": ("kept", "its result is kept for backward"),
    "inside": ("kept inside", "what it saves for itself is kept for backward"),
    "redo": ("again", "backward computes it again"),
    "again": ("again", "backward converts it again"),
}


def model_panel(evidence: Evidence) -> Markup:
    found = tree(evidence.plan, evidence.inside.anatomy if evidence.inside else None)
    drawn = _Drawing(evidence, found)
    lead = (
        "Modules fold. An op says what each mesh axis cuts of it, and where its result lies. Below it stand what enters "
        "it and what leaves it, where that is a parameter or changes its placement: each arrow is a conversion."
    )
    names = evidence.plan.mesh.names
    tools = tag(
        "p",
        tag("button", "Unfold all", data_fold="open"),
        tag("button", "Fold all", data_fold="shut"),
        class_="tools",
        hidden=True,
    )
    marks = tag(
        "ul",
        (tag("li", mark_pill("", key), " ", words) for key, (_, words) in MARKS.items() if key != "again"),
        class_="legend",
    )
    head = tag(
        "div",
        tag("span", "module and op", class_="name"),
        *(tag("span", name, class_="use") for name in names),
        tag("span", "result", class_="result"),
        tag("span", "for backward", class_="marks"),
        tag("span", "compute", class_="time") if evidence.inside else None,
        class_="row head",
        aria_hidden="true",
    )
    body = tag("div", head, drawn.module(found, 0), class_="tree", style=f"--axes:{len(names)}")
    return panel("model", "Model", legend(names), marks, tools, body, lead=lead)


class _Drawing:
    def __init__(self, evidence: Evidence, root: Module) -> None:
        self.names = evidence.plan.mesh.names
        self.total_s = root.seconds
        self.timed = evidence.inside is not None
        self.all_open = root.ops <= OPEN

    def module(self, module: Module, depth: int) -> Markup:
        """A module of one op is that op."""
        if len(module.parts) == 1 and isinstance(only := module.parts[0], Op):
            return self.op(only, module.name)
        times = tag("span", f"× {module.calls}", class_="calls") if module.calls > 1 and "*" in module.name else None
        ops = f"{module.ops} op{'s' * (module.ops > 1)}"
        name = tag("span", tag("b", module.name), times, " ", tag("small", ops), class_="name")
        head = tag("summary", name, self.time(module.seconds), class_="row")
        return tag(
            "details",
            head,
            tag("div", self.parts(module, depth), class_="inner"),
            class_="module",
            open=self.all_open or depth < 2,
        )

    def parts(self, module: Module, depth: int) -> Iterable[Markup]:
        """Runs of several small ops that nothing is done to are folded."""
        for minor, run in groupby(module.parts, key=lambda part: isinstance(part, Op) and part.minor):
            found = list(run)
            rows = [self.op(p, None) if isinstance(p, Op) else self.module(p, depth + 1) for p in found]
            if minor and len(found) > 2:
                said = tag("summary", tag("span", f"{len(found)} small ops, not cut", class_="name"), class_="row")
                yield tag("details", said, tag("div", rows, class_="inner"), class_="module minor")
            else:
                yield from rows

    def op(self, op: Op, module: str | None) -> Markup:
        names = [tag("b", module), " ", op.name] if module else [op.name]
        source = tag("small", op.facts.source) if op.facts and op.facts.source else None
        again_s = op.facts.again_s if op.facts else 0.0
        row = tag(
            "div",
            tag("span", names, " ", source, class_="name"),
            (self.use(axis, f, r) for axis, (f, r) in enumerate(zip(op.unit.factors, op.unit.roles, strict=True))),
            tag("span", placement_chip(op.result, self.names) if op.result else None, class_="result"),
            tag("span", mark_pills(op.marks), class_="marks"),
            self.time(op.seconds, again_s),
            class_="row",
        )
        into = (self.edge(edge, "in") for edge in op.before)
        out = (self.edge(edge, "out") for edge in op.after)
        return tag("div", row, into, out, class_="op")

    def use(self, axis: int, factor: str | None, role: str | None) -> Markup:
        """What an axis cuts of an op."""
        name = self.names[axis]
        if factor is None:
            return tag("span", tag("span", "whole", class_="chip none"), class_="use", data_axis=name)
        if factor == PARTIAL_FACTOR:
            words, style = "partial sums", "state-P"
        else:
            words, style = role or factor, axis_class(axis)
        told = f"{name} cuts {words} (index {factor})" if factor != PARTIAL_FACTOR else f"partial sums over {name} pass through"
        return tag("span", tag("span", words, class_=f"chip {style}", title=told), class_="use", data_axis=name)

    def time(self, seconds: float, again_s: float = 0.0) -> Markup | None:
        if not self.timed:
            return None
        told = f"{human_s(seconds)} of computation in a step, all calls together" + (
            f", {human_s(again_s)} of it again in backward" if again_s else ""
        )
        bar = tag("span", tag("span", "", style=f"width:{percent(seconds, self.total_s)}%"), class_="bar")
        return tag("span", bar, tag("span", share(seconds, self.total_s), class_="number"), class_="time", title=told)

    def edge(self, edge: Edge, way: str) -> Markup:
        start = placement_chip(edge.start, self.names) if edge.start else None
        steps = [[self.step(step, facts), placement_chip(step.after, self.names)] for step, facts in edge.steps]
        to = tag("small", f"to {', '.join(edge.readers)}") if way == "out" and edge.readers else None
        name = tag("span", edge.tensor if way == "in" else "result", class_="tensor", title=edge.tensor)
        return tag("div", name, start, steps, mark_pills(edge.marks, edge.end), to, class_=f"edge {way}")

    def step(self, step: Conversion, facts: EdgeFacts) -> Markup:
        """An arrow with what runs on it."""
        forward, backward = step.kind.forward, step.kind.backward
        told = f"[{step.before}] to [{step.after}]: forward {forward or 'sends nothing'}, backward {backward or 'nothing'}"
        if facts.seconds:
            told += f"; {human(facts.bytes)} and {human_s(facts.seconds)} on the link in a step, all calls together"
        label = f"{step.kind.name.replace('_', ' ')} {self.names[step.axis]}{dims_text(step)}"
        sent = human(facts.bytes) if facts.bytes else None
        return tag(
            "span",
            tag("span", label, class_="label"),
            tag("span", sent, class_="sent") if sent else None,
            class_=f"arrow {axis_class(step.axis)}{'' if forward or backward else ' free'}",
            title=told,
        )


def mark_pills(marks: Marks, end: Placement | None = None) -> list[Markup]:
    return [mark_pill(calls, word, end) for calls, text in marks for word in text.split("\n")]


def mark_pill(calls: str, text: str, end: Placement | None = None) -> Markup:
    """`text` as in tables: "keep R,R" says at which placement, which goes without saying if it is the one at the `end`."""
    key, _, placement = text.partition(" ")
    word, meaning = MARKS.get(key, (text, text))
    there = "" if end is not None and placement == str(end).replace(", ", ",") else placement
    told = ", ".join(filter(None, (f"{meaning}{f' at [{placement}]' if placement else ''}", calls)))
    return tag("span", f"{word} {there}".strip(), tag("small", calls) if calls else None, class_=f"pill {key}", title=told)
