"""What runs beside the computation: the option, and that the parts of a step add up to it either way."""

from __future__ import annotations

import pytest

import autopar
from tests.hardware_toy import toy_hardware
from tests.models import mlp

HARDWARE = toy_hardware(link_bytes_per_s=1e9)


def planned(overlap: bool) -> autopar.Plan:
    model, kwargs = mlp(device="meta", batch=64)
    return autopar.plan(model, "2", kwargs=kwargs, hardware=HARDWARE, overlap=overlap)


def test_overlap_saves_time_and_parts_add_up() -> None:
    beside, after = planned(True), planned(False)
    assert beside.step_time_s < after.step_time_s
    assert beside.figures.time_s["overlapped"] < 0
    assert "overlapped" not in after.figures.time_s
    for plan in (beside, after):
        assert sum(plan.figures.time_s.values()) == pytest.approx(plan.step_time_s)
