"""A plan on a smaller model of the same structure: every decision is there, and what does not correspond is refused."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autopar.errors import PlanError
from autopar.ir.mesh import MeshSpec
from autopar.ir.plan import Plan, PlannedClass, PlannedUnit
from autopar.ir.program import Program
from autopar.ir.region_view import merged
from autopar.planning.planner import Aims, Planner, realise
from autopar.planning.transplant import layers_needed, layers_of, nodes, paired, spread, transplanted
from autopar.reduced import alike, head_size, products, reduced_config, shrunk
from autopar.solver.from_plan import to_solution
from autopar.tracer import trace
from tests.hardware_toy import toy_hardware
from tests.models import gpt2, mlp
from tests.planned import planned, traced


def small_of(layers: int) -> Program:
    model, kwargs = gpt2(layers=layers, batch=4, seq=8)
    return trace(model, (), kwargs, name="gpt2")


@lru_cache(maxsize=1)
def deep() -> Planner:
    """Six layers with many activations, planned quickly rather than well."""
    model, kwargs = gpt2(layers=6, batch=16, seq=48)
    aims = Aims(hardware=toy_hardware(), gap=0.3, time_limit_s=5.0)
    return Planner(trace(model, (), kwargs, name="gpt2"), aims)


MESH = MeshSpec.of("2x2")
BLOCK = "transformer.h.*"


def tight(planner: Planner) -> Plan:
    """Layers keep less at first and more in the end, so they are of different classes."""
    loose = planner.find(MESH)
    return planner.find(MESH, int(0.35 * loose.plan.peak_bytes)).plan


def test_every_decision_is_carried_over() -> None:
    """Of six layers to as few as show every choice: units, conversions, placements, and what is kept and redone."""
    plan, large = tight(deep()), deep().program
    choices = merged(plan.regions[BLOCK].classes)
    assert len(choices) > 1
    layers = layers_needed(plan, large, 6)
    assert layers < 6
    small = small_of(layers)
    found = transplanted(plan, large, small)
    assert found.fingerprint == small.fingerprint != plan.fingerprint
    for name, region in found.regions.items():
        assert [u.factors for u in region.units.values()] == [u.factors for u in plan.regions[name].units.values()]
        assert [(c.before, c.after) for c in region.converted] == [(c.before, c.after) for c in plan.regions[name].converted]
        assert sum(c.calls for c in region.classes) == len(small.calls_of(name))
    assert [without_calls(c) for c in merged(found.regions[BLOCK].classes)] == [without_calls(c) for c in choices]
    assert found.regions[BLOCK].units == plan.regions[BLOCK].units, "the same names"
    last = {f"transformer.h.{layers - 1}.": "transformer.h.5."}
    for name, tensor in found.state.items():
        there = next((name.replace(mine, other) for mine, other in last.items() if name.startswith(mine)), name)
        assert tensor.placement == plan.state[there].placement, name


def test_what_is_carried_over_can_be_run() -> None:
    """Of six layers to two, another batch and sequence: the smaller model has every choice, and makes it."""
    planner, small = deep(), small_of(2)
    plan = planner.find(MESH).plan
    found = transplanted(plan, planner.program, small)
    priced = Planner(small, Aims(hardware=toy_hardware(), optimizer=plan.optimizer)).priced(plan.mesh)
    run = realise(priced.builder, priced.problem, to_solution(priced.builder, priced.problem, found)).plan
    assert {n: u.factors for n, u in units(run)} == {n: u.factors for n, u in units(plan)}
    mine, other = (merged(p.regions[BLOCK].classes) for p in (run, plan))
    assert [without_calls(c) for c in mine] == [without_calls(c) for c in other]


def without_calls(keep: PlannedClass) -> PlannedClass:
    sets = {name: tuple(sorted(getattr(keep, name), key=str)) for name in ("kept", "kept_internals", "redone", "reconverted")}
    return keep.model_copy(update={"calls": 0, **sets})


def test_too_few_layers_cannot_show_every_choice() -> None:
    plan = planned("gpt2", "2x2")[0]
    region = plan.regions[BLOCK].model_copy(update={"classes": (choice(3, "a"), choice(2, "b"), choice(1))})
    plan = plan.model_copy(update={"regions": {**plan.regions, BLOCK: region}})
    with pytest.raises(PlanError, match=r"2 calls of .* cannot show 3 choices"):
        list(spread(merged(region.classes), 2, BLOCK))


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
    with pytest.raises(PlanError, match=r"not of the same structure: .*verify at full size with --full"):
        transplanted(plan, large, trace(other, (), inputs, name="gpt2"))
    with pytest.raises(PlanError, match="it has 3 of transformer"):
        transplanted(plan, large, small_of(3))


class Halves(nn.Module):
    """The same operations in the same order, which read one result or the other."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one = x.exp()
        other = one.neg()
        return (other + (one if self.first else other).sin()).sum()


def test_operations_that_read_something_else_are_refused() -> None:
    (one,), (other,) = (
        trace(Halves(first), (torch.zeros(4, requires_grad=True),), {}, name="halves").regions.values()
        for first in (True, False)
    )
    assert set(nodes(one, one).items()) == {(n, n) for n in one.nodes}
    with pytest.raises(PlanError, match=r"sin of .* reads neg, where sin of the model reads exp"):
        nodes(one, other)


def test_other_numbers_of_inputs_are_refused() -> None:
    with pytest.raises(PlanError, match=r"not of the same structure: it has 1 inputs, not 2"):
        paired(["x"], ["x", "y"], "inputs")


def choice(calls: int, *redone: str) -> PlannedClass:
    return PlannedClass(calls=calls, kept=(), kept_internals=(), redone=redone, reconverted=())


def test_as_many_layers_as_there_are_choices() -> None:
    plan = planned("gpt2", "2x2")[0]
    name = "transformer.h.*"

    def with_classes(*classes: PlannedClass) -> Plan:
        region = plan.regions[name].model_copy(update={"classes": classes})
        return plan.model_copy(update={"regions": {**plan.regions, name: region}})

    program = small_of(8)
    assert layers_needed(with_classes(choice(8)), program, 8) == 2
    assert layers_needed(with_classes(choice(4, "a"), choice(2, "a"), choice(2)), program, 8) == 2
    assert layers_needed(with_classes(choice(4, "a"), choice(2, "b"), choice(2)), program, 8) == 4
    assert layers_needed(with_classes(choice(2)), small_of(2), 2) == 2, "no more than there are"


class Kinds(nn.Module):
    """Layers of two kinds by turns of `every`, or one layer again and again."""

    def __init__(self, layers: int, every: int, shared: bool, width: int = 16) -> None:
        super().__init__()
        kinds = [nn.Sequential(nn.Linear(width, width), nn.Tanh() if (i + 1) % every else nn.ReLU()) for i in range(layers)]
        self.layers, self.times = nn.ModuleList(kinds[:1] if shared else kinds), layers if shared else 1

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        for layer in [*self.layers] * self.times:
            x = x + layer(x)
        return nn.functional.mse_loss(x, y)


def kinds(layers: int, every: int, shared: bool = False) -> Program:
    inputs = {"x": torch.zeros(8, 16), "y": torch.zeros(8, 16)}
    return trace(Kinds(layers, every, shared), (), inputs, name="kinds")


@pytest.mark.parametrize(
    ("program", "layers", "expected"),
    [
        (kinds(12, 3), 12, [4, 6]),
        (kinds(6, 9), 6, [3]),
        (kinds(6, 9, shared=True), 6, [3, 4]),
    ],
)
def test_every_repeated_part_is_called_often_enough(program: Program, layers: int, expected: list[int]) -> None:
    """Of two kinds, the rarer one decides; of a layer that comes again, any layer left out is one call less. The first, whose
    input needs no gradient, is a part of its own."""
    repeated = [name for name in program.regions if len(program.calls_of(name)) > 1]
    assert [layers_of(program, name, 2, layers) for name in repeated] == expected


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


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 4),
        ({"partial_rotary_factor": 0.25}, 8),
        ({"rope_parameters": {"full": {"partial_rotary_factor": 0.4}}}, 10),
        ({"rotary_dim": 32}, 34),
        ({"rotary_dim": 80}, 80),
        ({"rope_scaling": {"short_factor": [1.0] * 40}}, None),
        ({"rotary_pct": 0.3333}, 80),
    ],
)
def test_what_rotates_of_a_head_stays_possible(fields: dict[str, Any], expected: int | None) -> None:
    assert head_size(SimpleNamespace(**fields), 80, (2, 2)) == expected


def test_lists_of_layers_are_as_long_as_the_layers(tmp_path: Path) -> None:
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    config = {"model_type": "gemma3_text", "num_hidden_layers": 6, "layer_types": kinds, "vocab_size": 1000}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = reduced_config(tmp_path, (2, 2), 2)
    assert (found["num_hidden_layers"], found["layer_types"]) == (2, kinds[:2])
