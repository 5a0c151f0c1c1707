"""What would help where nothing fits: each remedy is held against planning with it."""

from __future__ import annotations

import pickle
from functools import lru_cache

import pytest

import autopar
from autopar.errors import BudgetError
from autopar.ir.mesh import MeshSpec
from autopar.planning.advice import find_or_advise, what_would_help, without_kept_bytes
from autopar.planning.planner import Aims, Planner
from autopar.solver.check import memory_rows
from autopar.solver.smallest import smallest
from autopar.tracer import trace
from tests.hardware_toy import toy_hardware
from tests.models import mlp

MESH = MeshSpec((2,))


@lru_cache(maxsize=4)
def planner(batch: int, count: int) -> Planner:
    model, kwargs = mlp(device="meta", batch=batch)
    aims = Aims(hardware=toy_hardware(), optimizer="sgd", gap=1e-2, time_limit_s=10)
    return Planner(trace(model, (), kwargs, name="mlp"), aims, micro_batches=count)


@lru_cache(maxsize=1)
def failure() -> BudgetError:
    with pytest.raises(BudgetError) as caught:
        find_or_advise(planner(64, 1), MESH, 20_000, lambda: planner(32, 2))
    return caught.value


def test_remedies_are_told_best_first() -> None:
    error = failure()
    sizes = [size for _, size in error.remedies]
    assert sizes == sorted(sizes)
    assert all(size < error.smallest_bytes for size in sizes)
    assert all(what in str(error) for what, _ in error.remedies)
    assert "What would help most here: " in str(error)
    assert {what for what, _ in error.remedies} >= {"twice as many devices along gpu (mesh 4)"}


def test_the_figures_are_those_of_plans_that_exist() -> None:
    known = {"twice as many devices along gpu (mesh 4)": (planner(64, 1), MeshSpec((4,)))}
    known["half the micro-batch (2 per step)"] = (planner(32, 2), MESH)
    checked = 0
    for what, size in failure().remedies:
        if what in known:
            other, mesh = known[what]
            least = smallest(other.priced(mesh).problem, time_limit_s=5)
            assert least.bound_bytes <= size <= 1.1 * least.bytes, what
            checked += 1
    assert checked


def test_without_what_is_kept_the_rest_is_left() -> None:
    problem = planner(64, 1).priced(MESH).problem
    loose = planner(64, 1).loosest(MESH)
    rest = without_kept_bytes(problem, loose)
    rows = memory_rows(problem, loose)
    assert max(sum(size for name, size in row.parts if "kept" not in name and "saved" not in name) for row in rows) == rest
    assert rest < loose.peak_bytes


def test_no_time_means_fewer_remedies() -> None:
    found = what_would_help(planner(64, 1), MESH, 20_000, failure().smallest_bytes, time_limit_s=0.0)
    assert {remedy.what for remedy in found} <= {"all that is kept for backward in host memory"}


def test_the_error_travels_between_processes_with_its_remedies() -> None:
    again = pickle.loads(pickle.dumps(failure()))
    assert (str(again), again.remedies) == (str(failure()), failure().remedies)


def test_plan_says_it() -> None:
    model, kwargs = mlp(device="meta", batch=64)
    with pytest.raises(BudgetError, match=r"What would help most here: .* would be enough") as caught:
        autopar.plan(model, "2", kwargs=kwargs, memory=20_000, hardware=toy_hardware(), optimizer="sgd", time_limit_s=10)
    assert caught.value.remedies
