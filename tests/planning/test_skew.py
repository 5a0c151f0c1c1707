"""Devices that wait for each other: priced where nothing hides it, said in plans, and seen by the clock of a step."""

from __future__ import annotations

from dataclasses import replace

import pytest

import autopar
from autopar.hardware import load
from autopar.ir.conversion import ALL_REDUCE
from autopar.ir.mesh import MeshSpec
from autopar.ops.flops import Collective
from autopar.planning.simulate import simulate
from autopar.profiler.model_cost import measure
from autopar.solver.build import Builder, Setting
from tests.hardware_toy import toy_hardware
from tests.models import mlp
from tests.planned import known_way, traced

WAITED = "waiting for each other"


def planned(skew_s: float) -> autopar.Plan:
    model, kwargs = mlp(device="meta")
    return autopar.plan(model, "2", kwargs=kwargs, hardware=replace(toy_hardware(), overlap=0.0, skew_s=skew_s))


def test_the_gradients_and_parameters_of_data_parallel_wait_for_nobody() -> None:
    """Cut along the batch, only the loss, a number, is summed while all stand still: once, there and back."""
    free, skewed = planned(0.0), planned(1e-4)
    assert WAITED not in free.figures.time_s
    assert skewed.figures.time_s[WAITED] == pytest.approx(1e-4)
    assert skewed.step_time_s == pytest.approx(free.step_time_s + 1e-4)
    assert sum(skewed.figures.time_s.values()) == pytest.approx(skewed.step_time_s)
    assert sum(c.count for c in skewed.figures.collectives) > 10


def test_where_waiting_costs_more_than_cutting_saves_nobody_waits() -> None:
    whole = planned(1.0)
    assert WAITED not in whole.figures.time_s
    assert whole.figures.forward_flops == pytest.approx(2 * planned(0.0).figures.forward_flops, rel=0.01)


def test_collectives_inside_a_unit_wait_each() -> None:
    """Of a loss over a sharded vocabulary, say."""
    free, skewed = (
        Builder(measure(traced("mlp").program), Setting(mesh=MeshSpec.of("2"), hardware=replace(toy_hardware(), skew_s=skew_s)))
        for skew_s in (0.0, 1e-3)
    )
    inside = [Collective(ALL_REDUCE, "gpu", 1024)] * 3
    assert sum(skewed.links_s(inside)) == pytest.approx(sum(free.links_s(inside)) + 3e-3)


def stops_for(way: str) -> float:
    """How often one device stands still for others, over the collectives of its step."""
    emitted, hardware, skew_s = known_way("gpt2", "2", way), replace(load("cpu"), overlap=1.0), 1e-5
    before, after = simulate(emitted, hardware), simulate(emitted, replace(hardware, skew_s=skew_s))
    sent = sum(event.track == "gpu" for event in before.events)
    return (after.step_s - before.step_s) / skew_s / sent


def test_the_clock_waits_where_nothing_hides_it() -> None:
    """What tensor parallel sends is read at once; what FSDP sends is under way while something else is computed."""
    assert stops_for("fsdp") < 0.3 < 0.6 < stops_for("tp") <= 1
