"""The way that others go, to compare with: first shard as if activations took no memory, then save memory with what is fixed.

Stage 1 minimises time over strategies, conversions and resting places, with state at rest (parameters, gradients, optimizer
state) within a share of the budget, as the public ILP for PyTorch does. Stage 2 fixes them all, and chooses optimally what
each class of calls keeps and makes again under the whole budget. Both stages are optimal, so what the joint search gains is
due to deciding jointly alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from autopar.errors import SolverError
from autopar.ir.placement import Placement
from autopar.solver import adapter
from autopar.solver.check import TOLERANCE
from autopar.solver.checkpointing import Policy, checkpointed
from autopar.solver.model import build
from autopar.solver.problem import Problem, Solution
from autopar.solver.restriction import fix
from autopar.solver.rounding import arcs_of, to_solution
from autopar.solver.scale import SCALE, ample_bytes, scale_of, typical_s
from autopar.solver.smallest import Clock
from autopar.solver.space import Space, narrow

SHARES = (1.0, 0.75, 0.5, 0.25, 0.125)
"""Of the budget for state at rest, where one looks for the best: people who go this way set it by hand."""


def two_stage(problem: Problem, *, share: float = 1.0, gap: float = 1e-3, time_limit_s: float = 60) -> Solution | None:
    """The best plan with the strategies that are fastest while state at rest takes at most `share` of the budget.

    None if no choice has so little state, if what backward keeps cannot be made to fit, or if time runs out first.
    """
    return best_share(problem, (share,), gap=gap, time_limit_s=time_limit_s)


def best_share(
    problem: Problem, shares: Iterable[float] = SHARES, *, gap: float = 1e-3, time_limit_s: float = 60
) -> Solution | None:
    """The best of `two_stage` over several shares: stronger than what people do, who try one or two."""
    clock, space = Clock(time_limit_s), narrow(problem)
    best: Solution | None = None
    drafts: list[Solution] = []
    for share in shares:
        draft = shard(space, (problem.budget_bytes or math.inf) * share, gap, clock)
        if draft is None or any(same(draft, other) for other in drafts):
            continue
        drafts.append(draft)
        found = save_memory(space, draft, gap, clock)
        if found is not None and (best is None or found.cost_s < best.cost_s):
            best = found
    return best


def same(a: Solution, b: Solution) -> bool:
    """Whether both make the same choices."""
    return (a.regions, a.boundaries, a.rest) == (b.regions, b.boundaries, b.rest)


def shard(space: Space, state_bytes: float, gap: float, clock: Clock) -> Solution | None:
    """Stage 1: the fastest plan with Σ state at rest ≤ `state_bytes`, whatever else it needs; everything is kept."""
    model = build(space, memory=False, scale=scale_of(cost_s=typical_s(space.problem)))
    if math.isfinite(state_bytes):
        terms = [
            (v, SCALE * at_rest_bytes(space.problem, name, placement) / state_bytes)
            for name, options in model.rest.items()
            for placement, v in options.items()
        ]
        model.ilp.row(terms, at_most=SCALE)
    outcome = adapter.run(model.ilp, gap=gap / 2, time_limit_s=clock.left_s)
    return None if outcome.values is None else to_solution(model, outcome.values)


def at_rest_bytes(problem: Problem, name: str, placement: Placement) -> float:
    """A state group's parameters, optimizer state and gradients."""
    group = problem.state[name]
    return group.bytes_at[placement] + group.grad_bytes(placement)


def save_memory(space: Space, draft: Solution, gap: float, clock: Clock) -> Solution | None:
    """Stage 2: the draft with the fastest choice of what to keep and to make again; None if none fits.

    A draft that fits is returned as it is, unless the space forbids keeping some of what it keeps.
    """
    problem, allow = space.problem, space.allow
    limit = ample_bytes(problem) if problem.budget_bytes is None else problem.budget_bytes
    if draft.peak_bytes <= limit * (1 + TOLERANCE) and allow.admits(problem, draft):
        return draft
    known = [checkpointed(problem, draft, policy) for policy in KNOWN]
    fitting = [s for s in known if s.peak_bytes <= limit and allow.admits(problem, s)]
    try:
        tight = narrow(problem, fix(draft, allow), arcs_of(space, draft))
    except SolverError:
        return min(fitting, key=lambda s: s.cost_s, default=None)
    model = build(tight, memory=True, scale=scale_of(size=limit, cost_s=draft.cost_s))
    outcome = adapter.run(model.ilp, gap=gap / 4, time_limit_s=clock.left_s)
    if outcome.values is not None:
        found = to_solution(model, outcome.values)
        fitting += [found] if found.peak_bytes <= limit * (1 + TOLERANCE) else []
    return min((replace(s, status="feasible", bound_s=0.0) for s in fitting), key=lambda s: s.cost_s, default=None)


KNOWN = tuple(
    Policy(redo=redo, communicate=communicate, reshard="always")
    for redo, communicate in (("none", False), ("cheap", True), ("attention", True), ("all", True))
)
"""Choices that are there even if time runs out."""
