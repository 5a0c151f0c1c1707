"""Tokens that travel on real processes: an ordinary training loop equals that of the serial model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import autopar
from autopar.ir.mesh import MeshSpec
from autopar.ir.plan import Plan
from tests.hardware_toy import toy_hardware
from tests.planned import GAP, TIME_LIMIT_S
from tests.processes import run_processes
from tests.test_gloo import trained_as_serial
from tests.zoo import ZOO


def built(load: str) -> tuple[nn.Module, dict[str, Any]]:
    """In float64. Where the load is skewed, routers prefer the first two experts, and some choose nothing else."""
    model, kwargs = ZOO["mixtral"].build(batch=4, seq=8)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if load == "skewed" and name.endswith("gate.weight"):
                parameter[:2] *= 20
                parameter[2:] *= 0.1
    return model.double(), kwargs


@pytest.mark.slow
@pytest.mark.parametrize("load", ["random", "skewed"])
@pytest.mark.parametrize("mesh", ["2", "2x2"])
def test_training_on_processes_equals_serial(mesh: str, load: str, tmp_path: Path) -> None:
    model, kwargs = built(load)
    constraints = autopar.Constraints(pins=["op=experts: expert=*"])
    search: dict[str, Any] = {"hardware": toy_hardware(), "gap": GAP, "time_limit_s": TIME_LIMIT_S}
    plan = autopar.plan(model, mesh, kwargs=kwargs, constraints=constraints, **search)
    plan.save(tmp_path / "plan.json")
    run_processes(MeshSpec.of(mesh).devices, train_both, str(tmp_path / "plan.json"), load)


def train_both(rank: int, path: str, load: str) -> None:
    trained_as_serial(*built(load), Plan.load(path))
