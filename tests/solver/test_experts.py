"""Tokens that travel to their experts, to people: a role, a baseline, rows of the batch."""

from __future__ import annotations

from functools import lru_cache

import pytest

from autopar.errors import ConstraintError
from autopar.ir.constraints import Constraints
from autopar.ir.mesh import MeshSpec
from autopar.profiler.model_cost import ModelCost, measure
from autopar.solver.baselines import solve_baselines
from autopar.solver.build import Builder, Setting
from autopar.solver.constraints import wanted
from autopar.solver.problem import Problem, Unit
from autopar.tracer import trace
from tests.hardware_toy import toy_hardware
from tests.zoo import ZOO

LAYERS, EXPERTS = "model.layers.*", "mlp_experts_autopar"
PIN = "op=experts: expert={}"


@lru_cache(maxsize=1)
def measured() -> ModelCost:
    """Four experts, a batch of eight."""
    model, kwargs = ZOO["mixtral"].build(batch=8)
    return measure(trace(model, (), kwargs))


@lru_cache(maxsize=2)
def built(mesh: str) -> tuple[Builder, Problem]:
    builder = Builder(measured(), Setting(mesh=MeshSpec.of(mesh), hardware=toy_hardware()))
    return builder, builder.problem()


def unit(mesh: str) -> Unit:
    return built(mesh)[1].region[LAYERS].unit[EXPERTS]


def factors_left(mesh: str, constraints: Constraints) -> set[tuple[str | None, ...]]:
    allow = wanted(constraints, *built(mesh)).allow
    assert allow.strategy is not None
    return {s.factors for i, s in enumerate(unit(mesh).strategies) if allow.strategy(LAYERS, EXPERTS, i)}


def test_tokens_and_experts_rest_cut_by_the_same_axis() -> None:
    (s,) = (s for s in unit("2x2").strategies if s.factors == ("b0", "b0+e"))
    assert s.roles == ("batch", "expert")
    assert [str(p) for p in s.operands] == ["S(0), S(0)"] * 3 + ["R, S(0)"] * 2
    assert [str(p) for p in s.results] == ["S(0), S(0)"]


def test_a_pin_is_for_tokens_that_travel() -> None:
    assert factors_left("2x2", Constraints(pins=[PIN.format("*")])) == {
        (node, gpu) for node in ("b0+e", "b1+e") for gpu in ("b0+e", "b1+e")
    }
    assert all(not (f or "").endswith("+e") for fs in factors_left("2x2", Constraints(bans=[PIN.format("*")])) for f in fs)


def test_a_pin_that_cannot_hold_says_what_there_is() -> None:
    with pytest.raises(
        ConstraintError, match=r"expert=gpu' cannot hold: mlp_experts_autopar of .* on gpu batch, none, tensor$"
    ):
        wanted(Constraints(pins=[PIN.format("gpu")]), *built("8"))


def test_tokens_that_travel_are_rows_of_the_batch() -> None:
    left = factors_left("2x2", Constraints(min_micro_batch=4))
    assert ("b0+e", None) in left
    assert ("b0+e", "b1+e") in left, "the second axis cuts the sequence"
    assert not {("b0+e", "b0+e"), ("b0", "b0+e")} & left


@pytest.mark.parametrize(("mesh", "factors"), [("4", {("b0+e",)}), ("2x2", {("b0", "b0+e"), ("b0+e", "b0+e")})])
def test_the_baseline_has_tokens_travel_along_inner_axes(mesh: str, factors: set[tuple[str | None, ...]]) -> None:
    _, problem = built(mesh)
    solution = solve_baselines(problem, ["ep"], checkpoints=["none"])["ep"]
    assert solution is not None
    chosen = problem.region[LAYERS].units, solution.regions[LAYERS].strategies
    found = {u.name: u.strategies[chosen[1][u.name]] for u in chosen[0]}
    assert found[EXPERTS].factors in factors
    weights = [p for g, p in solution.rest.items() if g.endswith(("gate_up_proj", "down_proj"))]
    assert weights
    assert all(p.states[-1] == 0 for p in weights), "experts rest where tokens come to"
    assert {
        u.roles[-1] for name, u in found.items() if name != EXPERTS and problem.region[LAYERS].unit[name].kind == "attention"
    } == {"batch"}


def test_where_no_token_can_travel_there_is_no_such_baseline() -> None:
    assert solve_baselines(built("8")[1], ["ep"], checkpoints=["none"])["ep"] is None
