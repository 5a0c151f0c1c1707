"""Solving: fast path, budgets, incumbents, restrictions, infeasibility, time limits, both solvers."""

from __future__ import annotations

import sys
from dataclasses import replace

import pulp
import pytest

from autopar.errors import BudgetError, SolverError
from autopar.solver import adapter
from autopar.solver.check import check
from autopar.solver.ilp import Ilp
from autopar.solver.model import build
from autopar.solver.nearby import relax
from autopar.solver.problem import Problem, Solution
from autopar.solver.restriction import Restriction, fix, split
from autopar.solver.search import solve
from autopar.solver.smallest import human_bytes, smallest
from autopar.solver.space import narrow
from tests.solver.llama_layer import llama_problem
from tests.solver.tiny import tiny_problem, two_ways


@pytest.mark.parametrize(
    ("budget", "cost"),
    [
        (None, 40),
        (138, 40),
        (137, 46),  # mix is run again: 3 s per call; t of 10 bytes is not kept by either, and made again by one at a time
        (128, 46),
        (127, 54),  # the weight is gathered again, too: 4 s per call
        (120, 54),
    ],
)
def test_tiny_by_hand(budget: float | None, cost: float) -> None:
    found = solve(tiny_problem(budget=budget), gap=1e-6)
    assert found.status == "optimal"
    assert found.cost_s == cost


def test_half_of_a_tensor_is_not_kept_for_two_readers() -> None:
    """The relaxation knows that what backward reads is kept once or made again, in whatever parts it is cut."""
    for problem in (tiny_problem(), two_ways()):
        space = narrow(problem, Restriction(redo=lambda region, unit: False))
        lowest = build(space, memory=True, minimise_peak=True)
        peak = adapter.run(lowest.ilp, gap=0, time_limit_s=10).objective
        assert relax(lowest, 10).relaxation.objective == pytest.approx(peak, rel=1e-3)


def test_incumbents_are_looked_for_where_they_are_needed() -> None:
    asked = []

    def known() -> list[Solution]:
        asked.append(1)
        return []

    assert solve(tiny_problem(budget=138), incumbents=known).cost_s == 40
    assert not asked
    assert solve(tiny_problem(budget=137), incumbents=known).cost_s == 46
    assert asked


def test_classes_choose_for_themselves() -> None:
    whole = {b: solve(tiny_problem(budget=b, classes=(2,)), gap=1e-6).cost_s for b in (126, 130, 134)}
    halves = {b: solve(tiny_problem(budget=b, classes=(1, 1)), gap=1e-6).cost_s for b in (126, 130, 134)}
    assert all(halves[b] <= whole[b] for b in whole)
    assert any(halves[b] < whole[b] for b in whole)


def test_too_small_a_budget_names_the_smallest_and_what_binds() -> None:
    with pytest.raises(BudgetError, match="no plan fits 50 B per device: the smallest budget that works is") as error:
        solve(tiny_problem(budget=50))
    least = error.value.smallest_bytes
    assert least == smallest(tiny_problem()).bytes
    assert len(error.value.binding) == 3
    assert solve(tiny_problem(budget=least)).peak_bytes <= least
    with pytest.raises(BudgetError):
        solve(tiny_problem(budget=least - 1))


@pytest.fixture(scope="module")
def layer() -> Problem:
    return llama_problem(sizes=(2, 2), layers=6)


def test_cost_grows_as_memory_shrinks(layer: Problem) -> None:
    free = solve(layer)
    plans = [solve(replace(layer, budget_bytes=free.peak_bytes * share)) for share in (1.0, 0.9, 0.8)]
    assert plans[0].cost_s == pytest.approx(free.cost_s, rel=1e-3)
    for tight, loose in zip(plans[1:], plans, strict=False):
        assert tight.cost_s >= loose.cost_s * (1 - 1e-3)
    assert all(plan.status == "optimal" and plan.gap <= 1e-3 for plan in plans)
    assert any(keep.redone or keep.reconverted for keep in plans[-1].regions["layer"].classes)


def test_never_worse_than_an_incumbent(layer: Problem) -> None:
    free = solve(layer)
    limited = replace(layer, budget_bytes=free.peak_bytes * 0.85)
    best = solve(limited)
    again = solve(limited, gap=0.5, incumbents=[free, best])
    assert again.cost_s <= best.cost_s
    check(limited, again)


def test_an_incumbent_of_another_problem_is_ignored(layer: Problem) -> None:
    assert solve(tiny_problem(), incumbents=[solve(layer)]).cost_s == 40


def test_fixed_strategies_are_the_same_model(layer: Problem) -> None:
    free = solve(layer)
    assert solve(layer, allow=fix(free)).cost_s == pytest.approx(free.cost_s, rel=1e-3)
    data = Restriction(strategy=lambda region, unit, s: set(layer.region[region].unit[unit].strategies[s].factors) <= {"b"})
    parallel = solve(layer, allow=data)
    assert parallel.cost_s >= free.cost_s * (1 - 1e-3)
    chosen = parallel.regions["layer"].strategies
    assert all(set(layer.region["layer"].unit[u].strategies[s].factors) <= {"b"} for u, s in chosen.items())


def test_a_restriction_without_redoing_is_kept(layer: Problem) -> None:
    limited = replace(layer, budget_bytes=solve(layer).peak_bytes * 0.93)
    keeps = Restriction(redo=lambda region, unit: False, reconvert=lambda region, tensor: False)
    found = solve(limited, allow=keeps)
    assert not any(keep.redone or keep.reconverted for keep in found.regions["layer"].classes)
    assert found.cost_s >= solve(limited).cost_s * (1 - 1e-3)


def test_a_restriction_that_leaves_nothing_names_the_unit() -> None:
    with pytest.raises(SolverError, match="unit mix of region layer has no choice left"):
        solve(tiny_problem(), allow=Restriction(strategy=lambda region, unit, s: unit != "mix"))


def test_time_limit_is_told(layer: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = adapter.Outcome(status="nothing")
    best = solve(layer)
    monkeypatch.setattr(adapter, "run", lambda *args, **kwargs: nothing)
    found = solve(layer, incumbents=[best])
    assert (found.status, found.cost_s) == ("feasible", best.cost_s)
    assert found.notes
    with pytest.raises(SolverError, match="found no plan within 1 s"):
        solve(layer, time_limit_s=1)


def test_presolve_drops_only_dominated_strategies() -> None:
    problem = tiny_problem()
    region = problem.regions[0]
    mix = region.units[0]
    slower, smaller = replace(mix.strategies[0], forward_s=9), replace(mix.strategies[0], forward_s=9, forward_temp_bytes=1)
    more = replace(mix, strategies=(slower, *mix.strategies, smaller))
    wider = replace(problem, regions=(replace(region, units=(more, region.units[1])),))
    assert narrow(wider).strategies["layer", "mix"] == (1, 2)
    assert solve(wider).cost_s == 40


def test_cbc_stands_in_for_highs(monkeypatch: pytest.MonkeyPatch) -> None:
    want = solve(tiny_problem(budget=126), gap=1e-6).cost_s
    monkeypatch.setitem(sys.modules, "highspy", None)
    assert solve(tiny_problem(budget=126), gap=1e-6).cost_s == pytest.approx(want)


class Broken:
    """A highspy whose solver dies."""

    @staticmethod
    def Highs() -> None:
        raise RuntimeError("factorization is singular")


def test_cbc_stands_in_where_highs_fails(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    want = solve(tiny_problem(budget=126), gap=1e-6).cost_s
    monkeypatch.setitem(sys.modules, "highspy", Broken)
    assert solve(tiny_problem(budget=126), gap=1e-6).cost_s == pytest.approx(want)
    assert "HiGHS failed (factorization is singular): solving with CBC" in caplog.text


def test_two_solvers_that_fail_are_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highspy", Broken)
    for name in ("COIN_CMD", "PULP_CBC_CMD"):
        monkeypatch.setattr(getattr(pulp, name), "actualSolve", died)
        monkeypatch.setattr(getattr(pulp, name), "available", lambda self: True)
    with pytest.raises(SolverError, match=r"HiGHS failed .* singular.* no other solver: CBC failed: killed"):
        solve(tiny_problem())


def died(*_: object, **__: object) -> None:
    raise pulp.PulpSolverError("killed")


def test_no_solver_at_all_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highspy", None)
    for name in ("COIN_CMD", "PULP_CBC_CMD"):
        monkeypatch.setattr(getattr(pulp, name), "available", lambda self: False)
    with pytest.raises(SolverError, match="pip install highspy"):
        solve(tiny_problem())


@pytest.mark.parametrize("calls", [1, 2, 5, 6, 12, 32, 126])
def test_any_number_of_calls_is_a_sum_of_classes(calls: int) -> None:
    sizes = split(calls)
    sums = {0}
    for size in sizes:
        sums |= {size + other for other in sums}
    assert sum(sizes) == calls
    assert sums == set(range(calls + 1))


def test_adapter_reads_infeasible_and_bound() -> None:
    ilp = Ilp()
    a, b = ilp.variable(cost=1, integer=True), ilp.variable(cost=2, integer=True)
    ilp.row([(a, 1), (b, 1)], at_least=1)
    outcome = adapter.run(ilp, gap=0, time_limit_s=5)
    assert (outcome.status, outcome.objective, outcome.bound) == ("optimal", 1, 1)
    ilp.row([(a, 1), (b, 1)], at_most=0)
    assert adapter.run(ilp, gap=0, time_limit_s=5).status == "infeasible"


def test_bytes_as_people_say_them() -> None:
    assert [human_bytes(n) for n in (5, 1536, 70 * 2**30)] == ["5 B", "1.50 KiB", "70.00 GiB"]


@pytest.mark.parametrize("budget", [None, 137, 120])
def test_a_search_can_be_watched(budget: float | None) -> None:
    """Plans get better and bounds higher, up to those of the answer; who watches does not change it."""
    told: list[tuple[float | None, float]] = []
    found = solve(tiny_problem(budget=budget), gap=1e-6, watch=lambda best_s, bound_s: told.append((best_s, bound_s)))
    costs, bounds = [best_s for best_s, _ in told if best_s is not None], [bound_s for _, bound_s in told]
    assert costs == sorted(costs, reverse=True)
    assert bounds == sorted(bounds)
    assert costs[-1] == found.cost_s
    assert min(bounds[-1], found.cost_s) == found.bound_s
    assert len(set(told)) == len(told), "told only what changed"
    assert replace(found, notes=()) == replace(solve(tiny_problem(budget=budget), gap=1e-6), notes=())
