"""The known ways to save activation memory, written down directly: what backward finds kept, and what it makes again.

No solver is asked: from strategies and conversions that are already chosen, a `Policy` follows what backward reads. A value
is kept where the policy makes neither its unit nor its conversion run again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from autopar.ir.placement import Placement
from autopar.solver.check import check, reads
from autopar.solver.problem import Arc, ClassChoice, Problem, Region, RegionChoice, Solution, Unit
from autopar.solver.rounding import always_there

Place = tuple[str, Placement]
Step = tuple[str, Placement, Placement]

DEAR_KINDS = frozenset({"matmul", "attention", "embedding", "loss"})
"""Units that a selective checkpoint does not run twice."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What backward makes again.

    `redo`: "none"; "cheap": norms, softmax and other pointwise work of repeated regions; "attention": that, and all products
    without parameters; "all": all that a repeated region's backward reads, from its inputs. `communicate`: whether
    conversions of activations in repeated regions run again too, as Megatron's sequence-parallel gathers do. `reshard`:
    whether gathered parameters are dropped after forward: never (ZeRO-2), in repeated regions only, or always (ZeRO-3).
    """

    redo: str = "none"
    communicate: bool = False
    reshard: str = "never"

    def redoes(self, region: Region, unit: Unit) -> bool:
        if self.redo == "none" or not unit.redoable or not is_repeated(region):
            return False
        if self.redo == "all" or unit.kind not in DEAR_KINDS:
            return True
        return self.redo == "attention" and unit.kind in ("matmul", "attention") and not set(unit.operands) & set(region.state)

    def reconverts(self, region: Region, tensor: str) -> bool:
        if tensor in region.state:
            return self.reshard == "always" or (self.reshard == "repeated" and is_repeated(region))
        return self.communicate and is_repeated(region)


def is_repeated(region: Region) -> bool:
    """Whether it stands for several layers: what people wrap in a checkpoint."""
    return sum(region.classes) > 1


def checkpointed(problem: Problem, solution: Solution, policy: Policy) -> Solution:
    """The solution's strategies and conversions, with what the policy keeps and redoes; figures by the checker."""
    return with_choices(problem, solution, choices_of(problem, solution, policy))


def choices_of(problem: Problem, solution: Solution, policy: Policy) -> dict[str, ClassChoice]:
    """What each region's calls keep and make again under the policy."""
    return {r.name: follow(problem, r, solution.regions[r.name], solution, policy) for r in problem.regions}


def with_choices(problem: Problem, solution: Solution, choices: Mapping[str, ClassChoice]) -> Solution:
    """The solution with these choices for all classes of calls, at the checker's figures."""
    regions = {
        region.name: replace(solution.regions[region.name], classes=(choices[region.name],) * len(region.classes))
        for region in problem.regions
    }
    found = replace(solution, regions=regions, bound_s=0.0, status="feasible", notes=())
    verdict = check(problem, found, claims=False, budget=False)
    return replace(found, cost_s=verdict.cost_s, peak_bytes=verdict.peak_bytes)


def follow(problem: Problem, region: Region, choice: RegionChoice, solution: Solution, policy: Policy) -> ClassChoice:
    """What one call keeps and makes again under the policy."""
    chosen = {unit.name: unit.strategies[choice.strategies[unit.name]] for unit in region.units}
    makers = {name: unit for unit in region.units for name in unit.results}
    ways: dict[Place, Step] = {(step[0], step[2]): step for step in choice.converted}
    free = always_there(problem, region, solution)
    kept, again, redone = set[Place](), set[Step](), set[str]()
    todo = [place for unit in region.units for place in reads(unit, chosen[unit.name])]

    def redo(unit: Unit) -> None:
        if unit.name not in redone:
            redone.add(unit.name)
            todo.extend(zip(unit.operands, chosen[unit.name].operands, strict=True))

    for unit in region.units:
        if chosen[unit.name].saved_bytes and policy.redoes(region, unit):
            redo(unit)
    seen: set[Place] = set()
    while todo:
        place = todo.pop()
        if place in seen or place in free:
            continue
        seen.add(place)
        step, maker = ways.get(place), makers.get(place[0])
        if step is None and maker is not None and policy.redoes(region, maker):
            redo(maker)
        elif step is not None and policy.reconverts(region, place[0]):
            again.add(step)
            todo.append((place[0], step[1]))
        else:
            kept.add(place)
    again |= for_nothing(region, kept, seen | free, ways)
    return ClassChoice(
        kept=frozenset(kept - {(step[0], step[2]) for step in again}),
        kept_internals=frozenset(name for name, s in chosen.items() if s.saved_bytes and name not in redone),
        redone=frozenset(redone),
        reconverted=frozenset(again),
    )


def for_nothing(region: Region, kept: Collection[Place], there: Collection[Place], ways: Mapping[Place, Step]) -> set[Step]:
    """Conversions that take no time and start from what is there anyway: their results need not be kept."""
    found = set()
    for place in kept:
        step = ways.get(place)
        if step is not None and (step[0], step[1]) in there and arc(region, step).forward_s == 0.0:
            found.add(step)
    return found


def arc(region: Region, step: Step) -> Arc:
    return next(a for a in region.tensors[step[0]].arcs if (a.before, a.after) == step[1:])
