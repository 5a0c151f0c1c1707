"""Plans are found again by all that they depend on, and by nothing less; damaged entries are searched again."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import autopar
from autopar.api import aims_of
from autopar.cache.store import cache_folder
from autopar.ir.constraints import NO_CONSTRAINTS, Constraints
from autopar.ir.mesh import MeshSpec
from autopar.ir.placement import Placement
from autopar.ir.plan import Plan
from autopar.ops.tables import USER_RULES
from autopar.ops.user_rules import op_rule
from autopar.planning.cache import PlanCache, remembered
from autopar.planning.key import code, key_of
from autopar.planning.planner import Aims, Planner
from autopar.tracer import trace
from tests.hardware_toy import toy_hardware
from tests.models import MLP, mlp
from tests.planned import planned, traced

MESH = MeshSpec.of("2")


def aims() -> Aims:
    return aims_of(toy_hardware(), "adamw", 8.0, 0.02, True, NO_CONSTRAINTS)


def planner(model: nn.Module | None = None, given: Aims | None = None) -> Planner:
    program = traced("mlp").program if model is None else trace(model, (), mlp()[1], name="mlp")
    return Planner(program, given or aims())


def never() -> Plan:
    raise AssertionError("searched again")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOPAR_CACHE_DIR", str(tmp_path / "plans"))
    return tmp_path / "plans"


@pytest.fixture(scope="module")
def plan() -> Plan:
    return planned("mlp", "2")[0]


def test_the_second_time_nothing_is_searched(folder: Path, plan: Plan) -> None:
    assert remembered(planner(), MESH, None, lambda: plan) is plan
    found = remembered(planner(), MESH, None, never)
    assert found.to_json() == plan.to_json()
    with pytest.raises(AssertionError, match="searched again"):
        remembered(planner(), MESH, None, never, use=False)


class Doubled(MLP):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        return super().forward(2 * x, y)


class Renamed(nn.Module):
    """The same ops in the same order, of modules with other names: constraints and plans speak of these."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = MLP(2, 64).blocks, nn.Linear(64, 1)

    forward = MLP.forward

    @property
    def blocks(self) -> nn.ModuleList:
        return self.layers


def test_whatever_differs_has_another_key() -> None:
    usual, own = planner(), aims()
    others = {
        "code": key_of(planner(Doubled(2, 64)), MESH, None),
        "names": key_of(planner(Renamed()), MESH, None),
        "depth": key_of(planner(MLP(3, 64)), MESH, None),
        "mesh": key_of(usual, MeshSpec.of("4"), None),
        "names of axes": key_of(usual, MeshSpec.of("data=2"), None),
        "links": key_of(usual, MeshSpec.of("gpu=2@nvlink"), None),
        "budget": key_of(usual, MESH, 2**20),
        "micro-batches": key_of(Planner(usual.program, own, micro_batches=2), MESH, None),
        "hardware": key_of(planner(given=replace(own, hardware=replace(own.hardware, launch_s=1.0))), MESH, None),
        "gap": key_of(planner(given=replace(own, gap=0.5)), MESH, None),
        "constraints": key_of(planner(given=replace(own, constraints=Constraints(recompute="never"))), MESH, None),
        "resting": key_of(planner(given=replace(own, resting={"head.weight": Placement(("I",))})), MESH, None),
    }
    op_rule("b i, b i -> ")(torch.ops.aten.mse_loss.default)
    try:
        others["rules"] = key_of(usual, MESH, None)
    finally:
        del USER_RULES[torch.ops.aten.mse_loss.default]
    keys = [key_of(usual, MESH, None), *others.values()]
    assert len(set(keys)) == len(keys)
    assert key_of(planner(MLP(2, 64)), MESH, None) == keys[0]


def test_a_key_is_the_same_in_another_process() -> None:
    script = "from tests.planning.test_cache import *; print(key_of(planner(), MESH, None), code())"
    seed = {"PYTHONHASHSEED": "7", "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | seed, check=True)
    assert done.stdout.split() == [key_of(planner(), MESH, None), code()]


@pytest.mark.parametrize("damage", ["truncated", "edited", "empty", "no text", "another format"])
def test_a_damaged_entry_is_written_anew(damage: str, folder: Path, plan: Plan, caplog: pytest.LogCaptureFixture) -> None:
    remembered(planner(), MESH, None, lambda: plan)
    (entry,) = folder.iterdir()
    text = entry.read_text()
    broken = {
        "truncated": text[: len(text) // 2],
        "edited": text.replace('"gap"', '"gab"'),
        "empty": "",
        "another format": "autopar-cache 0\n{}",
    }
    entry.write_bytes(b"\xff\xfe\x00" if damage == "no text" else broken[damage].encode())
    assert remembered(planner(), MESH, None, lambda: plan) is plan
    assert "damaged" in caplog.text
    assert entry.read_text() == text
    remembered(planner(), MESH, None, never)


def test_what_was_not_used_for_the_longest_time_goes_first(tmp_path: Path, plan: Plan) -> None:
    size = len(plan.to_json())
    cache = PlanCache(folder=tmp_path)
    for age, key in enumerate("abc"):
        cache.put(key, plan.to_json())
        os.utime(cache.path(key), ns=(age, age))
    assert cache.find("a") is not None  # used again
    cache = PlanCache(folder=tmp_path, limit_bytes=3 * size)
    cache.put("d", plan.to_json())
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["a", "d"]
    PlanCache(folder=tmp_path, limit_bytes=1).put("e", plan.to_json())
    assert [path.stem for path in tmp_path.iterdir()] == ["e"]


def test_a_folder_that_cannot_be_written_costs_a_notice(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("AUTOPAR_CACHE_DIR", str(tmp_path / "file"))
    assert remembered(planner(), MESH, None, lambda: plan) is plan
    assert "cannot keep the plan" in caplog.text


def test_where_the_folder_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPAR_CACHE_DIR", "")
    assert cache_folder() is None
    monkeypatch.delenv("AUTOPAR_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder() == Path("/caches/autopar")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "autopar"


def test_plan_uses_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, kwargs = mlp()
    found = autopar.plan(model, "2", kwargs=kwargs, hardware=toy_hardware(), gap=0.1)
    monkeypatch.setattr(Planner, "find", lambda *_, **__: never())
    assert autopar.plan(model, "2", kwargs=kwargs, hardware=toy_hardware(), gap=0.1) == found
    with pytest.raises(AssertionError, match="searched again"):
        autopar.plan(model, "2", kwargs=kwargs, hardware=toy_hardware(), gap=0.1, cache=False)
    with pytest.raises(AssertionError, match="searched again"):
        autopar.plan(model, "2", kwargs=kwargs, hardware=toy_hardware(), gap=0.2)
