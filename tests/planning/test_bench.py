"""Settings planned in one process: each plan is that of `autopar.plan`, and a model is loaded and measured once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import autopar
from autopar.errors import InputError
from autopar.ir.plan import Plan
from autopar.models import Loaded
from autopar.planning import planner as planning
from autopar.planning.bench import Bench, Finished
from autopar.planning.runs import Run, Setting
from tests.models import mlp

KIB = 2**10


class Branches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum() if x.max() > 0 else x.mean()


def load(setting: Setting) -> Loaded:
    if setting.model == "nowhere":
        raise InputError("no file 'nowhere'")
    if setting.model == "branches":
        return Loaded(name="branches", model=Branches(), kwargs={"x": torch.ones(4)})
    if setting.model == "broken":
        raise RuntimeError("out of luck")
    model, kwargs = mlp(batch=setting.batch or 8)
    return Loaded(name="mlp", model=model, kwargs=kwargs, notices=("labels were made up",))


def unsigned(plan: Plan, setting: Setting) -> Plan:
    return plan


def setting(**changes: Any) -> Setting:
    return Setting(**{"model": "mlp", "mesh": "2", "batch": 8} | changes)


@pytest.fixture
def bench() -> Bench:
    return Bench(load=load, sign=unsigned, versions=lambda: {"autopar": "9"}, cache=False)


def test_each_plan_is_that_of_its_own_search(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    measured, loaded, measure = [], [], planning.measure

    def counted(program: Any) -> Any:
        measured.append(program)
        return measure(program)

    def counting(given: Setting) -> Loaded:
        loaded.append(given.batch)
        return load(given)

    monkeypatch.setattr(planning, "measure", counted)
    bench.load = counting
    settings = [
        setting(batch=batch, hardware=hardware, mesh=mesh, memory_bytes=memory)
        for batch in (8, 16)
        for hardware in ("cpu", "h100-sxm")
        for mesh in ("2", "4")
        for memory in (None, 4000 * KIB)
    ]
    found = [bench(each) for each in settings]
    assert (loaded, len(measured)) == ([8, 16], 2)
    assert {one.run.outcome for one in found} == {"fits"}
    for each, one in list(zip(settings, found, strict=True))[::5]:
        model, kwargs = mlp(batch=each.batch or 0)
        options = {"memory": each.memory_bytes, "hardware": each.hardware, "cache": False, "name": "mlp"}
        alone = autopar.plan(model, each.mesh, kwargs=kwargs, **options)  # type: ignore[arg-type]
        assert one.plan == alone.to_json()
        assert_tells(one.run, alone, each.batch or 0)
        assert one.notices == ("labels were made up",)


def assert_tells(run: Run, plan: Plan, batch: int) -> None:
    assert (run.status, run.step_time_s, run.lower_bound_s) == (plan.status, plan.step_time_s, plan.lower_bound_s)
    assert (run.gap, run.peak_bytes, run.time_s) == (plan.gap, plan.peak_bytes, plan.figures.time_s)
    assert run.samples_per_s == batch / plan.step_time_s
    assert run.took_s > 0
    assert (run.versions, run.remembered) == ({"autopar": "9"}, False)


def test_what_has_no_plan_says_why(bench: Bench) -> None:
    def outcome(found: Finished) -> tuple[str, bool]:
        assert found.plan is None
        assert found.run.step_time_s is None
        assert found.run.message
        return found.run.outcome, found.counts

    tight = bench(setting(memory_bytes=10 * KIB))
    assert outcome(tight) == ("does not fit", True)
    assert tight.run.smallest_bytes is not None
    assert f"{tight.run.smallest_bytes} bytes" in tight.run.message
    assert outcome(bench(setting(mesh="31"))) == ("impossible", True)
    assert outcome(bench(setting(mesh="a=2@rope"))) == ("impossible", True)
    limits = autopar.Constraints.from_yaml('pins: ["*: tensor=node"]')
    assert outcome(bench(setting(constraints=limits))) == ("impossible", True), "a mesh without that axis"
    assert outcome(bench(setting(model="branches"))) == ("error", True)
    assert outcome(bench(setting(model="nowhere"))) == ("error", False), "no answer to what was asked"


def test_a_bug_is_an_answer_too(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    found = bench(setting(model="broken"))
    assert (found.run.outcome, found.run.message) == ("error", "RuntimeError: out of luck")
    assert "Traceback" in capsys.readouterr().err


def test_an_error_of_the_model_is_found_once(bench: Bench) -> None:
    calls = []

    def counting(given: Setting) -> Loaded:
        calls.append(given)
        return load(given)

    bench.load = counting
    messages = {bench(setting(model="branches", mesh=mesh)).run.message for mesh in ("2", "4")}
    assert len(calls) == len(messages) == 1


def test_a_plan_that_was_found_before_says_so(bench: Bench) -> None:
    bench.cache = True
    first, again = (bench(setting(batch=24)) for _ in range(2))
    assert (first.run.remembered, again.run.remembered) == (False, True)
    assert first.plan == again.plan
