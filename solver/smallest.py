"""The smallest budget for which a plan exists, and what binds there."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

from autopar.errors import SolverError
from autopar.solver import adapter
from autopar.solver.check import check
from autopar.solver.model import build
from autopar.solver.nearby import Root, relax, search_near, within
from autopar.solver.problem import Problem, Solution
from autopar.solver.restriction import FREE, Restriction, fix
from autopar.solver.rounding import arcs_of, to_solution, to_start
from autopar.solver.scale import Scale, scale_of
from autopar.solver.space import Space, narrow


@dataclass
class Clock:
    """A time limit that several solves share."""

    limit_s: float

    def __post_init__(self) -> None:
        self._began = time.monotonic()

    @property
    def spent_s(self) -> float:
        return time.monotonic() - self._began

    @property
    def left_s(self) -> float:
        return max(self.limit_s - self.spent_s, 0.0)


@dataclass(frozen=True, kw_only=True)
class Smallest:
    """`bytes` is enough for `solution`; no plan needs less than `bound_bytes`. `binding`: the largest at the peak `where`."""

    bytes: int
    bound_bytes: float
    solution: Solution
    where: str
    binding: tuple[tuple[str, int], ...]

    @property
    def proven(self) -> bool:
        """Whether no plan needs noticeably (0.2 %) less."""
        return self.bytes - self.bound_bytes <= 2e-3 * self.bytes + 1

    def doubt(self, budget_bytes: float) -> str:
        """That a smaller budget, this one too, might work, where that is not ruled out."""
        if self.bound_bytes > budget_bytes or self.proven:
            return ""
        return f" (found in the time given; less than {human_bytes(self.bound_bytes)} is impossible)"


def smallest(
    problem: Problem,
    *,
    allow: Restriction | None = None,
    gap: float = 1e-3,
    time_limit_s: float = 60,
    start: Solution | None = None,
    enough_bytes: float = 0,
) -> Smallest:
    """The plan with the lowest peak, within a relative gap; the problem's own budget plays no part.

    It begins at the plan `start`, if given, and looks no further once a plan needs `enough_bytes` or less.
    Raises SolverError if the restriction leaves nothing, or nothing is found in time.
    """
    clock, problem = Clock(time_limit_s), replace(problem, budget_bytes=None)
    space = narrow(problem, allow or FREE)
    scale = _scale(problem)
    bound, best = 0.0, start or _cheapest(space, scale, clock)
    if best is not None:
        best = _polish(space, best, scale, gap, clock)
    if best is not None and space.allow.admits(problem, best):
        best, bound = _descend(space, best, scale, gap, enough_bytes, clock)
    else:
        best = None
    if best is None or not (_closed(best, bound, gap) or best.peak_bytes <= enough_bytes):
        found, proven = _lowest(space, scale, gap, max(clock.left_s, 1.0), best)
        bound = max(bound, proven / scale.byte)
        best = min((s for s in (best, found) if s is not None), key=lambda s: s.peak_bytes, default=None)
    if best is None:
        raise SolverError(f"found no plan within {time_limit_s:g} s: allow more time, or a coarser mesh")
    return _report(problem, best, bound)


def _cheapest(space: Space, scale: Scale, clock: Clock) -> Solution | None:
    """The plan that is cheapest whatever it needs: little work, and always there."""
    model = build(space, memory=False, scale=scale)
    outcome = adapter.run(model.ilp, gap=0.01, time_limit_s=0.3 * clock.left_s)
    return to_solution(model, outcome.values) if outcome.values is not None else None


def _polish(space: Space, plan: Solution, scale: Scale, gap: float, clock: Clock) -> Solution:
    """The lowest plan with this one's strategies and conversions."""
    tight = narrow(space.problem, fix(plan, space.allow), arcs_of(space, plan))
    lower = _lowest(tight, scale, gap / 4, 0.1 * clock.left_s, None)[0]
    better = lower is not None and (lower.peak_bytes < plan.peak_bytes or not space.allow.admits(space.problem, plan))
    return lower if lower is not None and better else plan


def _closed(best: Solution, bound_bytes: float, gap: float) -> bool:
    return best.peak_bytes - bound_bytes <= gap * best.peak_bytes


CLOSE = 1.005
"""Peaks within this factor are told apart only by the exact model."""


def _descend(
    space: Space, best: Solution, scale: Scale, gap: float, enough_bytes: float, clock: Clock
) -> tuple[Solution, float]:
    """Halve the distance (on a logarithmic scale) to the budget that last had no plan, or to half; with the proven bound.

    Under a budget the cheapest plan is found much faster than the lowest one: many plans have the same peak, few the same
    cost. A relaxation without solution proves that its budget is too small.
    """
    failed, bound, deadline_s = 0.0, 0.0, 0.45 * clock.left_s
    while best.peak_bytes > max(failed * CLOSE, enough_bytes) and clock.left_s > deadline_s:
        budget = max(math.sqrt(max(failed, best.peak_bytes / 2) * best.peak_bytes), enough_bytes)
        limited = replace(space, problem=replace(space.problem, budget_bytes=budget))
        sizes = scale_of(size=budget, cost_s=best.cost_s)
        root = relax(build(limited, memory=True, coarse=True, scale=sizes), 0.5 * clock.left_s)
        lower = None if root.infeasible else _fitting(root, sizes, space, scale, gap, clock)
        if lower is not None and lower.peak_bytes < best.peak_bytes:
            best = lower
        else:
            failed = budget
        bound = max(bound, budget) if root.infeasible else bound
    return best, _too_small(space, best, bound, clock)


PROBES = 6
"""Budgets that are tried for a bound: it is then within 1/64 (on a logarithmic scale) of the best that this way can prove."""


def _too_small(space: Space, best: Solution, bound_bytes: float, clock: Clock) -> float:
    """The largest budget found for which not even the coarse relaxation has a solution."""
    low, high = max(bound_bytes, best.peak_bytes / 16), best.peak_bytes
    for _ in range(PROBES):
        if not clock.left_s or high <= low * CLOSE:
            break
        budget = math.sqrt(low * high)
        limited = replace(space, problem=replace(space.problem, budget_bytes=budget))
        model = build(limited, memory=True, coarse=True, scale=scale_of(size=budget, cost_s=best.cost_s))
        if relax(model, 0.3 * clock.left_s).infeasible:
            low = bound_bytes = budget
        else:
            high = budget
    return bound_bytes


def _fitting(rough: Root, sizes: Scale, space: Space, scale: Scale, gap: float, clock: Clock) -> Solution | None:
    """A plan among the choices that the coarse relaxation makes, made as low as its strategies allow."""
    for slack in (0.003, 0.05):
        choices = within(rough, slack * rough.bound_s)
        if choices is None or not clock.left_s:
            continue
        root = relax(build(choices, memory=True, scale=sizes), 0.3 * clock.left_s)
        outcome = search_near(root, 0.002 * root.bound_s, gap=0.02, time_limit_s=0.1 * clock.limit_s)
        if outcome.values is not None:
            return _polish(space, to_solution(root.model, outcome.values), scale, gap, clock)
    return None


def _lowest(
    space: Space, scale: Scale, gap: float, time_limit_s: float, start: Solution | None
) -> tuple[Solution | None, float]:
    """The lowest plan of the space, if found in time, and a bound: at least the relaxation's, which is what big models get."""
    clock = Clock(time_limit_s)
    model = build(space, memory=True, minimise_peak=True, scale=scale)
    floor = relax(model, 0.8 * clock.left_s).relaxation.bound if start else 0.0
    known = to_start(model, start) if start else None
    outcome = adapter.run(model.ilp, gap=gap, time_limit_s=clock.left_s, start=known)
    bound = max(outcome.bound, floor)
    return (to_solution(model, outcome.values) if outcome.values is not None else None), bound


def _scale(problem: Problem) -> Scale:
    """Bytes by the largest state, value or temporary; seconds by the slowest choice of each unit."""
    figures = [max(group.bytes_at.values()) for group in problem.state.values()]
    figures += [size for region in problem.regions for t in region.tensors.values() for size in t.bytes_at.values()]
    figures += [s.backward_temp_bytes for region in problem.regions for u in region.units for s in u.strategies]
    slowest = sum(
        sum(region.classes) * max(s.forward_s + s.backward_s for s in unit.strategies)
        for region in problem.regions
        for unit in region.units
    )
    return scale_of(size=max(figures, default=0.0), cost_s=slowest)


def _report(problem: Problem, best: Solution, bound_bytes: float) -> Smallest:
    best = replace(best, status="feasible", bound_s=0.0)
    verdict = check(problem, best)
    return Smallest(
        bytes=math.ceil(verdict.peak_bytes),
        bound_bytes=min(bound_bytes, verdict.peak_bytes),
        solution=best,
        where=verdict.peak_where,
        binding=tuple((name, math.ceil(size)) for name, size in verdict.peak.parts[:3]),
    )


def human_bytes(size: float) -> str:
    """As people say it: 1536 is 1.50 KiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.2f} {unit}"
        size /= 1024
    return f"{size:.2f} TiB"
