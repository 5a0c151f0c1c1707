"""What two plans say differently: settings, figures, where state and values rest, what each unit of a layer type does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from autopar.ir.placement import Placement
from autopar.ir.plan import Plan
from autopar.ir.region_view import pattern, region_rows

Value = str | int | float
Part = Literal["setting", "figures", "state at rest", "between layers", "layers"]
Figures = dict[str, tuple[Value, str]]
"""By name, with the unit."""
NOTHING_S = 1e-12
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True, kw_only=True)
class Change:
    """One thing that two plans say differently: `name` in `part` of them. None: the plan has nothing of that name.

    `unit` of numbers: "s", "bytes", "flops" or "" (a count). `times`: how many tensors of equal layers changed so.
    """

    part: Part
    name: str
    before: Value | None
    after: Value | None
    unit: str = ""
    times: int = 1


def changes(before: Plan, after: Plan) -> list[Change]:
    """In the order of PARTS; of layers in that of the model. Empty if the plans decide and predict the same."""
    found: list[Change] = []
    groups: tuple[tuple[Part, Callable[[Plan], Figures]], ...] = (
        ("setting", settings),
        ("figures", step_time),
        ("figures", work),
        ("figures", sent),
    )
    for part, group in groups:
        one, other = group(before), group(after)
        for name in dict.fromkeys((*one, *other)):
            (a, unit), (b, _) = one.get(name) or (None, other[name][1]), other.get(name) or (None, "")
            if a != b:
                found.append(Change(part=part, name=name, before=a, after=b, unit=unit))
    state = moved("state at rest", *({name: t.placement for name, t in p.state.items()} for p in (before, after)))
    between = moved("between layers", before.boundaries, after.boundaries)
    return [*found, *state, *between, *layers(before, after)]


def settings(plan: Plan) -> Figures:
    """What the search was asked for."""
    asked: dict[str, Value | None] = {
        "model": plan.model,
        "program": plan.fingerprint[:12],
        "mesh": f"{plan.mesh} ({', '.join(plan.mesh.names)})",
        "links": ", ".join(link or "by nodes" for link in plan.mesh.links) or None,
        "hardware": plan.hardware,
        "cost model": plan.cost_model,
        "optimizer": plan.optimizer,
        "micro-batches": plan.micro_batches,
        "precision": None if plan.precision is None else str(plan.precision),
        "constraints": "; ".join(plan.constraints.lines()) or None,
    }
    sizes = {"budget": plan.budget_bytes} | {f"buckets on {axis}": size for axis, size in plan.bucket_bytes.items()}
    found: Figures = {name: (value, "") for name, value in asked.items() if value is not None}
    return found | {name: (size, "bytes") for name, size in sizes.items() if size is not None}


def step_time(plan: Plan) -> Figures:
    """And its parts; those that are nothing but rounding are left out."""
    parts = {f"  {name}": seconds for name, seconds in plan.figures.time_s.items() if abs(seconds) > NOTHING_S}
    return {name: (seconds, "s") for name, seconds in ({"step time": plan.step_time_s} | parts).items()}


def work(plan: Plan) -> Figures:
    """Per device."""
    figures = plan.figures
    return {
        "lower bound": (plan.lower_bound_s, "s"),
        "peak": (plan.peak_bytes, "bytes"),
        "peak in": (plan.peak_where, ""),
        "forward FLOPs": (figures.forward_flops, "flops"),
        "backward FLOPs": (figures.backward_flops, "flops"),
        "redone FLOPs": (figures.redone_flops, "flops"),
    }


def sent(plan: Plan) -> Figures:
    """Bytes of each collective, and how often it runs."""
    found: Figures = {}
    for c in plan.figures.collectives:
        found[f"{c.kind} on {c.axis}, {c.phase}"] = c.bytes, "bytes"
        found[f"{c.kind} on {c.axis}, {c.phase}, times"] = c.count, ""
    return found


def moved(part: Part, before: Mapping[str, Placement], after: Mapping[str, Placement]) -> Iterator[Change]:
    """Tensors whose placement differs; those of equal layers that change alike are one."""
    found: dict[tuple[str, str | None, str | None], list[str]] = {}
    for name in dict.fromkeys((*before, *after)):
        a, b = (str(places[name]) if name in places else None for places in (before, after))
        if a != b:
            found.setdefault((pattern(name), a, b), []).append(name)
    for (alike, a, b), names in found.items():
        yield Change(part=part, name=alike if len(names) > 1 else names[0], before=a, after=b, times=len(names))


def layers(before: Plan, after: Plan) -> Iterator[Change]:
    """Units, and the tensors below them that are converted or kept, as `autopar show` words them."""
    for region in dict.fromkeys((*before.regions, *after.regions)):
        one, other = (said(p, region) if region in p.regions else {} for p in (before, after))
        for name in dict.fromkeys((*one, *other)):
            if one.get(name) != other.get(name):
                yield Change(part="layers", name=f"{region}: {name}", before=one.get(name), after=other.get(name))


def said(plan: Plan, region: str) -> Mapping[str, str]:
    """By unit, or unit and tensor: what it does on each axis, conversions, and what backward keeps or makes again."""
    found: dict[str, str] = {}
    classes, rows = region_rows(plan, region)
    unit = ""
    for row in rows:
        below = row.name.startswith("  ")
        unit = unit if below else row.name
        marks = [
            f"{mark}{f' in {calls}' if len(classes) > 1 else ''}"
            for calls, mark in zip(classes, row.marks, strict=True)
            if mark
        ]
        axes = ", ".join(f"{axis} {text}" for axis, text in zip(plan.mesh.names, row.axes, strict=True) if text)
        parts = (axes, *row.conversions, *(mark.replace("\n", ", ") for mark in marks))
        found[f"{unit}{row.name.replace('  ', ' ', 1)}" if below else unit] = "; ".join(filter(None, parts))
    return found
