"""What must be redone is redone: by a rule, or since the model's own code runs it under `torch.utils.checkpoint`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import autopar
from autopar.api import plan_program
from autopar.ir.mesh import MeshSpec
from autopar.ir.plan import Plan, PlannedRegion
from autopar.planning import advice
from autopar.tracer import trace
from tests.hardware_toy import toy_hardware

HIDDEN = 16


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, 2 * HIDDEN), nn.Linear(2 * HIDDEN, HIDDEN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Model(nn.Module):
    def __init__(self, *, checkpointed: bool, reentrant: bool = False) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Linear(HIDDEN, HIDDEN), nn.ModuleList(Block() for _ in range(3))
        self.checkpointed, self.reentrant = checkpointed, reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant) if self.checkpointed else block(x)
        return x.square().mean()


X = torch.randn(8, 4, HIDDEN, generator=torch.Generator().manual_seed(0))


def planned(*, checkpointed: bool = False, memory: int | None = None, **fields: Any) -> tuple[Plan, PlannedRegion]:
    options: dict[str, Any] = {"hardware": toy_hardware(), "gap": 0.02, "time_limit_s": 10.0, "memory": memory}
    program = trace(Model(checkpointed=checkpointed), (X,))
    plan = plan_program(program, MeshSpec.of("2x2"), constraints=autopar.Constraints(**fields), **options)[0]
    return plan, plan.regions["blocks.*"]


def made_inside(region: PlannedRegion) -> set[str]:
    """What the units of a layer make, but for the last one's, which is the next layer's input."""
    return {node for unit in region.units.values() for node in unit.nodes} - {"add"}


def kept(region: PlannedRegion) -> set[str]:
    return {k.tensor for c in region.classes for k in c.kept}


def test_nothing_is_redone_where_memory_is_no_matter() -> None:
    _, region = planned()
    assert kept(region) & made_inside(region)
    assert not any(c.redone for c in region.classes)


@pytest.mark.parametrize("ask", [{"pins": ["blocks.*: recompute"]}, {"bans": ["blocks.*: keep"]}, {"checkpointed": True}])
def test_a_whole_layer(ask: dict[str, Any]) -> None:
    plan, region = planned(**ask)
    assert not kept(region) & made_inside(region)
    assert not any(c.kept_internals for c in region.classes)
    assert all("up_addmm" in c.redone or "up_linear" in c.redone for c in region.classes), region.classes
    assert plan.figures.redone_flops > 0
    assert plan.budget_bytes is None
    assert plan.step_time_s > planned()[0].step_time_s


def test_one_module_of_a_layer() -> None:
    _, region = planned(pins=["blocks.*.norm: recompute"])
    assert all("norm_layer_norm" in c.redone for c in region.classes)
    assert not any("norm_layer_norm" in c.kept_internals for c in region.classes)
    assert not any({"up_linear", "down_linear"} & set(c.redone) for c in region.classes)


def test_checkpoints_of_the_model_can_be_overruled() -> None:
    for fields in ({"checkpoints": "free"}, {"recompute": "never"}, {"pins": ["blocks.*: keep"]}):
        _, region = planned(checkpointed=True, **fields)
        assert not any(c.redone for c in region.classes), fields


def test_under_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advice, "what_would_help", lambda *_: ())
    ample, _ = planned(pins=["blocks.*: recompute"])
    _, region = planned(pins=["blocks.*: recompute"], memory=int(ample.peak_bytes * 1.01))
    assert not kept(region) & made_inside(region)
    with pytest.raises(autopar.errors.BudgetError) as caught:
        planned(pins=["blocks.*: recompute"], memory=1000)
    assert caught.value.smallest_bytes > 1000


@pytest.mark.parametrize("reentrant", [False, True])
def test_plans_of_checkpointed_models_train_as_the_serial_run(reentrant: bool) -> None:
    model = Model(checkpointed=True, reentrant=reentrant)
    report = autopar.verify(model, "2x2", (X,), hardware=toy_hardware(), gap=0.02, time_limit_s=10, steps=2)
    assert any(c.redone for c in report.plan.regions["blocks.*"].classes)
    assert report.ok, report.tensors[:3]
