"""A plan on a smaller model of the same structure: every decision is there, and what does not correspond is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autopar.errors import PlanError
from autopar.ir.plan import Plan, PlannedClass, PlannedUnit
from autopar.ir.program import Program
from autopar.planning.planner import Aims, Planner, realise
from autopar.planning.transplant import different, layers_needed, transplanted
from autopar.reduced import alike, products, shrunk
from autopar.solver.from_plan import to_solution
from autopar.tracer import trace
from tests.hardware_toy import toy_hardware
from tests.models import gpt2, mlp
from tests.planned import planned, traced


def small_of(layers: int) -> Program:
    model, kwargs = gpt2(layers=layers, batch=4, seq=8)
    return trace(model, (), kwargs, name="gpt2")


@pytest.mark.parametrize("share", [1.0, 0.85])
def test_every_decision_is_carried_over(share: float) -> None:
    """Onto a model with another batch and sequence: units, conversions, placements, and what is kept and redone."""
    loose = planned("gpt2", "2x2")[0]
    plan = loose if share == 1.0 else planned("gpt2", "2x2", memory=int(share * loose.peak_bytes))[0]
    large, small = traced("gpt2").program, small_of(2)
    found = transplanted(plan, large, small)
    assert found.fingerprint == small.fingerprint != plan.fingerprint
    assert found.regions == plan.regions, "the same number of layers, so the same names"
    assert {n: t.placement for n, t in found.state.items()} == {n: t.placement for n, t in plan.state.items()}
    planner = Planner(small, Aims(hardware=toy_hardware(), optimizer=plan.optimizer))
    priced = planner.priced(plan.mesh)
    run = realise(priced.builder, priced.problem, to_solution(priced.builder, priced.problem, found)).plan
    assert {n: u.factors for n, u in units(run)} == {n: u.factors for n, u in units(plan)}


def units(plan: Plan) -> list[tuple[tuple[str, str], PlannedUnit]]:
    return [((r, n), u) for r, region in plan.regions.items() for n, u in region.units.items()]


def test_models_of_another_structure_are_refused() -> None:
    plan, large = planned("gpt2", "2x2")[0], traced("gpt2").program
    model, kwargs = mlp()
    with pytest.raises(PlanError, match="not of the same structure: it has the parts"):
        transplanted(plan, large, trace(model, (), kwargs, name="mlp"))
    other, inputs = gpt2(batch=4, seq=8)
    other.config.activation_function = "relu"
    other.transformer.h[0].mlp.act = other.transformer.h[1].mlp.act = nn.ReLU()
    with pytest.raises(PlanError, match=r"not of the same structure: .*Verify at full size"):
        transplanted(plan, large, trace(other, (), inputs, name="gpt2"))
    with pytest.raises(PlanError, match="it has 3 of transformer"):
        transplanted(plan, large, small_of(3))


def choice(calls: int, *redone: str) -> PlannedClass:
    return PlannedClass(calls=calls, kept=(), kept_internals=(), redone=redone, reconverted=())


def test_as_many_layers_as_there_are_choices() -> None:
    plan = planned("gpt2", "2x2")[0]
    name = "transformer.h.*"

    def with_classes(*classes: PlannedClass) -> Plan:
        region = plan.regions[name].model_copy(update={"classes": classes})
        return plan.model_copy(update={"regions": {**plan.regions, name: region}})

    assert different([choice(4, "a"), choice(2, "a"), choice(1)]) == [choice(4, "a"), choice(1)]
    assert layers_needed(with_classes(choice(8))) == 2
    assert layers_needed(with_classes(choice(4, "a"), choice(2, "a"), choice(2))) == 2
    assert layers_needed(with_classes(choice(4, "a"), choice(2, "b"), choice(2))) == 4


@given(size=st.integers(16, 5000), axes=st.lists(st.integers(2, 8), min_size=1, max_size=2))
def test_reduced_sizes_can_be_cut_as_the_original(size: int, axes: list[int]) -> None:
    parts = products(axes)
    found = shrunk(size, parts)
    assert found <= size
    for p in parts:
        assert (found % p == 0) == (size % p == 0)
    assert found == size or not any(alike(n, size, parts) for n in range(16, found)), "the smallest"


def test_a_size_that_nothing_smaller_stands_for_stays() -> None:
    assert shrunk(17, (2, 3)) == 17
