"""A module with every kind of state, and plans for it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from autopar.api import plan_program
from autopar.codegen.emit import emit
from autopar.codegen.module import ParallelModule
from autopar.ir.mesh import MeshSpec
from autopar.ir.plan import Plan
from autopar.tracer import trace
from tests.hardware_toy import toy_hardware

HIDDEN, BATCH = 16, 8


class Stateful(nn.Module):
    """Tied, frozen and unused parameters; a buffer that is written, one that is not, one that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(4, 4)
        self.first = nn.Linear(HIDDEN, HIDDEN)
        self.norm = nn.LayerNorm(HIDDEN)
        self.second = nn.Linear(HIDDEN, HIDDEN)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.full((HIDDEN,), 0.5), requires_grad=False)
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("shift", torch.ones(HIDDEN))
        self.register_buffer("table", torch.arange(HIDDEN, dtype=torch.float32), persistent=False)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.steps.add_(1)
        hidden = torch.relu(self.norm(self.first(x + self.table / HIDDEN)))
        return {"loss": (self.second(hidden) * self.scale + self.shift).square().mean() * (1 + 0.1 * self.steps)}


def batch_of(step: int) -> dict[str, torch.Tensor]:
    """The global batch of a step, float64."""
    return {"x": torch.randn(BATCH, HIDDEN, generator=torch.Generator().manual_seed(step), dtype=torch.float64)}


def build(seed: int = 0) -> Stateful:
    torch.manual_seed(seed)
    return Stateful().double()


def save_plan(mesh: str, path: Path) -> Plan:
    program = trace(build(), (), batch_of(0))
    plan, _, _ = plan_program(program, MeshSpec.of(mesh), hardware=toy_hardware(), time_limit_s=8)
    plan.save(path)
    return plan


def parallel_of(model: nn.Module, path: Path | str) -> ParallelModule:
    """The module under a saved plan, on all processes."""
    plan = Plan.load(path)
    return ParallelModule(emit(trace(model, (), batch_of(0)), plan), model, mesh_of(plan.mesh))


def mesh_of(spec: MeshSpec) -> DeviceMesh:
    return init_device_mesh("cpu", spec.sizes, mesh_dim_names=spec.names)


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    """Losses of an ordinary loop."""
    losses = []
    for step in steps:
        loss = module(**batch_of(step))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
