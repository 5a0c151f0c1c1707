"""A model whose middle is code that cannot be traced: a function and a module class, each with a rule."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import autopar
from autopar.ops.collectives import reduce_replicate


@autopar.op_rule("t k!, n k! -> t n")
def routed(x: Tensor, weight: Tensor, sign: float = -1.0) -> Tensor:
    """Rows that begin with a negative number take another way: a branch on data."""
    return torch.stack([weight @ row if row[0].item() > 0 else sign * (weight @ row).sin() for row in x])


def cut_hidden(
    self: Gated, x: Tensor, gate: Tensor, up: Tensor, down: Tensor, offset: Tensor, *, axes: Sequence[tuple[str, int]],
    coordinates: Sequence[Tensor],
) -> Tensor:  # fmt: skip
    """`Gated` with n cut: a summand of the result, but for the offset, which is there once, and the norm, which is over all."""
    hidden = (x @ gate.T).clamp(min=self.floor) * (x @ up.T)
    square = hidden.square().sum(-1, keepdim=True)
    for axis, size in axes:
        square = reduce_replicate(square, axis, size)
    first = ~torch.stack(list(coordinates)).any()
    return hidden / (1 + square).sqrt() @ down.T + offset * first


@autopar.op_rule("b* k!, n k!, n k!, m n, m -> b* m", params=("gate", "up", "down.weight", "offset"), sharded={"n": cut_hidden})
class Gated(nn.Module):
    """down (g / sqrt(1 + |g|²)) + offset with g = max(gate x, floor) · up x; the code asks for the value of a tensor."""

    offset: Tensor

    def __init__(self, width: int, hidden: int, floor: float = -0.5) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.randn(hidden, width) / 4)
        self.up = nn.Parameter(torch.randn(hidden, width) / 4)
        self.down = nn.Linear(hidden, width, bias=False)
        self.register_buffer("offset", torch.linspace(-1, 1, width))
        self.floor = floor

    def forward(self, x: Tensor) -> Tensor:
        hidden = (x @ self.gate.T).clamp(min=self.floor) * (x @ self.up.T)
        if float(hidden.detach().abs().max()) > 1e6:
            hidden = hidden.clamp(max=1e6)
        return self.down(hidden / (1 + hidden.square().sum(-1, keepdim=True)).sqrt()) + self.offset


class Mixed(nn.Module):
    """Linear, function, blocks with a `Gated` each, and a head that is tied to the function's weight; returns a loss."""

    def __init__(self, width: int = 16, hidden: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.layers = nn.ModuleList(Gated(width, hidden) for _ in range(depth))
        self.head = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = routed(self.first(x), self.head.weight)
        for layer in self.layers:
            x = x + layer(x)
        loss: Tensor = self.head(x).square().mean()
        return loss


def mixed(**options: int) -> tuple[Mixed, dict[str, Tensor]]:
    """The model, and a batch for it."""
    torch.manual_seed(0)
    return Mixed(**options), {"x": torch.randn(8, 16)}
