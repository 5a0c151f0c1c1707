"""Find the cheapest plan that fits: from the easiest question to the hardest, and only as far as needed.

1. Without memory. If the answer fits with everything kept, it is the best there is.
2. Its strategies, with a choice of what to keep: if that costs nothing more, it is the best there is.
3. The relaxation: a bound, and by its reduced costs a small neighbourhood (see `nearby`) where a good plan is found fast.
4. All that could still be better, only if bound and plan are still apart by more than the gap.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from autopar.errors import BudgetError, SolverError
from autopar.solver import adapter
from autopar.solver.check import InvalidSolution, check
from autopar.solver.model import build
from autopar.solver.nearby import Root, relax, search_near
from autopar.solver.problem import Problem, Solution
from autopar.solver.restriction import FREE, Restriction, fix
from autopar.solver.rounding import arcs_of, judged, to_solution, to_start
from autopar.solver.smallest import Clock, human_bytes, smallest
from autopar.solver.space import Arcs, Space, narrow

SCALE = 1000.0
"""What budget and cost are scaled to, so that absolute tolerances of 1e-6 and below mean parts per billion."""


LOG = logging.getLogger("autopar.solver")


@dataclass
class Hunt:
    """The best plan and the best bound so far; `lowest` is the plan with the lowest peak, whether it fits or not."""

    problem: Problem
    gap: float
    clock: Clock
    best: Solution | None = None
    lowest: Solution | None = None
    bound_s: float = 0.0
    notes: list[str] = field(default_factory=list)

    def offer(self, solution: Solution) -> None:
        """Take the solution if it fits and is cheaper."""
        budget = self.problem.budget_bytes
        fits = budget is None or solution.peak_bytes <= budget
        if self.lowest is None or solution.peak_bytes < self.lowest.peak_bytes:
            self.lowest = solution
        LOG.debug("a plan of %g s, %g bytes%s", solution.cost_s, solution.peak_bytes, "" if fits else " (too large)")
        if fits and (self.best is None or solution.cost_s < self.best.cost_s):
            self.best = solution

    def raise_bound(self, bound_s: float) -> None:
        self.bound_s = max(self.bound_s, bound_s)
        LOG.debug("no plan takes less than %g s", self.bound_s)

    @property
    def apart_s(self) -> float:
        """How much better than the best plan another could be."""
        return self.best.cost_s - self.bound_s if self.best else math.inf

    @property
    def closed(self) -> bool:
        return self.best is not None and self.apart_s <= self.gap * self.best.cost_s

    def finish(self) -> Solution:
        """The best plan, checked."""
        assert self.best is not None
        final = replace(
            self.best,
            bound_s=min(self.bound_s, self.best.cost_s),
            status="optimal" if self.closed else "feasible",
            seconds=self.clock.spent_s,
            notes=tuple(self.notes),
        )
        check(self.problem, final)
        return final


def solve(
    problem: Problem,
    *,
    gap: float = 1e-3,
    time_limit_s: float = 60,
    allow: Restriction | None = None,
    incumbents: Sequence[Solution] = (),
) -> Solution:
    """The cheapest solution within a relative `gap`, never worse than the best incumbent that fits; checked.

    Its status is "optimal" if the gap is proven, else "feasible" (time limit). Raises BudgetError if nothing fits the
    budget, SolverError if the restriction leaves nothing or the time limit passes before anything is found.
    """
    hunt = Hunt(problem, gap, Clock(time_limit_s))
    for incumbent in admissible(problem, incumbents, allow or FREE):
        hunt.offer(incumbent)
    space = narrow(problem, allow or FREE)
    loose = without_memory(space, gap / 2, hunt.clock)
    if loose is None:
        return _out_of_time(hunt, space)
    hunt.bound_s = loose.bound_s
    hunt.offer(loose)
    if not hunt.closed and problem.budget_bytes is not None:
        _fit(hunt, space, loose)
    return hunt.finish() if hunt.best else _out_of_time(hunt, space)


def admissible(problem: Problem, incumbents: Iterable[Solution], allow: Restriction) -> list[Solution]:
    """The incumbents that are valid here and allowed, with their true figures."""
    found = []
    for incumbent in incumbents:
        try:
            solution = judged(problem, incumbent)
        except InvalidSolution:
            continue
        if allow.admits(problem, solution):
            found.append(solution)
    return found


def without_memory(space: Space, gap: float, clock: Clock) -> Solution | None:
    """The cheapest plan whatever it needs, keeping all that backward reads, with its bound; None if none in time."""
    model = build(space, memory=False, second=SCALE / _typical_s(space.problem))
    outcome = adapter.run(model.ilp, gap=gap, time_limit_s=clock.left_s)
    if outcome.status == "infeasible":
        raise SolverError("no choice of strategies connects all units; the restriction allows too little")
    if outcome.values is None:
        return None
    return replace(to_solution(model, outcome.values), bound_s=max(outcome.bound / model.second, 0.0))


def _typical_s(problem: Problem) -> float:
    """A cost to scale by: each unit at its fastest."""
    fastest = sum(
        sum(region.classes) * min(s.forward_s + s.backward_s for s in unit.strategies)
        for region in problem.regions
        for unit in region.units
    )
    longest = max((s.forward_s + s.backward_s for r in problem.regions for u in r.units for s in u.strategies), default=0.0)
    return fastest or longest or 1.0


NEAR = (0.0, 1.0, 8.0)
"""Distances from the relaxation at which to look first, as multiples of the wanted gap."""


def _fit(hunt: Hunt, space: Space, loose: Solution) -> None:
    """Steps 2 to 4."""
    scales = {"byte": SCALE / (hunt.problem.budget_bytes or 1.0), "second": SCALE / (loose.cost_s or 1.0)}
    repair(hunt, space, loose, scales, arcs_of(space, loose))
    if hunt.closed:
        return
    root = relax(build(space, memory=True, byte=scales["byte"], second=scales["second"]), hunt.clock.left_s)
    if root.infeasible and hunt.best is None:
        return _raise_budget(hunt, space)
    hunt.raise_bound(root.bound_s)
    for multiple in NEAR:
        distance_s = multiple * hunt.gap * root.bound_s
        if root.solved and not hunt.closed and distance_s < hunt.apart_s and hunt.clock.left_s:
            _near(hunt, root, distance_s, 0.3 * hunt.clock.left_s)
    if hunt.best is None and hunt.clock.left_s:
        enough = hunt.problem.budget_bytes or 0.0
        limit_s = 0.6 * hunt.clock.left_s
        least = smallest(hunt.problem, allow=space.allow, time_limit_s=limit_s, start=loose, enough_bytes=enough)
        hunt.offer(least.solution)
    if not hunt.closed and hunt.clock.left_s:
        _exact(hunt, space, root)


def repair(hunt: Hunt, space: Space, draft: Solution, scales: dict[str, float], arcs: Arcs) -> None:
    """Offer the best plan with the draft's strategies and only these conversions, if there is one."""
    tight = narrow(hunt.problem, fix(draft, space.allow), arcs)
    model = build(tight, memory=True, byte=scales["byte"], second=scales["second"])
    outcome = adapter.run(model.ilp, gap=hunt.gap / 4, time_limit_s=min(hunt.clock.left_s, 0.3 * hunt.clock.limit_s))
    if outcome.values is not None:
        hunt.offer(to_solution(model, outcome.values))


def _near(hunt: Hunt, root: Root, distance_s: float, time_limit_s: float) -> None:
    outcome = search_near(root, distance_s, gap=hunt.gap / 8, time_limit_s=time_limit_s, start=hunt.best)
    hunt.raise_bound(outcome.bound / root.model.second)
    if outcome.values is not None:
        hunt.offer(to_solution(root.model, outcome.values))


def _exact(hunt: Hunt, space: Space, root: Root) -> None:
    """All that could still be better than the best plan."""
    if root.solved and hunt.best:
        return _near(hunt, root, hunt.best.cost_s - root.bound_s, hunt.clock.left_s)
    start = to_start(root.model, hunt.best) if hunt.best else None
    outcome = adapter.run(root.model.ilp, gap=hunt.gap, time_limit_s=hunt.clock.left_s, start=start)
    if outcome.status == "infeasible" and hunt.best is None:
        return _raise_budget(hunt, space)
    hunt.raise_bound(outcome.bound / root.model.second)
    if outcome.values is not None:
        hunt.offer(to_solution(root.model, outcome.values))


LEAST_S = 6.0
"""What the search for the smallest budget may take even if no time is left: an error that names none helps nobody."""


def _raise_budget(hunt: Hunt, space: Space) -> None:
    """BudgetError with what would fit; unless the tightest plan fits after all, within the solver's tolerance."""
    budget = hunt.problem.budget_bytes
    assert budget is not None
    least = smallest(
        hunt.problem, allow=space.allow, time_limit_s=max(hunt.clock.left_s, LEAST_S), start=hunt.lowest, enough_bytes=budget
    )
    hunt.offer(least.solution)
    if hunt.best:
        return
    if least.bound_bytes <= budget and not least.proven:
        doubt = f" (found in the time given; less than {human_bytes(least.bound_bytes)} is impossible)"
    else:
        doubt = ""
    raise BudgetError(
        f"no plan fits {human_bytes(budget)} per device: the smallest budget that works is {human_bytes(least.bytes)} "
        f"({least.bytes} bytes){doubt}. At its peak, in {least.where}, the largest are "
        + ", ".join(f"{name}: {human_bytes(size)}" for name, size in least.binding)
        + ". Give more memory, a larger mesh, or a smaller batch or sequence.",
        smallest_bytes=least.bytes,
        binding=least.binding,
    )


def _out_of_time(hunt: Hunt, space: Space) -> Solution:
    """No plan yet and no time left: the one that needs least memory, if it fits."""
    if hunt.best is None and hunt.problem.budget_bytes is not None:
        _raise_budget(hunt, space)
    if hunt.best is None:
        raise SolverError(f"found no plan within {hunt.clock.limit_s:g} s: allow more time, or a coarser mesh")
    hunt.notes.append("time limit: no better plan was found")
    return hunt.finish()
