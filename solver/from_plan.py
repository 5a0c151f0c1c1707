"""From a plan back to the solution that it is of a priced problem: what a plan decides, judged and varied again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autopar.errors import PlanError
from autopar.ir.plan import Plan, PlannedClass, PlannedRegion
from autopar.solver.build import Builder
from autopar.solver.check import InvalidSolution, check
from autopar.solver.problem import ClassChoice, Problem, Region, RegionChoice, Solution


def to_solution(builder: Builder, problem: Problem, plan: Plan) -> Solution:
    """The decisions of an accepted plan, at the checker's figures; raises PlanError where the problem has no such choice.

    Its peak is the solver's estimate, from above: that of the graphs is in the plan.
    """
    found = Solution(
        regions={region.name: chosen(region, plan.regions[region.name]) for region in problem.regions},
        boundaries={boundary: plan.boundaries[value] for value, boundary in builder.boundary_of.items()},
        rest={group: plan.state[name].placement for name, group in builder.group_of.items()},
        cost_s=0.0,
        peak_bytes=0.0,
        bound_s=0.0,
        status=plan.status,
        notes=plan.notes,
    )
    try:
        verdict = check(problem, found, claims=False, budget=False)
    except InvalidSolution as error:
        raise refused("regions", f"it is no choice of the solver's here ({error})") from error
    bound_s = min(plan.lower_bound_s, verdict.cost_s)
    return replace(found, cost_s=verdict.cost_s, peak_bytes=verdict.peak_bytes, bound_s=bound_s)


def refused(field: str, reason: str) -> PlanError:
    return PlanError(f"the plan's field {field}: {reason}. Make it again with `autopar plan`")


def chosen(region: Region, planned: PlannedRegion) -> RegionChoice:
    strategies = {}
    for unit in region.units:
        factors = planned.units[unit.name].factors
        index = next((i for i, s in enumerate(unit.strategies) if s.factors == factors), None)
        if index is None:
            raise refused(f"regions.{region.name}.units.{unit.name}.factors", f"{list(factors)} is no strategy of it here")
        strategies[unit.name] = index
    return RegionChoice(
        strategies=strategies,
        converted=frozenset((c.tensor, c.before, c.after) for c in planned.converted),
        classes=tuple(map(class_choice, classes(region, planned))),
    )


def classes(region: Region, planned: PlannedRegion) -> Sequence[PlannedClass]:
    """One for each class of the problem; raises PlanError if the plan's differ where the problem has one."""
    calls = [keep for keep in planned.classes for _ in range(keep.calls)]
    found, start = [], 0
    for size in region.classes:
        own = calls[start : start + size]
        if any(keep is not own[0] and class_choice(keep) != class_choice(own[0]) for keep in own):
            raise refused(f"regions.{region.name}.classes", f"calls {start} to {start + size - 1} keep the same here")
        found.append(own[0])
        start += size
    return found


def class_choice(planned: PlannedClass) -> ClassChoice:
    return ClassChoice(
        kept=frozenset((k.tensor, k.placement) for k in planned.kept),
        kept_internals=frozenset(planned.kept_internals),
        redone=frozenset(planned.redone),
        reconverted=frozenset((c.tensor, c.before, c.after) for c in planned.reconverted),
    )
