"""The two-stage way: each stage does what it says, and both together are never better than the joint search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from autopar.solver.check import check
from autopar.solver.problem import Problem, Solution
from autopar.solver.search import solve
from autopar.solver.smallest import smallest
from autopar.solver.two_stage import at_rest_bytes, best_share, two_stage
from tests.solver.random_problems import overlapping_problem, random_problem

SEEDS = range(8)


def state_bytes(problem: Problem, solution: Solution) -> float:
    return sum(at_rest_bytes(problem, name, placement) for name, placement in solution.rest.items())


def without_activations(problem: Problem) -> Problem:
    """The same, but only state at rest has a size."""
    regions = [
        replace(
            region,
            tensors={n: replace(t, bytes_at=dict.fromkeys(t.bytes_at, 0.0)) for n, t in region.tensors.items()},
            units=tuple(
                replace(
                    unit,
                    strategies=tuple(
                        replace(s, saved_bytes=0.0, forward_temp_bytes=0.0, backward_temp_bytes=0.0) for s in unit.strategies
                    ),
                )
                for unit in region.units
            ),
        )
        for region in problem.regions
    ]
    boundaries = {n: replace(b, bytes_at=dict.fromkeys(b.bytes_at, 0.0)) for n, b in problem.boundaries.items()}
    state = {n: replace(g, step_bytes_at=dict.fromkeys(g.step_bytes_at, 0.0)) for n, g in problem.state.items()}
    return replace(problem, regions=tuple(regions), boundaries=boundaries, state=state)


@pytest.mark.parametrize("make", [random_problem, overlapping_problem])
@pytest.mark.parametrize("seed", SEEDS)
def test_never_better_than_the_joint_search(seed: int, make: Callable[[int], Problem]) -> None:
    problem = make(seed)
    loose, least = solve(problem, gap=0), smallest(problem, gap=0)
    for share in (0.1, 0.5, 1.0):
        tight = replace(problem, budget_bytes=float(round(least.bytes + share * (loose.peak_bytes - least.bytes))))
        joint = solve(tight, gap=0)
        one, best = two_stage(tight, gap=0), best_share(tight, gap=0)
        for found in (one, best):
            if found is not None:
                check(tight, found)
                assert found.cost_s >= joint.cost_s * (1 - 1e-6)
        assert one is None or (best is not None and best.cost_s <= one.cost_s)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_first_stage_is_the_fastest_with_so_much_state(seed: int) -> None:
    problem = random_problem(seed)
    loose = solve(problem, gap=0)
    budget = state_bytes(problem, loose) * 0.9 + 1.0
    bare = replace(without_activations(problem), budget_bytes=budget)
    found = two_stage(bare, gap=0)
    if found is not None:
        assert state_bytes(problem, found) <= budget * (1 + 1e-6)
        assert found.cost_s == pytest.approx(solve(bare, gap=0).cost_s, rel=1e-6)


def test_without_a_budget_both_ways_are_the_same() -> None:
    problem = random_problem(3)
    found = two_stage(replace(problem, budget_bytes=None), gap=0)
    assert found is not None
    assert found.cost_s == pytest.approx(solve(replace(problem, budget_bytes=None), gap=0).cost_s)
