"""A tiny language model in which everything that training loops do makes a difference, and plans for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from autopar.api import plan_program
from autopar.ir.constraints import Constraints
from autopar.ir.mesh import MeshSpec
from autopar.ir.plan import Plan
from autopar.tracer import trace
from tests.hardware_toy import toy_hardware

BATCH, SEQ, HIDDEN, VOCAB = 8, 8, 16, 32
DDP = Constraints(pins=("**: batch=gpu", "**: rest=whole on gpu"))
FSDP = Constraints(pins=("**: batch=gpu", "**: zero3=gpu"))
FREE = Constraints()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.up = nn.Linear(HIDDEN, 2 * HIDDEN)
        self.down = nn.Linear(2 * HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))  # type: ignore[no-any-return]


class Tied(nn.Module):
    """Tokens are read and written with one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, HIDDEN)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(HIDDEN, VOCAB, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor, labels: Tensor) -> dict[str, Tensor]:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        logits = self.head(x)
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


class Normalized(nn.Module):
    """Does one thing in train mode and another in eval mode, and has buffers that only the one writes."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(HIDDEN, 2 * HIDDEN), nn.BatchNorm1d(2 * HIDDEN), nn.Linear(2 * HIDDEN, 1)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"loss": nn.functional.mse_loss(self.down(self.norm(self.up(x)).relu()), y)}


class LowRank(nn.Module):
    """A frozen linear layer and a trained low-rank correction, as `peft` wraps them: B starts at zero there, not here."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + 2.0 * self.lora_B(self.lora_A(x))  # type: ignore[no-any-return]


def tied() -> nn.Module:
    """In float64, with the same weights in every process."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tied().double()


def with_low_rank() -> nn.Module:
    """Everything frozen but the corrections, in both linear layers of each block."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Tied().requires_grad_(False)
        for block in model.blocks:
            block.up, block.down = LowRank(block.up), LowRank(block.down)  # type: ignore[assignment,arg-type]
        return model.double()


def normalized() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Normalized().double()


def points(step: int = 0) -> dict[str, Tensor]:
    x = torch.randn(BATCH, HIDDEN + 1, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return {"x": x[:, 1:].contiguous(), "y": x[:, :1].contiguous()}


def batch(step: int = 0, rows: int = BATCH) -> dict[str, Tensor]:
    tokens = torch.randint(VOCAB, (rows, SEQ + 1), generator=torch.Generator().manual_seed(step))
    return {"tokens": tokens[:, :-1].contiguous(), "labels": tokens[:, 1:].contiguous()}


def plan_for(model: nn.Module, kwargs: Mapping[str, Any], mesh: str = "2", constraints: Constraints = FREE) -> Plan:
    program = trace(model, (), dict(kwargs))
    search: dict[str, Any] = {"hardware": toy_hardware(), "gap": 0.02, "time_limit_s": 3.0, "constraints": constraints}
    return plan_program(program, MeshSpec.of(mesh), **search)[0]


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()
