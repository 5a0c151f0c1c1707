"""`autopar plan` over settings and as a front, and `autopar show` of what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import autopar
from autopar.cli import app
from autopar.errors import PlanError
from autopar.ir.pareto import Pareto
from autopar.ir.timeline import Timeline
from tests.small_plan import costing, small_plan

MODULE = """
import torch
from torch import nn

def linear(batch=4):
    return nn.Linear(8, 2), {"input": torch.zeros(batch, 8)}
"""
GIB = 2**30


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "models.py").write_text(MODULE)
    return f"{tmp_path / 'models.py'}:linear"


def small_front() -> Pareto:
    plans = [costing(peak * GIB, time_s) for peak, time_s in ((1.0, 0.4), (1.5, 0.3), (3.0, 0.2))]
    return Pareto(plans=tuple(plans), complete=True)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """`autopar.plan` and `autopar.pareto` that answer at once; what they were called with."""
    found: list[dict[str, Any]] = []

    def answer(result: Any) -> Any:
        def function(model: Any, mesh: Any, args: Any, kwargs: Any, **options: Any) -> Any:
            found.append({"mesh": mesh, **options})
            return result

        return function

    tried = [
        {"mesh": {"sizes": [8], "names": ["gpu"]}, "outcome": "slower", "lower_bound_s": 0.02, "step_time_s": 0.021},
        {"mesh": {"sizes": [2, 4], "names": ["node", "gpu"]}, "outcome": "chosen", "lower_bound_s": 0.0129},
        {"mesh": {"sizes": [4, 2], "names": ["node", "gpu"]}, "outcome": "does not fit", "reason": "needs 3 GiB"},
    ]
    monkeypatch.setattr(autopar, "plan", answer(small_plan(tried=tried)), raising=False)
    monkeypatch.setattr(autopar, "pareto", answer(small_front()), raising=False)
    return found


def test_a_plan_s_timeline_is_that_of_one_micro_batch(
    model: str, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shapes: list[Any] = []

    def timeline(module: Any, plan: Any, args: Any, kwargs: Any, **options: Any) -> Timeline:
        shapes.append((tuple(kwargs["input"].shape), plan.micro_batches, options))
        return Timeline(tracks=("compute",), events=(), step_s=0.0, waited_s=0.0)

    monkeypatch.setattr(autopar, "plan", lambda *_, **__: small_plan(micro_batches=2))
    monkeypatch.setattr(autopar, "timeline", timeline, raising=False)
    path = tmp_path / "trace.json"
    result = run("plan", model, "--devices", "8", "--global-batch", "64", "--trace", str(path))
    assert result.exit_code == 0, result.output
    assert shapes == [((32, 8), 2, {"hardware": "cpu"})]
    assert json.loads(path.read_text())["traceEvents"]
    assert f"wrote {path}" in result.stderr
    result = run("plan", model, "--mesh", "8", "--trace", str(tmp_path))
    assert (result.exit_code, len(shapes)) == (2, 1)
    assert "is a folder: give a file, as" in result.stderr
    result = run("plan", model, "--mesh", "8", "--pareto", "--trace", str(path))
    assert (result.exit_code, len(shapes)) == (2, 1)
    assert "--trace shows one plan" in result.stderr


def test_overlap_is_an_option(model: str, calls: list[dict[str, Any]]) -> None:
    assert run("plan", model, "--mesh", "2").exit_code == 0
    assert run("plan", model, "--mesh", "2", "--no-overlap").exit_code == 0
    assert [call["overlap"] for call in calls] == [True, False]


def test_devices_and_global_batch_are_passed_on_and_what_was_tried_is_shown(calls: list[dict[str, Any]], model: str) -> None:
    result = run("plan", model, "--devices", "8", "--global-batch", "64", "--memory", "1GiB")
    assert result.exit_code == 0, result.output
    (call,) = calls
    assert (call["mesh"], call["devices"], call["global_batch"], call["memory"]) == (None, 8, 64, "1GiB")
    assert "time_limit_s" not in call, "left to the function, which knows how many settings there are"
    rows = [line.split() for line in result.stdout.splitlines() if line.startswith(("8 ", "2x4 ", "4x2 "))]
    assert [row[0] for row in rows] == ["2x4", "8", "4x2"], "chosen first"
    assert "does not fit: needs 3 GiB" in result.stdout


def test_pareto_prints_writes_and_draws(calls: list[dict[str, Any]], model: str, tmp_path: Path) -> None:
    path, picture = tmp_path / "front.json", tmp_path / "front.png"
    result = run("plan", model, "--mesh", "2x4", "--pareto", "--points", "3", "-o", str(path), "--plot", str(picture))
    assert result.exit_code == 0, result.output
    assert calls[0]["points"] == 3
    saved = Pareto.load(path).plans
    assert {plan.origin.model for plan in saved if plan.origin is not None} == {model}
    assert tuple(plan.model_copy(update={"origin": None}) for plan in saved) == small_front().plans
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert "1.5 GiB" in result.stdout
    assert "-25.0%" in result.stdout
    assert "-50.0%" in result.stdout


def test_precision_is_passed_on(model: str, calls: list[dict[str, Any]]) -> None:
    text = "compute=bfloat16,reduce=float32"
    for more in ((), ("--pareto",)):
        result = run("plan", model, "--mesh", "8", "--precision", text, *more)
        assert result.exit_code == 0, result.output
    assert [call["precision"] for call in calls] == [text, text]
    refused = run("plan", model, "--mesh", "8", "--precision", "compute=int8")
    assert refused.exit_code == 2
    assert "compute='int8' is no floating-point dtype" in refused.output


def test_show_prints_a_front_and_takes_a_plan_out_of_it(tmp_path: Path) -> None:
    front, single = tmp_path / "front.json", tmp_path / "plan.json"
    small_front().save(front)
    assert "3 plans" in run("show", str(front)).stdout
    assert run("show", str(front), "--point", "2", "-o", str(single)).exit_code == 0
    assert autopar.Plan.load(single) == small_front().plans[1]
    result = run("show", str(front), "--point", "4")
    assert (result.exit_code, "has 3 plans: --point 4" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "neither of mesh and devices"),
        (("--mesh", "2", "--devices", "2"), "both of mesh and devices"),
        (("--devices", "0"), "0 devices"),
        (("--devices", "4", "--pareto"), "--pareto is for one mesh"),
        (("--mesh", "4", "--pareto", "--global-batch", "4"), "--pareto is for one mesh"),
        (("--mesh", "4", "--plot", "front.png"), "needs --pareto"),
        (("--mesh", "4", "--global-batch", "10", "--batch", "4"), "10 samples is not divisible by micro-batches of 4"),
        (("--mesh", "4", "--pareto", "--plot", "front.txt"), ".png, .svg, .pdf"),
    ],
)
def test_options_that_do_not_go_together(
    calls: list[dict[str, Any]], model: str, arguments: tuple[str, ...], message: str
) -> None:
    result = run("plan", model, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert calls == []


def test_a_front_is_read_as_strictly_as_a_plan(tmp_path: Path) -> None:
    path = tmp_path / "front.json"
    small_front().save(path)
    text = path.read_text()
    for wrong, message in (
        (text.replace('"version": 1', '"version": 9', 1), "version 9"),
        (text[:-10], "no JSON"),
        (text.replace("autopar-pareto", "autopar-plan", 1), "no autopar front"),
        (small_front().model_copy(update={"plans": small_front().plans[::-1]}).to_json(), "ordered by peak"),
        (small_front().model_copy(update={"plans": ()}).to_json(), "at least one plan"),
    ):
        path.write_text(wrong)
        with pytest.raises(PlanError, match=message):
            Pareto.load(path)
    with pytest.raises(PlanError, match="cannot read"):
        Pareto.load(tmp_path / "none.json")


def test_the_fastest_plan_within_a_budget() -> None:
    front = small_front()
    assert front.within(2 * GIB) == front.plans[1]
    assert front.within(1.5 * GIB) == front.plans[1]
    assert front.within(GIB - 1) is None
