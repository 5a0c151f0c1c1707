"""The solver against enumeration: equal cost without a budget, under several that bind, and at the smallest one."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from autopar.errors import BudgetError
from autopar.solver.problem import Problem
from autopar.solver.search import solve
from autopar.solver.smallest import smallest
from tests.solver.brute_force import Point, cheapest, frontier
from tests.solver.random_problems import overlapping_problem, random_problem

GAP = 5e-6


def budgets(points: list[Point], seed: int) -> list[float]:
    """Peaks of the frontier and budgets between them: at most four."""
    peaks = sorted(peak for _, peak in points)
    between = [(low + high) / 2 for low, high in pairwise(peaks)]
    return random.Random(seed).sample(peaks + between, min(4, len(peaks + between)))


def compare(problem: Problem, points: list[Point], budget: float | None) -> None:
    want = cheapest(points, budget)
    limited = replace(problem, budget_bytes=budget)
    if want is None:
        with pytest.raises(BudgetError) as error:
            solve(limited, gap=GAP)
        assert error.value.smallest_bytes == pytest.approx(whole(min(peak for _, peak in points)), rel=1e-3)
        assert 1 <= len(error.value.binding) <= 3
        return
    found = solve(limited, gap=GAP)
    assert found.cost_s == pytest.approx(want, rel=1e-5, abs=1e-9)
    assert found.status == "optimal"


def whole(size: float) -> int:
    """Bytes come in ones; gradients of some of a region's calls are fractions here."""
    return math.ceil(size - 1e-9)


def agree(seed: int, problem: Problem) -> None:
    points = frontier(problem)
    compare(problem, points, None)
    for budget in budgets(points, seed):
        compare(problem, points, budget)
    least = min(peak for _, peak in points)
    compare(problem, points, least)
    compare(problem, points, least - 0.5)
    assert smallest(problem).bytes == pytest.approx(whole(least), rel=1e-3)


# Seeds whose enumeration takes a fraction of a second.
SEEDS = (
    1, 2, 6, 7, 11, 13, 15, 17, 19, 21, 24, 28, 33, 34, 35, 38, 44, 46, 48, 50, 52, 58,
    61, 62, 63, 64, 68, 70, 74, 78, 79, 80, 81, 82, 84, 86, 87, 89, 90, 94, 97, 100, 101, 103,
    104, 105, 111, 115, 117, 119, 122, 124, 128, 129, 131, 132, 133, 134, 135, 136, 138, 139, 140, 141, 142, 143,
    144, 146, 147, 148, 149, 150, 151, 152, 153, 155, 156, 157, 158, 161, 163, 164, 167, 172, 174, 175, 178, 179,
    180, 181, 182, 183, 184, 185, 190, 191, 193, 194, 195, 196, 197, 198, 200, 201, 205, 207, 208, 209, 214, 216,
    217, 218, 219, 220, 222, 223, 224, 225, 226, 227, 228, 229, 230, 231, 233, 234, 235, 236, 237, 239, 240, 241,
    246, 247, 250, 251, 252, 256, 257, 258, 259, 260, 261, 263, 264, 266, 268, 269, 270, 271, 272, 273, 275, 276,
    277, 278, 280, 281, 282, 284, 285, 286, 288, 289, 291, 292, 298, 300, 301,
)  # fmt: skip
QUICK = SEEDS[:64]


@pytest.mark.parametrize("seed", QUICK)
def test_solver_equals_enumeration(seed: int) -> None:
    agree(seed, random_problem(seed) if seed % 2 else overlapping_problem(seed))


@pytest.mark.slow
@pytest.mark.parametrize("make", [random_problem, overlapping_problem])
@pytest.mark.parametrize("seed", SEEDS)
def test_solver_equals_enumeration_on_many(seed: int, make: Callable[[int], Problem]) -> None:
    agree(seed, make(seed))


def test_the_cases_are_of_every_kind() -> None:
    problems = [random_problem(seed) for seed in QUICK]
    regions = [region for problem in problems for region in problem.regions]
    assert any(len(problem.regions) == 2 for problem in problems)
    assert any(len(region.classes) > 1 for region in regions)
    assert any(not b.carried and not b.resident for problem in problems for b in problem.boundaries.values())
    assert any(not unit.redoable for region in regions for unit in region.units)
    assert any(sum(unit.operands.count(t) for unit in r.units) > 1 for r in regions for t in r.tensors)
    assert sum(len(frontier(problem)) > 1 for problem in problems[:20]) > 5, "budgets that bind are rare"
