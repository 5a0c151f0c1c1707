"""Step time against memory: ends, order, and that no budget in between has anything better."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import pytest

from autopar.errors import BudgetError, InputError
from autopar.ir.mesh import MeshSpec
from autopar.ir.pareto import Pareto
from autopar.planning.front import FrontSearch
from autopar.planning.planner import Aims, Planner
from autopar.solver.search import solve
from autopar.solver.smallest import smallest
from autopar.tracer import trace
from tests.hardware_toy import toy_hardware
from tests.models import mlp

MESH, GAP = MeshSpec((4,)), 1e-3


@lru_cache(maxsize=1)
def planner() -> Planner:
    """Of a model whose activations are most of its memory, so that budgets matter."""
    model, kwargs = mlp(device="meta", batch=64)
    return Planner(
        trace(model, (), kwargs, name="mlp"), Aims(hardware=toy_hardware(link_bytes_per_s=1e9), optimizer="sgd", gap=GAP)
    )


def front(points: int, budget: float | None = None) -> Pareto:
    return FrontSearch(planner(), MESH, points=points, budget_bytes=budget, time_limit_s=60).run()


@lru_cache(maxsize=1)
def whole() -> Pareto:
    return front(6)


def test_the_ends_are_the_smallest_and_the_fastest_plan() -> None:
    plans, problem = whole().plans, planner().priced(MESH).problem
    assert whole().complete
    assert plans[-1].step_time_s == pytest.approx(planner().loosest(MESH).cost_s, rel=GAP)
    least = smallest(problem, time_limit_s=10)
    assert plans[0].peak_bytes <= least.bytes * 1.003


def test_points_are_ordered_and_none_is_dominated() -> None:
    plans = whole().plans
    assert 3 <= len(plans) <= 6
    for before, after in pairwise(plans):
        assert before.peak_bytes < after.peak_bytes
        assert before.step_time_s > after.step_time_s
        assert before.budget_bytes is not None


def test_each_plan_is_the_best_up_to_the_budget_that_it_carries() -> None:
    """Solved again from nothing."""
    problem = planner().priced(MESH).problem
    for plan in whole().plans:
        again = solve(replace(problem, budget_bytes=plan.budget_bytes), gap=GAP, time_limit_s=20)
        assert again.bound_s <= plan.step_time_s * (1 + 1e-9)
        assert plan.step_time_s <= again.cost_s * (1 + 2 * GAP)


def test_a_budget_is_the_right_end() -> None:
    middle = whole().plans[1].peak_bytes
    found = front(2, middle)
    assert len(found.plans) <= 2
    assert found.plans[-1].peak_bytes <= middle
    assert found.plans[-1].step_time_s == pytest.approx(whole().plans[1].step_time_s, rel=2 * GAP)
    with pytest.raises(BudgetError):
        front(2, 1000)


def test_each_plan_stands_alone() -> None:
    for plan in whole().plans:
        assert type(plan).from_json(plan.to_json()) == plan
        plan.require(planner().program, MESH)
    assert Pareto.from_json(whole().to_json()) == whole()


@pytest.mark.parametrize("points", [1, 0, True])
def test_too_few_points(points: int) -> None:
    with pytest.raises(InputError, match="at least 2"):
        front(points)
