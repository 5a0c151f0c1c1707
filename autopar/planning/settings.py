"""The best of many settings: mesh shapes, and into how many micro-batches a step is divided.

Each setting has a bound that costs little: the best plan if memory were free. Settings are solved in the order of their
bounds, until the next bound is no better than the best plan: what is left cannot win. They are first solved roughly; only
those that may still be the best are planned to the end. Meshes of few axes come first, since
they are cheap and a good plan early makes most of the others unnecessary; the same with few micro-batches. A bound of some
micro-batches also holds for a multiple of them where no cost grows faster than the batch: that is looked up, not assumed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

from autopar.bytes import human
from autopar.errors import AutoparError, BudgetError, ConstraintError, SolverError, UnshardableError
from autopar.ir.mesh import MeshSpec
from autopar.ir.plan import TriedSetting
from autopar.planning.advice import advised, what_would_help
from autopar.planning.planner import Planner, Progress
from autopar.planning.scaling import grows_faster_than_batch
from autopar.planning.within import Found
from autopar.solver.problem import Solution
from autopar.solver.smallest import Clock, Smallest, smallest

logger = logging.getLogger("autopar")

ROUGH, ROUGH_SHARE = 0.01, 0.1
"""The gap to which settings are compared at first, and what of the time limit one of them may take for it."""

SHARE = 0.25
"""Of the time limit, what one setting may take to be planned to the end."""

OVERCOUNTED = 1.5
"""How much more than plans need the solver may count, for a plan that is worth looking at (docs/architecture.md: by 16 % in the
median, 70 % at most)."""

LEAST_S = 5.0
"""What the search for the smallest budget of one setting may take."""


@dataclass(kw_only=True)
class Candidate:
    """A setting with what is known of it; `outcome` is empty while it is open.

    `bound_s`: no plan within the budget takes less; `free_s`: no plan does, whatever it needs.
    """

    mesh: MeshSpec
    micro_batches: int
    bound_s: float = 0.0
    free_s: float = 0.0
    step_time_s: float | None = None
    peak_bytes: float | None = None
    solution: Solution | None = None
    outcome: str = ""
    reason: str = ""

    def take(self, step_time_s: float, peak_bytes: float, bound_s: float) -> None:
        """Figures of a plan."""
        self.step_time_s, self.peak_bytes, self.bound_s = step_time_s, peak_bytes, max(self.bound_s, bound_s)

    def close(self, outcome: str, reason: str = "") -> None:
        self.outcome, self.reason = outcome, reason

    @property
    def title(self) -> str:
        return f"{self.mesh}" + (f" in {self.micro_batches} micro-batches" if self.micro_batches > 1 else "")

    def tried(self) -> TriedSetting:
        return TriedSetting(
            mesh=self.mesh,
            micro_batches=self.micro_batches,
            lower_bound_s=self.free_s or None,
            step_time_s=self.step_time_s,
            peak_bytes=self.peak_bytes,
            outcome=self.outcome,  # type: ignore[arg-type]
            reason=self.reason,
        )


class SettingSearch:
    """Finds the best plan over meshes and micro-batch counts. `planner_of` makes the planner of a count (it may trace)."""

    def __init__(
        self,
        planner_of: Callable[[int, Progress], Planner],
        meshes: Sequence[MeshSpec],
        counts: Sequence[int],
        budget_bytes: float | None,
        *,
        time_limit_s: float,
        gap: float,
        progress: Progress,
    ) -> None:
        self.planner_of, self.budget_bytes, self.gap, self.said = planner_of, budget_bytes, gap, progress
        self.candidates = [Candidate(mesh=mesh, micro_batches=n) for n in counts for mesh in meshes]
        self.planners: dict[int, Planner] = {}
        self.growth: dict[int, bool] = {}
        self.errors: list[AutoparError] = []
        self.needed_bytes: int | None = None
        self.best: Found | None = None
        self.chosen: Candidate | None = None
        self.clock = Clock(time_limit_s)

    def run(self) -> Found:
        """The best plan, with `tried` saying what became of every setting.

        Raises what the settings raised if none has a plan: BudgetError with the smallest budget of all that were tried.
        """
        by_size = groupby(self.candidates, key=lambda c: (c.micro_batches, len(c.mesh)))
        for _, group in by_size:
            self.visit(list(group))
        self.refine()
        if self.best is None:
            self.last_resort()
        if self.best is None or self.chosen is None:
            raise self.failure()
        self.chosen.close("chosen")
        tried = tuple(c.tried() for c in self.candidates)
        plan = self.best.plan.model_copy(update={"tried": tried, "notes": (*self.best.plan.notes, *self.remarks())})
        if plan.lower_bound_s < self.chosen.bound_s <= plan.step_time_s:  # what was proven before time was over holds
            gap = 1 - self.chosen.bound_s / plan.step_time_s
            plan = plan.model_copy(update={"lower_bound_s": self.chosen.bound_s, "gap": gap})
        return replace(self.best, plan=plan, emitted=replace(self.best.emitted, plan=plan))

    def visit(self, group: Sequence[Candidate]) -> None:
        """Bounds of all that may matter, then plans in the order of the bounds."""
        for candidate in group:
            candidate.bound_s = candidate.free_s = self.inherited_s(candidate)
            if self.may_win(candidate):
                self.bound(candidate)
        for candidate in sorted((c for c in group if not c.outcome), key=lambda c: c.bound_s):
            if self.may_win(candidate):
                self.solve(candidate)

    def may_win(self, candidate: Candidate) -> bool:
        """Whether it could be better by more than the gap; if not, or if time is over, it is closed."""
        if candidate.bound_s >= self.best_s * (1 - self.gap):
            candidate.close("cannot be faster")
        elif self.best_s < math.inf and not self.clock.left_s:
            candidate.close("not tried", "time limit")
        return not candidate.outcome

    @property
    def best_s(self) -> float:
        """Of the best plan so far."""
        return min((c.step_time_s for c in self.candidates if c.solution and c.step_time_s is not None), default=math.inf)

    def inherited_s(self, candidate: Candidate) -> float:
        """The best bound of the same mesh with fewer micro-batches, of which these are parts.

        Only bounds that hold for any memory: smaller micro-batches need less of it.
        """
        return max(
            (
                c.free_s
                for c in self.candidates
                if c.mesh == candidate.mesh
                and c.micro_batches < candidate.micro_batches
                and candidate.micro_batches % c.micro_batches == 0
                and c.micro_batches in self.planners
                and not self.grows_fast(c.micro_batches)
            ),
            default=0.0,
        )

    def grows_fast(self, count: int) -> bool:
        """`grows_faster_than_batch` of the program of so many micro-batches, looked up once."""
        if count not in self.growth:
            self.growth[count] = grows_faster_than_batch(self.planners[count].cost)
        return self.growth[count]

    def bound(self, candidate: Candidate) -> None:
        """From the plan that needs not care about memory; a setting without any is closed."""
        self.tell(candidate, "bounding")
        try:
            planner = self.planner(candidate)
            loose = planner.loosest(candidate.mesh, self.share_s(ROUGH_SHARE), max(ROUGH, self.gap))
        except (UnshardableError, ConstraintError) as error:
            self.errors.append(error)
            candidate.close("impossible", str(error))
        except SolverError as error:
            self.errors.append(error)
            candidate.close("not tried", str(error))
        else:
            candidate.bound_s = candidate.free_s = max(candidate.free_s, loose.bound_s)

    def solve(self, candidate: Candidate) -> None:
        """Roughly: whether the setting can be the best shows long before its own plan is proven."""
        self.tell(candidate, "planning")
        planner, rough = self.planner(candidate), max(ROUGH, self.gap)
        try:
            if not planner.may_fit(candidate.mesh, self.budget_bytes, self.share_s(ROUGH_SHARE)):
                candidate.close("does not fit")
                return
            problem = replace(planner.priced(candidate.mesh).problem, budget_bytes=self.budget_bytes)
            found = planner.cheapest(candidate.mesh, problem, self.share_s(ROUGH_SHARE), (), rough)
        except (BudgetError, SolverError) as error:
            self.failed(candidate, error)
        else:
            candidate.take(found.cost_s, found.peak_bytes, found.bound_s)
            candidate.solution = found

    def failed(self, candidate: Candidate, error: BudgetError | SolverError) -> None:
        self.errors.append(error)
        if isinstance(error, BudgetError):
            candidate.close("does not fit", f"needs {human(error.smallest_bytes)}")
        else:
            candidate.close("not tried", str(error))

    def refine(self) -> None:
        """Plans of those settings that may still be the best, to the wanted gap; the most promising first.

        The solver counts more memory than plans need: those that by its figures nearly fit are looked at too, and where the
        best of all counts more than the budget there, the others are bounded by as much.
        """
        solved = sorted((c for c in self.candidates if c.solution is not None), key=lambda c: c.step_time_s or 0.0)
        tight = sorted((c for c in self.candidates if c.outcome == "does not fit"), key=lambda c: c.free_s)
        for candidate in solved:
            self.settle(candidate)
        for candidate in tight:
            if self.best is not None and candidate.free_s >= self.best.plan.step_time_s * (1 - self.gap):
                candidate.close("cannot be faster")
            elif self.best is not None and self.may_nearly_fit(candidate):
                self.settle(candidate)

    def may_nearly_fit(self, candidate: Candidate) -> bool:
        """Whether it is worth counting what plans of this setting, which by the solver's figures do not fit, really need."""
        if self.budget_bytes is None or not self.clock.left_s:
            return False
        return self.planner(candidate).may_fit(candidate.mesh, OVERCOUNTED * self.budget_bytes, self.share_s(ROUGH_SHARE))

    def settle(self, candidate: Candidate) -> None:
        """Find its plan, unless it cannot be the best."""
        if self.best is not None:
            if not self.clock.left_s:
                return candidate.close(candidate.outcome or "slower", candidate.reason or "as far as time allowed")
            if self.bound_s(candidate) >= self.best.plan.step_time_s * (1 - self.gap):
                return candidate.close("slower")
        self.tell(candidate, "planning to the end")
        known = [candidate.solution] if candidate.solution else []
        try:
            found = self.planner(candidate).find(
                candidate.mesh, self.budget_bytes, incumbents=known, time_limit_s=self.share_s(SHARE)
            )
        except (BudgetError, SolverError) as error:
            return self.failed(candidate, error)
        self.take(candidate, found)

    def take(self, candidate: Candidate, found: Found) -> None:
        candidate.take(found.plan.step_time_s, found.plan.peak_bytes, found.plan.lower_bound_s)
        candidate.close("slower")
        if self.best is None or found.plan.step_time_s < self.best.plan.step_time_s:
            self.best, self.chosen = found, candidate

    @property
    def estimate_bytes(self) -> float:
        """What the solver counts for the best plan."""
        return self.best.solution.peak_bytes if self.best is not None else 0.0

    def bound_s(self, candidate: Candidate) -> float:
        """No plan of the setting takes less, if the solver may count as much as for the best plan."""
        if candidate.solution is None:
            return candidate.free_s
        if self.budget_bytes is not None and self.estimate_bytes > self.budget_bytes:
            self.tell(candidate, "bounding")
            relaxed_s = self.planner(candidate).relaxed_s(candidate.mesh, self.estimate_bytes, self.share_s(ROUGH_SHARE))
            candidate.bound_s = max(candidate.free_s, relaxed_s)
        return candidate.bound_s

    def planner(self, candidate: Candidate) -> Planner:
        count = candidate.micro_batches
        if count not in self.planners:
            self.planners[count] = self.planner_of(count, lambda stage: self.tell(candidate, stage))
        self.planners[count].progress = lambda stage: self.tell(candidate, stage)
        return self.planners[count]

    def tell(self, candidate: Candidate, stage: str) -> None:
        number = self.candidates.index(candidate) + 1
        self.said(f"setting {number} of {len(self.candidates)} ({candidate.title}): {stage}")

    def share_s(self, share: float) -> float:
        """Of the whole time, as far as it is left; a little where nothing was found yet."""
        return max(min(share * self.clock.limit_s, self.clock.left_s), 0.0 if self.best else 1.0)

    def remarks(self) -> Iterable[str]:
        """What the user should know about how sure the choice is."""
        late = [c for c in self.candidates if c.outcome == "not tried"]
        if late:
            yield f"{len(late)} of {len(self.candidates)} settings were not tried: time limit"

    def last_resort(self) -> None:
        """The solver counts from above: the setting that needs least by its figures may fit after all."""
        for candidate, _ in self.lowest[:1]:
            self.tell(candidate, "counting what the lowest plan really needs")
            try:
                found = self.planner(candidate).find(candidate.mesh, self.budget_bytes, time_limit_s=self.share_s(SHARE))
            except BudgetError as error:
                self.needed_bytes = error.smallest_bytes
                continue
            except SolverError:
                continue
            self.take(candidate, found)

    @cached_property
    def lowest(self) -> list[tuple[Candidate, Smallest]]:
        """Of the settings with the most micro-batches that do not fit, what each needs at least; the lowest first."""
        tight = [c for c in self.candidates if c.outcome == "does not fit"]
        count = max((c.micro_batches for c in tight), default=0)
        found: list[tuple[Candidate, Smallest]] = []
        for candidate in (c for c in tight if c.micro_batches == count):
            self.tell(candidate, "looking for the smallest budget")
            priced = self.planner(candidate).priced(candidate.mesh)
            try:
                found.append((candidate, smallest(priced.problem, allow=priced.wanted.allow, time_limit_s=LEAST_S)))
            except SolverError:
                continue
        return sorted(found, key=lambda pair: pair[1].bytes)

    def failure(self) -> AutoparError:
        """Why there is no plan at all: the smallest budget of those that do not fit, else the first reason."""
        found, tight = self.lowest, [c for c in self.candidates if c.outcome == "does not fit"]
        if not tight:
            return self.errors[0]
        if not found:
            return self.errors[0] if self.errors else SolverError("no plan was found within the time limit: allow more time")
        where, best = found[0]
        if best.bytes <= (self.budget_bytes or 0) and self.errors:
            return self.errors[0]
        self.tell(where, "nothing fits: looking for what would help")
        needed = best.bytes if self.needed_bytes is None else min(best.bytes, self.needed_bytes)
        error = BudgetError(
            f"no plan fits {human(self.budget_bytes or math.inf)} per device in any of {len(tight)} settings: the smallest "
            f"budget that works is {human(needed)} ({needed} bytes), on mesh {where.title}. At its peak, in "
            f"{best.where}, the largest are {', '.join(f'{name}: {human(size)}' for name, size in best.binding)}. Give more "
            "memory, more devices, or a smaller batch or sequence.",
            smallest_bytes=needed,
            binding=best.binding,
        )
        return advised(error, what_would_help(self.planner(where), where.mesh, int(self.budget_bytes or 0), needed))
