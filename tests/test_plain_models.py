"""Networks of plain torch, by whatever they read and write by position, on all ranks against the serial model."""

from __future__ import annotations

import pytest

import autopar
from benchmarks.coverage import roles
from tests.hardware_toy import toy_hardware
from tests.planned import GAP, TIME_LIMIT_S
from tests.zoo_plain import PLAIN


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["2", "2x2"])
@pytest.mark.parametrize("name", PLAIN)
def test_all_ranks_equal_the_serial_run(name: str, mesh: str) -> None:
    model, kwargs = PLAIN[name]()
    plan = autopar.plan(model, mesh, kwargs=kwargs, hardware=toy_hardware(), gap=GAP, time_limit_s=TIME_LIMIT_S)
    assert {c.axis for c in plan.figures.collectives if c.count} == set(plan.mesh.names), "an axis without communication"
    assert roles(plan)["cut"], "a plan that cuts nothing proves nothing"
    report = autopar.verify(model, mesh, kwargs=kwargs, plan=plan)
    assert report.ok, report.tensors[:3]
