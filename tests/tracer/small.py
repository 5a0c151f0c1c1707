"""Small modules that each show one thing a tracer has to get right."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Tied(nn.Module):
    """Embedding and head share their weight; another parameter is used by nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(16, 8), nn.Linear(8, 16, bias=False)
        self.head.weight = self.embed.weight
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return F.cross_entropy(self.head(self.embed(x)), x)


class Normed(nn.Module):
    """Batch norm in training mode, a counter, a constant, and values under no_grad and behind detach."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.0)
        self.register_buffer("count", torch.zeros(4), persistent=False)

    def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, object]:
        with torch.no_grad():
            shift = (self.linear.weight * 2).sum(0)
        self.count += 1
        y = self.norm(self.linear(x)) + shift + torch.tensor([1.0, 2.0, 3.0, 4.0]) + self.count
        y = self.drop(y) * scale
        return {"loss": (y * y.detach()).sum(), "other": y.sum(), "none": None, "three": 3, "weight": self.linear.weight}


class Block(nn.Module):
    def __init__(self, size: int, activation: nn.Module) -> None:
        super().__init__()
        self.norm, self.linear, self.activation = nn.LayerNorm(size), nn.Linear(size, size), activation

    def forward(self, x: Tensor) -> Tensor:
        return x + self.activation(self.linear(self.norm(x)))


class Stack(nn.Module):
    """Blocks with the given activations after a projection."""

    def __init__(self, *activations: nn.Module) -> None:
        super().__init__()
        self.project = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(Block(8, activation) for activation in activations)

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(x)
        for block in self.blocks:
            x = block(x)
        return x.mean()


class Function(nn.Module):
    """A module of one function of one tensor, and a parameter to train."""

    def __init__(self, function) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x * self.weight)
