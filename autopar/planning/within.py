"""The best plan within a budget, where what counts is what the emitted graphs need.

The solver counts from above: what a call keeps or makes again counts as alive all at once. So its budget is not the user's; it
is moved until the graphs of its plan just fit. Where even the lowest of its plans is too large for it, the graphs of that one
say whether anything fits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from autopar.bytes import human
from autopar.codegen.emit import Emitted
from autopar.codegen.measure import Counted
from autopar.errors import BudgetError
from autopar.ir.plan import Plan
from autopar.solver.problem import Solution
from autopar.solver.search import NothingFits
from autopar.solver.smallest import Clock, Smallest

logger = logging.getLogger("autopar")

SEARCHES = 5
"""How often at most; each moves the solver's budget by what the last plan was off."""

OVER = 1.02
"""What was too much is taken back with a little more: the next plan is off by another amount."""

ROOM = 0.01
"""Part of the budget that is not worth another search."""

LOOSER = (1.05, 1.15, 1.3)
"""Times the lowest estimate, where to look before it is said that nothing fits, if not much is lacking: estimates are too high
by other amounts in other plans, so graphs of a higher one may need less."""

FREE = 0.9
"""A plan for which the solver counts less than this part of its budget is not held back by it."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A plan, the solution behind it, the graphs that it becomes, and what was counted on them."""

    plan: Plan
    solution: Solution
    emitted: Emitted
    counted: Counted


@dataclass(kw_only=True)
class Within:
    """`solve` gives the solver's best within a budget of its own, beginning at known plans (None: the usual ones); `realise`
    what becomes of it. After `limit_s` seconds nothing better is looked for. `others` are counted before it is said that
    nothing fits."""

    budget_bytes: float
    gap: float
    limit_s: float
    solve: Callable[[float, Sequence[Solution] | None], Solution]
    realise: Callable[[float, Solution], Found]
    others: Callable[[], Iterable[Solution]] = tuple
    notes: list[str] = field(default_factory=list)

    def search(self, incumbents: Sequence[Solution] | None) -> Found:
        """Raises BudgetError if nothing fits, as far as was found."""
        clock, budget, known = Clock(self.limit_s), self.budget_bytes, incumbents
        best: Found | None = None
        for _ in range(SEARCHES):
            try:
                solution, lowest = self.solve(budget, known), None
            except NothingFits as error:
                if best is not None:
                    break
                solution, lowest, budget = error.least.solution, error.least, error.least.bytes
            if best is not None and solution.cost_s >= best.solution.cost_s * (1 - self.gap):
                break
            found = self.realise(budget, solution)
            spare = self.budget_bytes - found.counted.peak_bytes
            self.tell(found, budget)
            if spare < 0 and lowest is not None:
                return self.any_other(lowest, found, clock)
            if spare >= 0:
                best, known = found, [solution]
                if spare <= ROOM * self.budget_bytes or solution.peak_bytes <= FREE * budget or not clock.left_s:
                    break
            budget += spare if spare >= 0 else OVER * spare
        if best is None:
            raise BudgetError(
                f"no plan whose emitted program fits {human(int(self.budget_bytes))}: the last one needs "
                f"{human(found.counted.peak_bytes)} ({found.counted.peak_where}). Give it that much",
                smallest_bytes=found.counted.peak_bytes,
            )
        return best

    def any_other(self, lowest: Smallest, found: Found, clock: Clock) -> Found:
        """The fastest of the others, if one fits where the lowest by the solver's figures does not."""
        tried = [(other.peak_bytes, other) for other in self.others()]
        if found.counted.peak_bytes <= LOOSER[-1] * self.budget_bytes:
            budgets = (lowest.bytes * times for times in LOOSER)
            tried += [(budget, self.solve(budget, [lowest.solution])) for budget in budgets if clock.left_s]
        counted = [found, *(self.realise(budget, solution) for budget, solution in tried)]
        fitting = [each for each in counted if each.counted.peak_bytes <= self.budget_bytes]
        if not fitting:
            raise NothingFits(self.budget_bytes, lowest, min(each.counted.peak_bytes for each in counted))
        best = min(fitting, key=lambda each: each.solution.cost_s)
        self.tell(best, best.solution.peak_bytes)
        return best

    def tell(self, found: Found, budget: float) -> None:
        """What the graphs of a plan need, of the solver's budget that it was found in."""
        counted, took = human(found.counted.peak_bytes), f"{found.plan.step_time_s:.4g} s"
        self.notes.append(f"within {human(int(budget))} of the solver's estimate: emitted graphs need {counted}, {took}")
        logger.info(self.notes[-1])
