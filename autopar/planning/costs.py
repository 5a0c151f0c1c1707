"""Where a plan's step time goes: units, conversions and what backward makes again, by layer type."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from autopar.ir.conversion import Conversion
from autopar.ir.region_view import factor_text, path_text
from autopar.planning.question import Question
from autopar.solver.problem import Region, RegionChoice
from autopar.solver.to_plan import arc_of


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What something takes in a step, all calls and micro-batches together, if nothing ran beside it.

    `what`: "unit" (kernels and collectives inside it, forward and backward), "conversion" or "again" (in backward). `of`: the
    unit, or the tensor that is converted; `does` says how.
    """

    region: str
    what: Literal["unit", "conversion", "again"]
    of: str
    does: str
    calls: int
    seconds: float


def costs(question: Question) -> list[Cost]:
    """Dearest first; what takes no time is left out."""
    found = [
        cost
        for region in question.problem.regions
        for cost in region_costs(question, region, question.decided.regions[region.name])
    ]
    return sorted((cost for cost in found if cost.seconds > 0), key=lambda cost: -cost.seconds)


def region_costs(question: Question, region: Region, choice: RegionChoice) -> Iterator[Cost]:
    axes, times = question.plan.mesh.names, question.problem.micro_batches
    calls = sum(region.classes)
    for unit in region.units:
        strategy = unit.strategies[choice.strategies[unit.name]]
        does = ", ".join(on_axis for on_axis in map(on, strategy.factors, strategy.roles or strategy.factors, axes) if on_axis)
        seconds = strategy.forward_s + strategy.backward_s
        yield Cost(region=region.name, what="unit", of=unit.name, does=does, calls=calls, seconds=times * calls * seconds)
        again = sum(n for n, keep in zip(region.classes, choice.classes, strict=True) if unit.name in keep.redone)
        yield Cost(
            region=region.name, what="again", of=unit.name, does=does, calls=again, seconds=times * again * strategy.forward_s
        )
    for step in sorted(choice.converted, key=str):
        arc = arc_of(question.problem, region.name, step)
        does = path_text([Conversion(arc.before, arc.after)], axes)
        seconds = arc.forward_s + arc.backward_s
        yield Cost(region=region.name, what="conversion", of=step[0], does=does, calls=calls, seconds=times * calls * seconds)
        again = sum(n for n, keep in zip(region.classes, choice.classes, strict=True) if step in keep.reconverted)
        yield Cost(region=region.name, what="again", of=step[0], does=does, calls=again, seconds=times * again * arc.forward_s)


def on(factor: str | None, role: str | None, axis: str) -> str:
    """`tensor k on gpu`; "" where nothing is cut."""
    return f"{factor_text(factor, role)} on {axis}" if factor else ""
