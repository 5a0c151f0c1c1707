"""Models with custom ops that nobody wrote a rule for: planned, verified, saved, loaded and emitted again."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import autopar
from autopar.codegen.emit import emit
from autopar.errors import PlanError
from autopar.ir.mesh import MeshSpec
from autopar.ir.plan import Plan
from autopar.ops import rows
from autopar.ops.discover import Finding
from autopar.ops.rule import OpRule
from autopar.ops.tables import USER_RULES
from autopar.planning.key import key_of
from autopar.planning.planner import Aims, Planner
from autopar.render import print_plan
from autopar.tracer import trace
from tests.hardware_toy import toy_hardware
from tests.ops import custom_ops as custom

ROWS = {
    "autopar_tests.look_up.default": "a! b, c d -> c d b",
    "autopar_tests.unit_norm.default": "a b c!, d! -> a b e!",
    "autopar_tests.project.default": "a b c, d c -> a b d",
    "autopar_tests.with_energy.default": "a b c, c -> a b c, (); a also summed; b also summed; c also summed",
    "autopar_tests.ordered.default": "a! b c -> d! b c",
    "autopar_tests.tilted.default": "a! b c -> d! b c; linear",
}


class Model(nn.Module):
    """Rows by index, a norm, an MLP of custom products, two results, a sort, a backward that needs all: returns the loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Parameter(torch.randn(12, 16))
        self.scale, self.gain = nn.Parameter(torch.ones(16)), nn.Parameter(torch.ones(16))
        self.up, self.down = nn.Parameter(torch.randn(64, 16) / 4), nn.Parameter(torch.randn(16, 64) / 8)

    def forward(self, ids: Tensor, target: Tensor) -> Tensor:
        x = custom.look_up(self.table, ids)
        y = torch.tanh(custom.project(custom.unit_norm(x, self.scale), self.up))
        x, energy = custom.with_energy(x + custom.project(y, self.down), self.gain)
        return ((custom.tilted(custom.ordered(x)) - target) ** 2).mean() + 0.01 * energy  # type: ignore[no-any-return]


@lru_cache
def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {"ids": torch.randint(12, (8, 4), generator=generator), "target": torch.randn(8, 4, 16, generator=generator)}


@lru_cache
def planned(mesh: str) -> Plan:
    return autopar.plan(Model(), mesh, kwargs=batch(), hardware=toy_hardware(), cache=False)


@pytest.mark.parametrize("mesh", ["2", "2x2"])
def test_they_are_cut_and_right(mesh: str) -> None:
    plan = planned(mesh)
    (region,) = plan.regions.values()
    cut = [name for name, unit in region.units.items() if any(unit.factors)]
    assert set(region.discovered) <= set(cut), "where cutting always pays, all of them are cut"
    report = autopar.verify(Model(), mesh, kwargs=batch(), plan=plan)
    assert report.ok, report.tensors


def test_the_plan_lists_them() -> None:
    (region,) = planned("2").regions.values()
    assert {rule.op: rule.row for rule in region.discovered.values()} == ROWS
    assert all(rule.reason == "" for rule in region.discovered.values())


def test_tables_show_them() -> None:
    output = io.StringIO()
    print_plan(planned("2"), console=Console(file=output, width=140))
    assert all(text in output.getvalue() for op in ROWS.items() for text in op)


def test_a_saved_plan_is_carried_out_again(tmp_path: Path) -> None:
    planned("2").save(tmp_path / "plan.json")
    plan = Plan.load(tmp_path / "plan.json")
    assert plan == planned("2")
    report = autopar.verify(Model(), "2", kwargs=batch(), plan=plan)
    assert report.ok, report.tensors


def edited(changes: dict[str, Any]) -> Plan:
    """The plan with another list of discovered rows."""
    ((name, region),) = planned("2").regions.items()
    return planned("2").model_copy(update={"regions": {name: region.model_copy(update=changes)}})


def test_a_plan_of_other_rows_is_refused() -> None:
    program = trace(Model(), (), batch())
    ((name, region),) = planned("2").regions.items()
    node, rule = next((n, r) for n, r in region.discovered.items() if "look_up" in r.op)
    other = {**region.discovered, node: rule.model_copy(update={"row": "a b, c d -> c d b"})}
    with pytest.raises(
        PlanError, match=rf"regions\.{name}\.discovered\.{node}: .*\[a b, c d -> c d b\].*\[a! b, c d -> c d b\]"
    ):
        emit(program, edited({"discovered": other}))
    missing = {n: r for n, r in region.discovered.items() if n != node}
    with pytest.raises(PlanError, match=rf"regions\.{name}\.discovered: .*look_up.* at {node} has no rule"):
        emit(program, edited({"discovered": missing}))
    strange = {**region.discovered, "add": rule}
    with pytest.raises(PlanError, match=rf"regions\.{name}\.discovered\.add: .*look_up.* has a rule here"):
        emit(program, edited({"discovered": strange}))


def test_where_an_op_does_not_run_the_plan_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, program = planned("2"), trace(Model(), (), batch())
    nothing = Finding(reason="it does not run here")
    monkeypatch.setattr(rows, "found_for", lambda node: nothing)
    monkeypatch.setattr("autopar.ops.units.found_for", lambda node: nothing)
    with pytest.raises(PlanError, match=r"discovered\..*it does not run here"):
        emit(program, plan)


def test_older_plans_name_none() -> None:
    data = planned("2").model_dump(mode="json")
    for region in data["regions"].values():
        del region["discovered"]
    plan = Plan.model_validate(data)
    assert emit(trace(Model(), (), batch()), plan).plan == plan


def test_plans_found_before_are_of_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of a custom op is no part of the traced program."""
    planner = Planner(trace(Model(), (), batch()), Aims(hardware=toy_hardware()))
    mesh = MeshSpec.of("2")
    before = key_of(planner, mesh, None)
    assert key_of(planner, mesh, None) == before
    nothing = Finding(reason="its code changed")
    monkeypatch.setattr(rows, "found_for", lambda node: nothing)
    monkeypatch.setattr("autopar.ops.units.found_for", lambda node: nothing)
    assert key_of(planner, mesh, None) != before


def test_a_written_rule_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(USER_RULES, custom.look_up, OpRule(kind="embedding", text="v! h, b* -> b* h"))
    program = trace(Model(), (), batch())
    found = [row.op for region in program.regions.values() for row in rows.discovered(region).values()]
    assert sorted(set(found)) == sorted(set(ROWS) - {"autopar_tests.look_up.default"})
