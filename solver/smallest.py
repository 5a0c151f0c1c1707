"""The smallest budget for which a plan exists, and what binds there."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

from autopar.errors import SolverError
from autopar.solver import adapter
from autopar.solver.check import check
from autopar.solver.model import build
from autopar.solver.problem import Problem, Solution
from autopar.solver.restriction import FREE, Restriction, fix
from autopar.solver.rounding import draft_of, support_arcs, to_solution, to_start
from autopar.solver.space import Space, narrow

SCALE = 1000.0


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


def smallest(problem: Problem, *, allow: Restriction | None = None, gap: float = 1e-3, time_limit_s: float = 60) -> Smallest:
    """The plan with the lowest peak, within a relative gap; the problem's own budget plays no part.

    Raises SolverError if the restriction leaves nothing, or nothing is found in time.
    """
    clock, problem = Clock(time_limit_s), replace(problem, budget_bytes=None)
    space = narrow(problem, allow or FREE)
    scales = _scales(problem)
    mean = build(space, memory=True, average=True, minimise_peak=True, byte=scales["byte"], second=scales["second"])
    outcome = adapter.run(mean.ilp, gap=gap / 4, time_limit_s=clock.left_s * 0.25)
    bound = max(outcome.bound, 0.0)
    best: Solution | None = None
    if outcome.values is not None:
        tight = narrow(problem, fix(draft_of(mean, outcome.values), space.allow), support_arcs(mean, outcome.values))
        best = _lowest(tight, scales, gap / 4, clock.left_s * 0.2, None)[0]
    if best is not None and not _closed(best, bound / scales["byte"], gap):
        best = _descend(problem, space, best, scales, gap, clock)
    if best is None or not _closed(best, bound / scales["byte"], gap):
        found, proven = _lowest(space, scales, gap, max(clock.left_s, 1.0), best)
        bound = max(bound, proven)
        best = min((s for s in (best, found) if s is not None), key=lambda s: s.peak_bytes, default=None)
    if best is None:
        raise SolverError(f"found no plan within {time_limit_s:g} s: allow more time, or a coarser mesh")
    return _report(problem, best, bound / scales["byte"])


def _closed(best: Solution, bound_bytes: float, gap: float) -> bool:
    return best.peak_bytes - bound_bytes <= gap * best.peak_bytes


def _descend(problem: Problem, space: Space, best: Solution, scales: dict[str, float], gap: float, clock: Clock) -> Solution:
    """Lower the peak in steps: under a slightly smaller budget, the cheapest plan is found much faster than the lowest
    (many plans have the same peak, few the same cost), and its strategies usually allow a lower peak still."""
    step, first = 0.08, clock.left_s
    while step > gap and clock.left_s > 0.3 * first:
        limited = replace(problem, budget_bytes=best.peak_bytes * (1 - step))
        scaled = {"byte": SCALE / limited.budget_bytes, "second": SCALE / best.cost_s if best.cost_s else 1.0}  # type: ignore[operator]
        mean = build(replace(space, problem=limited), memory=True, average=True, byte=scaled["byte"], second=scaled["second"])
        outcome = adapter.run(mean.ilp, gap=0.05, time_limit_s=0.15 * first)
        lower = None
        if outcome.values is not None:
            tight = narrow(problem, fix(draft_of(mean, outcome.values), space.allow), support_arcs(mean, outcome.values))
            lower = _lowest(tight, scales, gap / 4, 0.1 * first, None)[0]
        if lower is not None and lower.peak_bytes < best.peak_bytes:
            best = lower
        else:
            step /= 4
    return best


def _lowest(
    space: Space, scales: dict[str, float], gap: float, time_limit_s: float, start: Solution | None
) -> tuple[Solution | None, float]:
    model = build(space, memory=True, minimise_peak=True, byte=scales["byte"], second=scales["second"])
    known = to_start(model, start) if start else None
    outcome = adapter.run(model.ilp, gap=gap, time_limit_s=time_limit_s, start=known)
    return (to_solution(model, outcome.values) if outcome.values is not None else None), outcome.bound


def _scales(problem: Problem) -> dict[str, float]:
    """Bytes by the largest state, value or temporary; seconds by the slowest choice of each unit."""
    figures = [max(group.bytes_at.values()) for group in problem.state.values()]
    figures += [size for region in problem.regions for t in region.tensors.values() for size in t.bytes_at.values()]
    figures += [s.backward_temp_bytes for region in problem.regions for u in region.units for s in u.strategies]
    slowest = sum(
        sum(region.classes) * max(s.forward_s + s.backward_s for s in unit.strategies)
        for region in problem.regions
        for unit in region.units
    )
    return {"byte": SCALE / (max(figures, default=1.0) or 1.0), "second": SCALE / (slowest or 1.0)}


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
