"""One traced program, planned under as many settings as are asked for; what they share is computed once.

trace -> measure (once) -> price (once per mesh) -> solve -> emit -> count. The emitted graphs are counted before a plan is
returned: the budget is theirs, not that of the solver's estimate (see `within`).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property

from autopar.codegen.emit import emit
from autopar.codegen.hold import differences
from autopar.codegen.measure import Counted
from autopar.codegen.measure import measure as count
from autopar.errors import InputError, PlanError, SolverError, UnshardableError
from autopar.hardware import Hardware
from autopar.ir.constraints import NO_CONSTRAINTS, Constraints
from autopar.ir.mesh import MeshSpec
from autopar.ir.optimizer import STATE_COPIES
from autopar.ir.placement import Placement
from autopar.ir.plan import Plan, PlannedCollective
from autopar.ir.program import Program
from autopar.ops.strategies import PASS_PARTIAL
from autopar.ops.units import unknown_draws
from autopar.planning.within import Found, Within
from autopar.profiler.model_cost import ModelCost, measure
from autopar.seconds import human_s
from autopar.solver.baselines import incumbents as known_plans
from autopar.solver.build import Builder, Setting
from autopar.solver.constraints import Wanted, blame, wanted
from autopar.solver.model import build
from autopar.solver.nearby import relax
from autopar.solver.problem import Problem, Solution
from autopar.solver.resting import resting
from autopar.solver.scale import scale_of
from autopar.solver.search import Incumbents, admissible, solve
from autopar.solver.space import narrow
from autopar.solver.to_plan import to_plan

logger = logging.getLogger("autopar")
Progress = Callable[[str], None]
MeshKey = tuple[MeshSpec, tuple[str | None, ...]]
"""A mesh and its links: meshes that differ in links only compare equal."""

ANY_GAP = 1.0
"""For what needs only some plan, found without regard to memory."""


def silent(stage: str) -> None:
    """Progress that nobody follows."""


@dataclass(frozen=True, kw_only=True)
class Aims:
    """What all settings have in common: the hardware, the optimizer, the user's constraints, and when a plan is good enough.

    `time_limit_s` is for one search of the solver, `gap` the relative distance from the optimum at which it may stop.
    `resting`: parameters that are on the devices already, and stay where they are.
    """

    hardware: Hardware
    optimizer: str = "adamw"
    time_limit_s: float = 60.0
    gap: float = 1e-3
    overlap: bool = True
    constraints: Constraints = NO_CONSTRAINTS
    resting: Mapping[str, Placement] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.optimizer not in STATE_COPIES:
            raise InputError(f"unknown optimizer {self.optimizer!r}: use one of {', '.join(sorted(STATE_COPIES))}")


@dataclass(frozen=True, kw_only=True)
class Priced:
    """The program on one mesh: every choice with its seconds and bytes, and which the user allows. `problem` has no budget."""

    builder: Builder
    problem: Problem
    wanted: Wanted


class Planner:
    """Plans of one program. What was measured and priced is kept for the next setting.

    `micro_batches`: the program is one of so many of a training step; times are of the whole step.
    """

    def __init__(self, program: Program, aims: Aims, *, micro_batches: int = 1, progress: Progress = silent) -> None:
        self.program, self.aims, self.micro_batches, self.progress = program, aims, micro_batches, progress
        self._priced: dict[MeshKey, Priced] = {}
        self._loosest: dict[MeshKey, tuple[float, Solution]] = {}
        self._unwanted: dict[MeshKey, Priced] = {}
        """Priced by another planner, under other constraints."""
        self._pricing_s: dict[MeshKey, float] = {}
        self.measuring_s = 0.0
        if places := unknown_draws(program):
            logger.warning("%s draws random numbers by %s: it can be planned, but not run", program.name, places[0])

    @cached_property
    def cost(self) -> ModelCost:
        self.progress("profiling")
        began_s = time.monotonic()
        measured = measure(self.program)
        self.measuring_s = time.monotonic() - began_s
        return measured

    def with_aims(self, aims: Aims) -> Planner:
        """Another one for the same program, which is not measured again."""
        other = Planner(self.program, aims, micro_batches=self.micro_batches, progress=self.progress)
        other.cost = self.cost
        return other

    def priced(self, mesh: MeshSpec) -> Priced:
        """Raises UnshardableError if an axis divides nothing, ConstraintError if the constraints do not fit."""
        key = (mesh, mesh.links)
        if key not in self._priced:
            cost, began_s = self.cost, time.monotonic()
            if (known := self._unwanted.get(key)) is not None:
                builder, problem = known.builder, known.problem
            else:
                self.progress("pricing strategies and conversions")
                builder = Builder(cost, self.setting(mesh))
                problem = builder.problem()
                require_shardable(problem, mesh, self.program)
            self._priced[key] = Priced(builder=builder, problem=problem, wanted=self.wanted(builder, problem))
            self._pricing_s[key] = time.monotonic() - began_s
        return self._priced[key]

    def under(self, constraints: Constraints) -> Planner:
        """Another one under other constraints; what was measured and priced is taken over."""
        other = self.with_aims(replace(self.aims, constraints=constraints))
        other._unwanted = {**self._unwanted, **self._priced}
        return other

    def wanted(self, builder: Builder, problem: Problem) -> Wanted:
        """What the constraints leave, and parameters that stay where they are."""
        allowed = wanted(self.aims.constraints, builder, problem)
        if self.aims.resting:
            allowed = replace(allowed, allow=allowed.allow & resting(builder, self.aims.resting))
        return allowed

    def loosest(self, mesh: MeshSpec, time_limit_s: float | None = None, gap: float | None = None) -> Solution:
        """The best plan if memory were free, with its bound: no plan on this mesh takes less, whatever its budget.

        Searched once, and once more for a smaller `gap` than before.
        """
        key, gap = (mesh, mesh.links), self.aims.gap if gap is None else gap
        searched, known = self._loosest.get(key, (math.inf, None))
        if known is None or gap < min(searched, known.gap):
            priced = self.priced(mesh)
            limit_s, begin = self.limit_s(time_limit_s), [known] if known else ()
            known = self.solve(priced, priced.problem, limit_s, begin, gap, "solving without a budget")
            self._loosest[key] = gap, known
        return known

    def may_fit(self, mesh: MeshSpec, budget_bytes: float | None, time_limit_s: float | None = None) -> bool:
        """False only if the relaxation proves that nothing fits the budget: quicker than finding what would."""
        if budget_bytes is None:
            return True
        return self.relaxed_s(mesh, budget_bytes, time_limit_s) < math.inf

    def relaxed_s(self, mesh: MeshSpec, budget_bytes: float, time_limit_s: float | None = None) -> float:
        """Seconds that no plan within a budget of the solver goes below; infinite if there is none."""
        loose = self.loosest(mesh, time_limit_s, ANY_GAP)
        if loose.peak_bytes <= budget_bytes:
            return loose.bound_s
        priced = self.priced(mesh)
        space = narrow(replace(priced.problem, budget_bytes=budget_bytes), priced.wanted.allow)
        model = build(space, memory=True, scale=scale_of(size=budget_bytes, cost_s=loose.cost_s))
        root = relax(model, self.limit_s(time_limit_s))
        return math.inf if root.infeasible else max(root.bound_s, loose.bound_s)

    def limit_s(self, time_limit_s: float | None) -> float:
        return self.aims.time_limit_s if time_limit_s is None else time_limit_s

    def pricing_s(self, mesh: MeshSpec) -> float:
        """How long pricing took, so that one may know what it would take again."""
        self.priced(mesh)
        return self._pricing_s[mesh, mesh.links]

    def setting(self, mesh: MeshSpec) -> Setting:
        aims = self.aims
        return Setting(
            mesh=mesh,
            hardware=aims.hardware,
            optimizer=aims.optimizer,
            overlap=aims.overlap,
            micro_batches=self.micro_batches,
            resting=aims.resting,
        )

    def find(
        self,
        mesh: MeshSpec,
        budget_bytes: float | None = None,
        *,
        incumbents: Sequence[Solution] | None = None,
        time_limit_s: float | None = None,
    ) -> Found:
        """The best plan within the budget; the search begins at `incumbents`, by default the known ways to parallelize.

        Raises UnshardableError, BudgetError, ConstraintError, SolverError.
        """
        priced, limit_s = self.priced(mesh), self.limit_s(time_limit_s)

        def solve(budget: float | None, known: Sequence[Solution] | None) -> Solution:
            return self.cheapest(mesh, replace(priced.problem, budget_bytes=budget), limit_s, known)

        def realised(budget: float | None, solution: Solution) -> Found:
            self.progress("emitting and counting")
            return realise(priced.builder, replace(priced.problem, budget_bytes=budget), solution)

        if budget_bytes is None:
            return self.finished(realised(None, solve(None, incumbents)), None, priced.wanted.notes)
        within = Within(
            budget_bytes=budget_bytes,
            gap=self.aims.gap,
            limit_s=limit_s,
            solve=solve,
            realise=realised,
            others=lambda: self.others(mesh),
        )
        found = within.search(incumbents)
        notes = within.notes if len(within.notes) > 1 else ()
        return self.finished(found, budget_bytes, (*priced.wanted.notes, *notes))

    def others(self, mesh: MeshSpec) -> list[Solution]:
        """The plan that is best without a budget, and the known ways to parallelize."""
        priced = self.priced(mesh)
        return admissible(priced.problem, [self.loosest(mesh), *known_plans(priced.problem)], priced.wanted.allow)

    def cheapest(
        self,
        mesh: MeshSpec,
        problem: Problem,
        time_limit_s: float,
        incumbents: Sequence[Solution] | None,
        gap: float | None = None,
    ) -> Solution:
        """The best solution under the problem's budget: the one without a budget, if that is known, and fits."""
        if problem.budget_bytes is None or (mesh, mesh.links) in self._loosest:
            with suppress(SolverError):
                loose = self.loosest(mesh, time_limit_s, gap)
                if problem.budget_bytes is None or loose.peak_bytes <= problem.budget_bytes:
                    return loose

        def known() -> Sequence[Solution]:
            self.progress("solving for the known ways to parallelize")
            return known_plans(problem)

        return self.solve(self.priced(mesh), problem, time_limit_s, known if incumbents is None else incumbents, gap)

    def solve(
        self,
        priced: Priced,
        problem: Problem,
        time_limit_s: float,
        incumbents: Incumbents,
        gap: float | None = None,
        stage: str = "solving",
    ) -> Solution:
        """The best solution that the constraints allow; raises ConstraintError if no choice is left."""
        allow, gap = priced.wanted.allow, self.aims.gap if gap is None else gap
        said = stage
        self.progress(said)

        def watch(best_s: float | None, bound_s: float) -> None:
            nonlocal said
            said = f"{stage} ({so_far(best_s, bound_s)})"
            self.progress(said)

        def looked_for() -> Sequence[Solution]:
            found = incumbents() if callable(incumbents) else incumbents
            self.progress(said)
            return found

        begin = looked_for if callable(incumbents) else incumbents
        try:
            return solve(problem, gap=gap, time_limit_s=time_limit_s, allow=allow, incumbents=begin, watch=watch)
        except SolverError as error:
            raise blame(self.aims.constraints, priced.builder, problem) or error from error

    def finished(self, found: Found, budget_bytes: float | None, notes: tuple[str, ...]) -> Found:
        """Under the budget that was asked for, whatever it was tightened to, and with the constraints."""
        budget = None if budget_bytes is None else int(budget_bytes)
        notes = (*found.plan.notes, *notes, *self.program.assumptions)
        changes = {"budget_bytes": budget, "notes": notes, "constraints": self.aims.constraints}
        plan = found.plan.model_copy(update=changes)
        return replace(found, plan=plan, emitted=replace(found.emitted, plan=plan))


def so_far(best_s: float | None, bound_s: float) -> str:
    """What a search has found and proven, in words.

    >>> so_far(0.0121, 0.0119), so_far(None, 0.0119), so_far(0.0121, 0.0)
    ('12.1 ms found, at least 11.9 ms, gap 1.7 %', 'at least 11.9 ms', '12.1 ms found')
    """
    found = [] if best_s is None else [f"{human_s(best_s)} found"]
    proven = [f"at least {human_s(bound_s)}"] if bound_s > 0 else []
    apart = [f"gap {max(1 - bound_s / best_s, 0):.1%}".replace("%", " %")] if best_s and bound_s > 0 else []
    return ", ".join(found + proven + apart)


def realise(builder: Builder, problem: Problem, solution: Solution) -> Found:
    """The plan of a solution, after its graphs have shown what of it really runs again in backward."""
    try:
        emitted = emit(builder.program, to_plan(builder, problem, solution))
    except PlanError as error:
        raise AssertionError(f"a plan of our own making is refused: {error}") from error
    again = {name: tuple((h.redone, h.reconverted) for h in region.classes) for name, region in emitted.regions.items()}
    counted = count(emitted)
    plan = settled(to_plan(builder, problem, solution, again), counted)
    wrong = next(differences(plan.model_copy(update={"budget_bytes": None}), counted), None)
    assert wrong is None, f"a plan of our own making has wrong figures: {wrong}"
    return Found(plan=plan, solution=solution, emitted=replace(emitted, plan=plan), counted=counted)


def settled(plan: Plan, counted: Counted) -> Plan:
    """With what only the graphs can tell: the peak, and how much of the units that run again does so, which may be a part."""
    figures = plan.figures
    changes = {"redone_flops": min(figures.redone_flops, counted.redone_flops)}
    there = {(c.kind, c.axis, c.phase): c for c in counted.collectives}
    backward = (there.get((c.kind, c.axis, c.phase)) for c in figures.collectives if c.phase == "backward")
    fewer = {(c.kind, c.axis): c for c in backward if c is not None}
    collectives = tuple(
        least(c, fewer.get((c.kind, c.axis))) for c in figures.collectives if c.phase == "forward" or (c.kind, c.axis) in fewer
    )
    figures = figures.model_copy(update={**changes, "collectives": collectives})
    peak = {"peak_bytes": float(counted.peak_bytes), "peak_where": counted.peak_where}
    return plan.model_copy(update={"figures": figures, **peak})


def least(planned: PlannedCollective, counted: PlannedCollective | None) -> PlannedCollective:
    """What was counted in backward where it is less than planned."""
    less = planned.phase == "backward" and counted is not None and counted.bytes < planned.bytes
    return counted if less and counted is not None else planned


def require_shardable(problem: Problem, mesh: MeshSpec, program: Program) -> None:
    """Raise UnshardableError if some axis divides no factor of any unit: every device would do the same work."""
    for axis, (name, size) in enumerate(zip(mesh.names, mesh.sizes, strict=True)):
        factors = {s.factors[axis] for r in problem.regions for u in r.units for s in u.strategies}
        if size > 1 and factors <= {None, PASS_PARTIAL}:
            sizes = sorted({int(n) for value in program.values.values() for n in value.shape if n != 1}, reverse=True)
            raise UnshardableError(
                f"axis {name} of mesh {mesh} has {size} devices, and no dim of {program.name} "
                f"(sizes {sizes[:6]}) divides by {size}: "
                "use a smaller axis, or pad batch, sequence or hidden size to a multiple of it"
            )
