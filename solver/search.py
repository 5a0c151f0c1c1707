"""Find the cheapest plan that fits: from the easiest question to the hardest, and only as far as needed.

1. Without memory. If the answer fits with everything kept, it is the best there is.
2. Its strategies, with a choice of what to keep: if that costs nothing more, it is the best there is.
3. The coarse relaxation, with memory, over all choices that could still be better by the first question's reduced costs: a
   bound that is close. By its reduced costs, good plans are found among few choices (see `nearby`).
4. All choices that are left, only if bound and plan are still apart by more than the gap.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from autopar.errors import BudgetError, SolverError
from autopar.solver import adapter
from autopar.solver.check import TOLERANCE, InvalidSolution, check
from autopar.solver.model import build
from autopar.solver.nearby import Root, relax, search_near, within
from autopar.solver.problem import Problem, Solution
from autopar.solver.restriction import FREE, Restriction, fix
from autopar.solver.rounding import arcs_of, draft_of, judged, to_solution, to_start
from autopar.solver.scale import Scale, ample_bytes, scale_of, typical_s
from autopar.solver.smallest import Clock, Smallest, human_bytes, smallest
from autopar.solver.space import Arcs, Space, narrow

NEAR = (0.0, 1.0, 8.0)
"""Distances from the relaxation at which to look first, as multiples of the wanted gap."""

LOG = logging.getLogger("autopar.solver")

Incumbents = Sequence[Solution] | Callable[[], Sequence[Solution]]
"""Known plans, or how to find some."""

Watch = Callable[[float | None, float], None]
"""Told the seconds of the best plan so far (None: there is none yet), and the seconds that none goes below, as they change."""


def nobody(best_s: float | None, bound_s: float) -> None:
    """A search that nobody watches."""


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
    watch: Watch = nobody

    def offer(self, solution: Solution) -> None:
        """Take the solution if it fits and is cheaper."""
        budget = self.problem.budget_bytes
        fits = budget is None or solution.peak_bytes <= budget * (1 + TOLERANCE)
        if self.lowest is None or solution.peak_bytes < self.lowest.peak_bytes:
            self.lowest = solution
        LOG.debug("a plan of %g s, %g bytes%s", solution.cost_s, solution.peak_bytes, "" if fits else " (too large)")
        if fits and (self.best is None or solution.cost_s < self.best.cost_s):
            self.best = solution
            self.watch(solution.cost_s, self.bound_s)

    def offer_all(self, solutions: Iterable[Solution]) -> None:
        for solution in solutions:
            self.offer(solution)

    def raise_bound(self, bound_s: float) -> None:
        if bound_s > self.bound_s:
            self.bound_s = bound_s
            self.watch(self.best.cost_s if self.best else None, bound_s)
        LOG.debug("no plan takes less than %g s", self.bound_s)

    def reached(self, limit_s: float) -> bool:
        """Whether a plan is known that costs no more."""
        return self.best is not None and self.best.cost_s <= limit_s * (1 + TOLERANCE)

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
    incumbents: Incumbents = (),
    watch: Watch = nobody,
) -> Solution:
    """The cheapest solution within a relative `gap`, never worse than the best incumbent that fits; checked.

    Incumbents that have yet to be found are asked for only if the plan that is best without memory does not settle it.
    What is found and proven on the way is told to `watch`, from within the search: it must return soon.

    Its status is "optimal" if the gap is proven, else "feasible" (time limit). Raises BudgetError if nothing fits the
    budget, SolverError if the restriction leaves nothing or the time limit passes before anything is found.
    """
    allow = allow or FREE
    if allow.forbids_keeping and problem.budget_bytes is None:
        problem = replace(problem, budget_bytes=ample_bytes(problem))
    hunt = Hunt(problem, gap, Clock(time_limit_s), watch=watch)
    if not callable(incumbents):
        hunt.offer_all(admissible(problem, incumbents, allow))
    space = narrow(problem, allow)
    floor = relax(build(space, memory=False, scale=scale_of(cost_s=typical_s(problem))), hunt.clock.left_s)
    hunt.raise_bound(floor.bound_s)
    loose = without_memory(floor, 0.9 * gap, hunt.clock)
    if loose is not None:
        hunt.raise_bound(loose.bound_s)
        hunt.offer_all([loose] if allow.admits(problem, loose) else [])
    if callable(incumbents) and not hunt.closed:
        hunt.offer_all(admissible(problem, incumbents(), allow))
    if loose is None:
        return _out_of_time(hunt, space)
    if not hunt.closed and problem.budget_bytes is not None:
        _fit(hunt, space, floor, loose)
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


def without_memory(root: Root, gap: float, clock: Clock) -> Solution | None:
    """The cheapest plan whatever it needs, keeping all that backward reads, with its bound; None if none in time.

    One that is too large for the budget only starts the search for others: it is not improved to the last.
    """
    if root.infeasible:
        raise SolverError("no choice of strategies connects all units; the restriction allows too little")
    budget = root.model.space.problem.budget_bytes or math.inf
    best = _rounded(root, gap, clock)
    bound_s = root.bound_s
    if best is not None and root.solved and best.cost_s - bound_s <= gap * best.cost_s:
        return replace(best, bound_s=bound_s)
    for multiple in NEAR if root.solved else ():
        outcome = search_near(root, multiple * gap * root.bound_s, gap=0.99 * gap, time_limit_s=clock.left_s, start=best)
        bound_s = max(bound_s, root.model.seconds(outcome.bound))
        if outcome.values is not None:
            found = to_solution(root.model, outcome.values)
            best = found if best is None or found.cost_s < best.cost_s else best
        if best is not None and (best.cost_s - bound_s <= gap * best.cost_s or best.peak_bytes > budget):
            return replace(best, bound_s=bound_s)
    outcome = adapter.run(root.model.ilp, gap=gap, time_limit_s=clock.left_s)
    bound_s = max(bound_s, root.model.seconds(outcome.bound))
    if outcome.values is not None:
        found = to_solution(root.model, outcome.values)
        best = found if best is None or found.cost_s < best.cost_s else best
    return None if best is None else replace(best, bound_s=bound_s)


def _rounded(root: Root, gap: float, clock: Clock) -> Solution | None:
    """The cheapest plan with the strategies that are largest in the relaxation, if they go together."""
    if not root.solved:
        return None
    space = root.model.space
    with suppress(SolverError):
        draft = draft_of(root.model, root.relaxation.values or ())
        cheap = within(root, gap * root.bound_s)
        tight = narrow(space.problem, fix(draft, space.allow), (cheap or space).arcs)
        model = build(tight, memory=False, scale=Scale(second=root.model.second))
        outcome = adapter.run(model.ilp, gap=1e-6, time_limit_s=clock.left_s)
        if outcome.values is not None:
            return to_solution(model, outcome.values)
    return None


NEAR_NODES = 200
"""Branch-and-bound nodes after which a search of the neighbourhood gives way to a wider one. Counted in nodes and not in
seconds, so that a slower machine finds the same plan."""
BEYOND = (0.2, math.inf)
"""How much dearer than without memory a plan may be, relatively, as long as none is known that fits."""
SLACKS = (0.003, 0.02, 0.2, math.inf)
"""How much dearer than the coarse bound a plan may be, relatively: good ones are found fastest among few choices."""


def _fit(hunt: Hunt, space: Space, floor: Root, loose: Solution) -> None:
    """Steps 2 to 4. Twice, what must cost more than a known plan is left out: by the model without memory, then by the
    coarse one, whose bound is much closer where memory binds."""
    scale = scale_of(size=hunt.problem.budget_bytes, cost_s=loose.cost_s)
    repair(hunt, space, loose, scale, arcs_of(space, loose))
    for beyond in BEYOND:
        if hunt.closed or not hunt.clock.left_s:
            return
        limit_s = _limit_s(hunt, floor, beyond)
        rough = _relaxed(hunt, floor, limit_s, scale, coarse=True)
        if rough is None:
            if hunt.best is None and math.isinf(limit_s):
                return _raise_budget(hunt, space)
            hunt.raise_bound(limit_s)
        else:
            hunt.raise_bound(min(rough.bound_s, limit_s))
            _widen(hunt, rough, limit_s, scale)
        if hunt.reached(limit_s):
            return


def _limit_s(hunt: Hunt, root: Root, beyond: float) -> float:
    """The cost of the best plan, or as much beyond the bound."""
    if hunt.best:
        return hunt.best.cost_s
    return math.inf if math.isinf(beyond) else (1 + beyond) * root.bound_s


def _relaxed(hunt: Hunt, bound: Root, limit_s: float, scale: Scale, *, coarse: bool = False) -> Root | None:
    """The relaxation over the plans that may cost at most `limit_s`; None if there is no such plan."""
    choices = within(bound, limit_s - bound.bound_s)
    if choices is None:
        return None
    model = build(choices, memory=True, coarse=coarse, scale=scale)
    root = relax(model, hunt.clock.left_s)
    return None if root.infeasible else root


def _widen(hunt: Hunt, rough: Root, beyond_s: float, scale: Scale) -> None:
    """The best plan, with its bound, of those that cost at most `beyond_s`: among more and more choices, until none that is
    left out can be better than the best plan."""
    for slack in SLACKS:
        if hunt.closed or not hunt.clock.left_s:
            return
        limit_s = min(_limit_s(hunt, rough, slack), beyond_s, rough.bound_s * (1 + slack) if rough.bound_s else math.inf)
        root = _relaxed(hunt, rough, limit_s, scale)
        if root is None:
            if hunt.best is None and math.isinf(limit_s):
                return _raise_budget(hunt, rough.model.space)
            hunt.raise_bound(limit_s)
            continue
        if not hunt.reached(limit_s):
            _explore(hunt, root, limit_s)
        if math.isinf(limit_s) or hunt.reached(limit_s):
            return _exhaust(hunt, rough.model.space, root, limit_s)
        if limit_s == beyond_s:
            return


def _explore(hunt: Hunt, root: Root, beyond_s: float) -> None:
    """Look near the relaxation; plans that the model leaves out cost at least `beyond_s`."""
    hunt.raise_bound(min(root.bound_s, beyond_s))
    if root.solved and not hunt.closed and hunt.clock.left_s:
        _near(hunt, root, 0.0, beyond_s, gap=hunt.gap / 2, nodes=NEAR_NODES)


def _exhaust(hunt: Hunt, space: Space, root: Root, beyond_s: float) -> None:
    """The last resorts: the plan with the lowest peak, if none is known; and all that could still be better."""
    if hunt.best is None and hunt.clock.left_s:
        enough = hunt.problem.budget_bytes or 0.0
        limit_s = 0.6 * hunt.clock.left_s
        least = smallest(hunt.problem, allow=space.allow, time_limit_s=limit_s, start=hunt.lowest, enough_bytes=enough)
        hunt.offer(least.solution)
    if not hunt.closed and hunt.clock.left_s:
        _exact(hunt, space, root, beyond_s)


def repair(hunt: Hunt, space: Space, draft: Solution, scale: Scale, arcs: Arcs) -> None:
    """Offer the best plan with the draft's strategies and only these conversions, if there is one."""
    tight = narrow(hunt.problem, fix(draft, space.allow), arcs)
    model = build(tight, memory=True, scale=scale)
    outcome = adapter.run(model.ilp, gap=hunt.gap / 2, time_limit_s=hunt.clock.left_s, nodes=10 * NEAR_NODES)
    if outcome.values is not None:
        hunt.offer(to_solution(model, outcome.values))


def _near(hunt: Hunt, root: Root, distance_s: float, beyond_s: float, *, gap: float, nodes: int | None = None) -> None:
    outcome = search_near(root, distance_s, gap=gap, time_limit_s=hunt.clock.left_s, nodes=nodes, start=hunt.best)
    hunt.raise_bound(min(root.model.seconds(outcome.bound), beyond_s))
    if outcome.values is not None:
        hunt.offer(to_solution(root.model, outcome.values))


def _exact(hunt: Hunt, space: Space, root: Root, beyond_s: float) -> None:
    """All that could still be better than the best plan."""
    if root.solved and hunt.best:
        return _near(hunt, root, hunt.best.cost_s - root.bound_s, beyond_s, gap=0.9 * hunt.gap)
    start = to_start(root.model, hunt.best) if hunt.best else None
    outcome = adapter.run(root.model.ilp, gap=hunt.gap, time_limit_s=hunt.clock.left_s, start=start)
    if outcome.status == "infeasible" and hunt.best is None:
        return _raise_budget(hunt, space)
    hunt.raise_bound(min(root.model.seconds(outcome.bound), beyond_s))
    if outcome.values is not None:
        hunt.offer(to_solution(root.model, outcome.values))


class NothingFits(BudgetError):
    """No plan fits by the solver's own figures; `least` is the one that needs the least of all that were found."""

    def __init__(self, budget_bytes: float, least: Smallest, smallest_bytes: int | None = None) -> None:
        """`smallest_bytes`: what this plan really needs, where that is known."""
        needed = least.bytes if smallest_bytes is None else smallest_bytes
        text = (
            f"no plan fits {human_bytes(budget_bytes)} per device: the smallest budget that works is {human_bytes(needed)} "
            f"({needed} bytes){least.doubt(budget_bytes)}. At its peak, in {least.where}, the largest are "
            + ", ".join(f"{name}: {human_bytes(size)}" for name, size in least.binding)
            + ". Give more memory, a larger mesh, or a smaller batch or sequence."
        )
        super().__init__(text, smallest_bytes=needed, binding=least.binding)
        self.least = least


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
    raise NothingFits(budget, least)


def _out_of_time(hunt: Hunt, space: Space) -> Solution:
    """No plan yet and no time left: the one that needs least memory, if it fits."""
    if hunt.best is None and hunt.problem.budget_bytes is not None:
        _raise_budget(hunt, space)
    if hunt.best is None:
        raise SolverError(f"found no plan within {hunt.clock.limit_s:g} s: allow more time, or a coarser mesh")
    hunt.notes.append("time limit: no better plan was found")
    return hunt.finish()
