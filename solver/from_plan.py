"""From a plan back to the solution that it is of a priced problem: what a plan decides, judged and varied again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autopar.errors import PlanError
from autopar.ir.plan import Plan, PlannedClass, PlannedRegion
from autopar.solver.build import Builder
from autopar.solver.check import InvalidSolution, check, reads, step_s
from autopar.solver.problem import ClassChoice, Problem, Region, RegionChoice, Solution
from autopar.solver.rounding import always_there


def as_planned(builder: Builder, problem: Problem, plan: Plan) -> Solution:
    """The decisions of an accepted plan and what they cost; raises PlanError where the problem has no such choice.

    What backward finds because it shares memory with something kept is not made again here, as in the plan's graphs. So this
    may be no solution in the checker's eyes, to which every tensor has memory of its own; see `to_solution`.
    """
    found = Solution(
        regions={region.name: chosen(region, plan.regions[region.name]) for region in problem.regions},
        boundaries={boundary: plan.boundaries[value] for value, boundary in builder.boundary_of.items()},
        rest={group: plan.state[name].placement for name, group in builder.group_of.items()},
        cost_s=0.0,
        peak_bytes=plan.figures.estimated_peak_bytes,
        bound_s=0.0,
        status=plan.status,
        notes=plan.notes,
    )
    try:
        cost_s = step_s(problem, found)
    except InvalidSolution as error:
        raise refused("regions", f"it is no choice of the solver's here ({error})") from error
    return replace(found, cost_s=cost_s, bound_s=min(plan.lower_bound_s, cost_s))


def to_solution(builder: Builder, problem: Problem, plan: Plan) -> Solution:
    """The solution that a plan came from, at the checker's figures: of its decisions, and all that runs again by them.

    Its peak is the solver's estimate, from above: that of the graphs is in the plan. Raises PlanError as `as_planned` does.
    """
    found = as_planned(builder, problem, plan)
    regions = {region.name: completed(problem, region, found) for region in problem.regions}
    found = replace(found, regions=regions)
    try:
        verdict = check(problem, found, claims=False, budget=False)
    except InvalidSolution as error:
        raise refused("regions", f"it is no choice of the solver's here ({error})") from error
    return replace(found, cost_s=verdict.cost_s, peak_bytes=verdict.peak_bytes)


def completed(problem: Problem, region: Region, solution: Solution) -> RegionChoice:
    """The region's choice, making again whatever backward lacks if no tensor shares memory with another."""
    choice = solution.regions[region.name]
    units = {unit.name: unit.strategies[choice.strategies[unit.name]] for unit in region.units}
    makers = {name: unit for unit in region.units for name in unit.results}
    ways = {(step[0], step[2]): step for step in choice.converted}
    free = always_there(problem, region, solution)

    def whole(keep: ClassChoice) -> ClassChoice:
        redone = set(keep.redone)
        redone |= {u.name for u in region.units if units[u.name].saved_bytes and u.name not in keep.kept_internals}
        again, there = set(keep.reconverted), set(keep.kept) | free
        todo = [place for unit in region.units for place in reads(unit, units[unit.name])]
        todo += [(tensor, before) for tensor, before, _ in again]
        todo += [place for name in redone for place in zip(region.unit[name].operands, units[name].operands, strict=True)]
        while todo:
            place = todo.pop()
            if place in there:
                continue
            there.add(place)
            if (step := ways.get(place)) is not None:
                again.add(step)
                todo.append((place[0], step[1]))
            elif (maker := makers.get(place[0])) is not None and maker.name not in redone:
                redone.add(maker.name)
                todo += zip(maker.operands, units[maker.name].operands, strict=True)
        return replace(keep, redone=frozenset(redone), reconverted=frozenset(again))

    return replace(choice, classes=tuple(map(whole, choice.classes)))


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
