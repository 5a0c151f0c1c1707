"""The search over settings: it finds what trying all of them would, and tells what became of each."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import nn

import autopar
from autopar.errors import BudgetError, InputError, MeshError, UnshardableError
from autopar.hardware import Hardware
from autopar.ir.plan import Plan
from autopar.planning.planner import Aims, Planner, silent
from autopar.planning.settings import SettingSearch
from autopar.planning.shapes import mesh_shapes
from autopar.tracer import trace
from tests.hardware_toy import toy_hardware
from tests.models import mlp
from tests.planned import traced

GAP = 1e-3
EIGHT = autopar.Constraints(min_micro_batch=8)


class Square(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(9, 9, device="meta")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).square().mean()


def slow_links() -> Hardware:
    """Nodes of 2; the link between them is slow enough that shapes differ."""
    hardware = toy_hardware(link_bytes_per_s=1e9)
    slow = {**hardware.links, "inter_node": replace(hardware.links["inter_node"], bytes_per_s=1e8)}
    return replace(hardware, devices_per_node=2, links=slow)


@lru_cache(maxsize=1)
def activations() -> Planner:
    """Of a model whose activations are most of its memory, so that budgets matter."""
    model, kwargs = mlp(device="meta", batch=256)
    aims = Aims(hardware=slow_links(), optimizer="sgd", gap=GAP, time_limit_s=10)
    return Planner(trace(model, (), kwargs, name="mlp"), aims)


@lru_cache(maxsize=1)
def parameters() -> Planner:
    """Of a model that is mostly parameters: solved in no time."""
    return Planner(traced("mlp").program, Aims(hardware=slow_links(), gap=GAP))


def search(
    planner: Planner, devices: int, budget: float | None = None, said: list[str] | None = None, limit_s: float = 40.0
) -> Plan:
    progress, shapes = silent if said is None else said.append, mesh_shapes(devices, 2)
    found = SettingSearch(lambda n, s: planner, shapes, (1,), budget, time_limit_s=limit_s, gap=GAP, progress=progress)
    return found.run().plan


@pytest.mark.parametrize("budget", [None, pytest.param(372_000, marks=pytest.mark.slow)])
def test_the_best_shape_is_found_and_what_was_left_out_is_no_better(budget: int | None) -> None:
    """Under the budget the emitted graphs of the shape that would be best do not fit."""
    plan = search(activations(), 4, budget, limit_s=200.0)  # time enough to end, also beside other work
    assert [t.mesh.sizes for t in plan.tried] == [(4,), (2, 2)]
    (chosen,) = (t for t in plan.tried if t.outcome == "chosen")
    assert (chosen.mesh, chosen.step_time_s, chosen.peak_bytes) == (plan.mesh, plan.step_time_s, plan.peak_bytes)
    for tried in plan.tried:
        try:
            each = activations().find(tried.mesh, budget, incumbents=()).plan
        except BudgetError:
            assert tried.outcome in ("slower", "cannot be faster", "does not fit"), tried
            continue
        assert each.step_time_s >= plan.step_time_s * (1 - 2 * GAP), tried
        assert tried.lower_bound_s is None or tried.lower_bound_s <= each.step_time_s * (1 + 1e-9), tried
        assert tried.outcome in ("chosen", "slower", "cannot be faster"), tried
    assert Plan.from_json(plan.to_json()) == plan


def test_each_stage_is_told_with_its_setting() -> None:
    said: list[str] = []
    search(parameters(), 4, said=said)
    assert said[0] == "setting 1 of 2 (4): bounding"
    assert "setting 2 of 2 (2x2): bounding" in said


def test_no_shape_fits() -> None:
    with pytest.raises(BudgetError, match=r"in any of 2 settings: the smallest budget that works is .* on mesh") as caught:
        search(parameters(), 4, 1000)
    error = caught.value
    assert error.smallest_bytes > 1000
    assert len(error.binding) == 3
    assert search(parameters(), 4, error.smallest_bytes * 1.2).peak_bytes <= error.smallest_bytes * 1.2


def test_an_axis_that_divides_nothing_is_told() -> None:
    with pytest.raises(UnshardableError, match="67 devices"):
        search(parameters(), 67)


def test_shapes_that_divide_nothing_stand_beside_those_that_do() -> None:
    """A batch of 4 and a hidden size of 9: of 36 devices only 4x9 and 9x4 have work."""
    program = trace(Square(), (torch.empty(4, 9, device="meta"),))
    one = Planner(program, Aims(hardware=slow_links()))
    shapes = mesh_shapes(36, 2)
    found = SettingSearch(lambda n, s: one, shapes, (1,), None, time_limit_s=60, gap=GAP, progress=silent).run().plan
    possible = {t.mesh.sizes for t in found.tried if t.outcome != "impossible"}
    assert possible == {(4, 9), (9, 4)}
    assert all("divides by" in t.reason for t in found.tried if t.outcome == "impossible")


def test_time_that_is_over_is_told() -> None:
    plan = search(parameters(), 4, limit_s=0.0)
    late = [t for t in plan.tried if t.outcome == "not tried"]
    assert late
    assert plan.notes[-1] == f"{len(late)} of {len(plan.tried)} settings were not tried: time limit"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, MeshError, "neither of mesh and devices"),
        ({"mesh": "2", "devices": 2}, MeshError, "both of mesh and devices"),
        ({"devices": 0}, InputError, "0 devices"),
        ({"devices": 4, "global_batch": 0}, InputError, "global batch 0"),
        ({"devices": 4, "global_batch": 10, "micro_batch": 4}, InputError, "10 samples is not divisible by micro-batches of 4"),
        ({"devices": 4, "micro_batch": 4}, InputError, "give both"),
        (
            {"devices": 4, "global_batch": 4, "constraints": autopar.Constraints(min_micro_batch=8)},
            InputError,
            "larger than the global batch of 4",
        ),
    ],
)
def test_wrong_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    model, kwargs = mlp(device="meta")
    with pytest.raises(error, match=message):
        autopar.plan(model, kwargs=kwargs, **options)
