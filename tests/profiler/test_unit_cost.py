"""Costs of units, shared between units of one structure."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autopar.profiler.model_cost import measure
from autopar.tracer import trace


class Routed(nn.Module):
    """Two equal layers, the result of one of which is only looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.router, self.last = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(y + self.router(y).detach()).square().mean()  # type: ignore[no-any-return]


def test_a_unit_without_gradient_shares_no_cost_with_one_that_has() -> None:
    """They read the same, but backward of the one reads nothing."""
    cost = measure(trace(Routed(), (torch.randn(8, 4),)))
    reads = {m.unit.name: m.cost.reads for m in cost.regions["model"]}
    assert reads["router_linear"] == ()
    assert reads["last_linear"] == (("operand", 0), ("operand", 1))
