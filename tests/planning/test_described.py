"""What descriptions say beyond rooflines and links: that devices wait for each other, and how fast optimizers' steps are."""

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


def builders(**described: float) -> tuple[Builder, Builder]:
    """On hardware that does not say so, and on hardware that does."""
    cost, plain = measure(traced("mlp").program), toy_hardware()
    one, other = (
        Builder(cost, Setting(mesh=MeshSpec.of("2"), hardware=hardware)) for hardware in (plain, replace(plain, **described))
    )
    return one, other


def test_optimizers_steps_have_a_bandwidth_of_their_own() -> None:
    slow, fast = (b.problem().state for b in builders(update_bytes_per_s=10 * toy_hardware().bytes_per_s))
    assert any(seconds for group in slow.values() for seconds in group.step_s_at.values())
    for name, group in slow.items():
        assert {p: s / 10 for p, s in group.step_s_at.items()} == pytest.approx(fast[name].step_s_at)


def test_collectives_inside_a_unit_wait_each() -> None:
    """Of a loss over a sharded vocabulary, say."""
    free, skewed = builders(skew_s=1e-3)
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
