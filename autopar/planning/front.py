"""Step time against memory: the best plans under budgets from the smallest that works to the largest that is of use.

The two ends come first: the plan that is fastest whatever it needs, and the fastest of those that need least. Then, as often
as points are asked for, a budget halfway between two neighbours, where the difference of their times is largest. A plan found
under a budget is the best for every budget down to its own peak, so nothing between those is searched; and a budget that
gives nothing faster than its left neighbour moves that border up. Every search begins at its left neighbour.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from autopar.bytes import human
from autopar.errors import InputError, SolverError
from autopar.ir.mesh import MeshSpec
from autopar.ir.pareto import Pareto
from autopar.ir.plan import Plan
from autopar.planning.planner import Planner, realise
from autopar.solver.problem import Solution
from autopar.solver.smallest import Clock, smallest

logger = logging.getLogger("autopar")

NARROW = 5e-3
"""Budgets that differ by less than this share of the larger are not told apart."""

FOR_THE_SMALLEST = 0.3
"""Of the time limit, what the search for the smallest budget may take."""


@dataclass(kw_only=True)
class Point:
    """A solution that is the best for all budgets from its peak to `up_to_bytes`, as far as is known."""

    solution: Solution
    up_to_bytes: float


class FrontSearch:
    """Fills a front point by point."""

    def __init__(
        self, planner: Planner, mesh: MeshSpec, *, points: int, budget_bytes: float | None, time_limit_s: float
    ) -> None:
        if isinstance(points, bool) or not isinstance(points, int) or points < 2:
            raise InputError(f"a front of {points!r} points: give a whole number, at least 2")
        self.planner, self.mesh, self.wanted, self.budget_bytes = planner, mesh, points, budget_bytes
        self.clock, self.complete = Clock(time_limit_s), False
        self.points: list[Point] = []

    def run(self) -> Pareto:
        """Raises BudgetError if nothing fits the budget, UnshardableError, ConstraintError, SolverError."""
        self.ends()
        while len(self.points) < self.wanted and self.clock.left_s and (pair := self.widest()):
            self.between(*pair)
        notes = () if self.clock.left_s else (f"time limit: {len(self.points)} of {self.wanted} points were looked for",)
        return self.realised(notes)

    def ends(self) -> None:
        """The fastest plan within the budget, and the fastest of the smallest ones."""
        self.tell("the fastest plan")
        limit_s = max(self.clock.limit_s / self.wanted, 1.0)
        fastest = self.planner.find(self.mesh, self.budget_bytes, incumbents=(), time_limit_s=limit_s).solution
        self.tell("the smallest budget that works")
        priced = self.planner.priced(self.mesh)
        limit_s = max(FOR_THE_SMALLEST * self.clock.left_s, 1.0)
        least = smallest(priced.problem, allow=priced.wanted.allow, time_limit_s=limit_s, start=fastest)
        self.complete = least.proven
        lowest = self.solve(least.bytes, (least.solution,))
        self.points = [Point(solution=lowest, up_to_bytes=least.bytes)]
        if self.faster(fastest, lowest):
            self.points.append(Point(solution=fastest, up_to_bytes=max(self.budget_bytes or 0.0, fastest.peak_bytes)))

    def solve(self, budget_bytes: float | None, incumbents: Sequence[Solution]) -> Solution:
        problem = replace(self.planner.priced(self.mesh).problem, budget_bytes=budget_bytes)
        limit_s = max(min(self.clock.left_s, self.clock.limit_s / self.wanted), 1.0)
        return self.planner.cheapest(self.mesh, problem, limit_s, incumbents)

    def faster(self, one: Solution, other: Solution) -> bool:
        """By more than what the solver leaves open."""
        return one.cost_s < other.cost_s * (1 - self.planner.aims.gap)

    def widest(self) -> tuple[Point, Point] | None:
        """The neighbours with the largest difference in time, among those between which budgets are left."""
        pairs = [
            (a, b)
            for a, b in pairwise(self.points)
            if self.faster(b.solution, a.solution) and b.solution.peak_bytes - a.up_to_bytes > NARROW * b.solution.peak_bytes
        ]
        return max(pairs, key=lambda pair: pair[0].solution.cost_s - pair[1].solution.cost_s, default=None)

    def between(self, left: Point, right: Point) -> None:
        """The best plan halfway between what is known for the left one and what the right one needs."""
        budget = (left.up_to_bytes + right.solution.peak_bytes) / 2
        self.tell(f"the best plan within {human(budget)}")
        try:
            found = self.solve(budget, (left.solution,))
        except SolverError as error:
            logger.info("front at %s: %s", human(budget), error)
            left.up_to_bytes = right.solution.peak_bytes
            return
        if self.faster(found, left.solution):
            self.points.insert(self.points.index(right), Point(solution=found, up_to_bytes=budget))
        else:
            left.up_to_bytes = budget

    def realised(self, notes: tuple[str, ...]) -> Pareto:
        """The plans, with what their emitted graphs need where that is more than predicted; dominated ones are left out."""
        priced = self.planner.priced(self.mesh)
        plans: list[Plan] = []
        for number, point in enumerate(self.points, 1):
            self.tell(f"emitting and counting plan {number} of {len(self.points)}")
            problem = replace(priced.problem, budget_bytes=point.up_to_bytes)
            found = realise(priced.builder, problem, point.solution)
            plan = self.planner.finished(found, point.up_to_bytes, priced.wanted.notes).plan
            if (counted := found.counted.peak_bytes) > point.up_to_bytes:
                note = f"searched under {human(point.up_to_bytes)}: its emitted graphs need {human(counted)}"
                plan = plan.model_copy(update={"budget_bytes": counted, "notes": (*plan.notes, note)})
            while plans and plans[-1].peak_bytes >= plan.peak_bytes:
                plans.pop()
            if not plans or plan.step_time_s < plans[-1].step_time_s:
                plans.append(plan)
        return Pareto(plans=tuple(plans), complete=self.complete, notes=notes)

    def tell(self, stage: str) -> None:
        found = f"{len(self.points)} of {self.wanted} points" if self.points else "front"
        self.planner.progress(f"{found}: {stage}")
