"""What a plan says must agree with itself: looked at on load, before anything else is believed. No program is needed.

Each check yields `(field, reason)` for what is wrong. Figures are held against the program's own graphs later
(`codegen/hold.py`), and decisions against its units (`codegen/accept.py`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from autopar.ir.conversion import COLLECTIVES, Conversion, in_mesh_order
from autopar.ir.optimizer import STATE_COPIES
from autopar.ir.placement import INVARIANT, Placement

if TYPE_CHECKING:
    from autopar.ir.plan import Plan, PlannedClass, PlannedConversion, PlannedRegion

Wrong = Iterator[tuple[str, str]]
TOLERANCE = 1e-6
"""Relative, for sums of floats that went through a file."""

STATUSES = ("optimal", "feasible")
MOST = 1e30
"""No figure of a plan is as large."""


def contradictions(plan: Plan) -> Wrong:
    """Everything in a plan that contradicts something else in it, or that no plan can say."""
    yield from head(plan)
    yield from figures(plan)
    yield from tensors(plan)
    for name, region in plan.regions.items():
        yield from of_region(plan, f"regions.{name}", region)


def head(plan: Plan) -> Wrong:
    if plan.optimizer not in STATE_COPIES:
        yield "optimizer", f"{plan.optimizer!r} is none of {', '.join(STATE_COPIES)}"
    if plan.status not in STATUSES:
        yield "status", f"{plan.status!r} is none of {', '.join(STATUSES)}"
    if plan.micro_batches < 1:
        yield "micro_batches", f"{plan.micro_batches} is not at least 1"
    numbers = {name: getattr(plan, name) for name in ("step_time_s", "lower_bound_s", "gap", "peak_bytes")}
    yield from negative(numbers.items())
    yield from negative((f"bucket_bytes.{axis}", size) for axis, size in plan.bucket_bytes.items())
    for axis in set(plan.bucket_bytes) - set(plan.mesh.names):
        yield f"bucket_bytes.{axis}", f"{axis!r} is no axis of the mesh ({', '.join(plan.mesh.names)})"
    if plan.lower_bound_s > plan.step_time_s * (1 + TOLERANCE):
        yield "lower_bound_s", f"{plan.lower_bound_s} is above step_time_s, {plan.step_time_s}"
    elif not close(plan.gap, distance(plan.step_time_s, plan.lower_bound_s), 1.0):
        yield "gap", f"{plan.gap} is not the relative distance of step_time_s and lower_bound_s"
    if plan.budget_bytes is not None and plan.peak_bytes > plan.budget_bytes + 1:
        yield "peak_bytes", f"{plan.peak_bytes:.0f} is above budget_bytes, {plan.budget_bytes}"


def distance(step_s: float, bound_s: float) -> float:
    return (step_s - bound_s) / step_s if step_s > 0 else 0.0


def figures(plan: Plan) -> Wrong:
    figures, names = plan.figures, plan.mesh.names
    yield from negative((f"figures.{n}", getattr(figures, n)) for n in ("forward_flops", "backward_flops", "redone_flops"))
    yield from negative((f"figures.memory_bytes.{name}", size) for name, size in figures.memory_bytes.items())
    for what, parts, whole, named in (
        ("memory_bytes", figures.memory_bytes, figures.estimated_peak_bytes, "figures.estimated_peak_bytes"),
        ("time_s", figures.time_s, plan.step_time_s, "step_time_s"),
    ):
        if not close(total := sum(parts.values()), whole, whole):
            yield f"figures.{what}", f"its parts add up to {total}, {named} is {whole}"
    for i, collective in enumerate(figures.collectives):
        where = f"figures.collectives.{i}"
        yield from negative(((f"{where}.count", collective.count), (f"{where}.bytes", collective.bytes)))
        if collective.kind not in COLLECTIVES:
            yield f"{where}.kind", f"{collective.kind!r} is none of {', '.join(COLLECTIVES)}"
        if collective.axis not in names:
            yield f"{where}.axis", f"{collective.axis!r} is no axis of the mesh ({', '.join(names)})"
    yield from repeated("figures.collectives", ((c.kind, c.axis, c.phase) for c in figures.collectives))


def tensors(plan: Plan) -> Wrong:
    """Inputs, state and boundaries rest whole or cut, never as partial sums; inputs evenly, state unevenly in dim 0 at most."""
    for what, planned, ragged in (("inputs", plan.inputs, ()), ("state", plan.state, (0,))):
        for name, tensor in planned.items():
            yield from resting(plan, f"{what}.{name}.placement", tensor.placement)
            if not tensor.placement.fits(tensor.shape, plan.mesh.sizes, ragged):
                yield f"{what}.{name}.placement", f"[{tensor.placement}] does not divide {list(tensor.shape)}"
    for name, placement in plan.boundaries.items():
        yield from resting(plan, f"boundaries.{name}", placement)
    for name, tensor in plan.inputs.items():
        if (other := plan.boundaries.get(name)) != tensor.placement:
            yield f"inputs.{name}.placement", f"[{tensor.placement}] is not what boundaries.{name} says, [{other}]"


def resting(plan: Plan, field: str, placement: Placement) -> Wrong:
    yield from fits_mesh(plan, field, placement)
    if {s for s in placement.states if not isinstance(s, int)} - {INVARIANT}:
        yield field, f"[{placement}]: a tensor rests as S or I on every axis"


def fits_mesh(plan: Plan, field: str, placement: Placement) -> Wrong:
    if len(placement.states) != len(plan.mesh):
        yield field, f"[{placement}] is not for the {len(plan.mesh)} axes of mesh {plan.mesh}"
    elif not in_mesh_order(placement):
        yield field, f"[{placement}]: axes that cut one dim nest in mesh order"


def of_region(plan: Plan, where: str, region: PlannedRegion) -> Wrong:
    axes = len(plan.mesh)
    for name, unit in region.units.items():
        if len(unit.factors) != axes:
            yield f"{where}.units.{name}.factors", f"{list(unit.factors)} is not for the {axes} axes of mesh {plan.mesh}"
        if [f is None for f in unit.factors] != [r is None for r in unit.roles]:
            yield f"{where}.units.{name}.roles", f"{list(unit.roles)} does not go with the factors {list(unit.factors)}"
    yield from conversions(plan, f"{where}.converted", region.converted)
    yield from repeated(f"{where}.converted", ((c.tensor, c.after) for c in region.converted))
    for i, keep in enumerate(region.classes):
        yield from of_class(f"{where}.classes.{i}", region, keep)


def conversions(plan: Plan, where: str, found: Iterable[PlannedConversion]) -> Wrong:
    for i, conversion in enumerate(found):
        for end in ("before", "after"):
            yield from fits_mesh(plan, f"{where}.{i}.{end}", getattr(conversion, end))
        try:
            Conversion(conversion.before, conversion.after)
        except ValueError as error:
            yield f"{where}.{i}", f"{conversion.tensor}: {error}"


def of_class(where: str, region: PlannedRegion, keep: PlannedClass) -> Wrong:
    if keep.calls < 1:
        yield f"{where}.calls", f"{keep.calls} is not at least 1"
    for what in ("kept_internals", "redone"):
        for name in getattr(keep, what):
            if name not in region.units:
                yield f"{where}.{what}", f"the region has no unit {name}"
    for conversion in keep.reconverted:
        if conversion not in region.converted:
            moves = f"{conversion.tensor} [{conversion.before}] -> [{conversion.after}]"
            yield f"{where}.reconverted", f"{moves} runs again, but never ran: it is not among converted"
    for what in ("kept", "kept_internals", "redone", "reconverted"):
        yield from repeated(f"{where}.{what}", getattr(keep, what))


def negative(numbers: Iterable[tuple[str, float]]) -> Wrong:
    for field, number in numbers:
        if not 0 <= number < MOST:
            yield field, f"{number} is no such figure"


def repeated(field: str, things: Iterable[object]) -> Wrong:
    for thing, times in Counter(things).items():
        if times > 1:
            yield field, f"{thing} stands there {times} times"


def close(one: float, other: float, scale: float) -> bool:
    return math.isclose(one, other, rel_tol=0.0, abs_tol=TOLERANCE * max(abs(scale), 1e-12))
