"""The copy of a parameter that is computed with, and gradients that travel in another dtype than the values.

Autograd gives every gradient the dtype of its value. To add up gradients of bfloat16 copies in float32, each such copy, and
each conversion of it, is traced with a carrier beside it: the same steps, on the parameter in the dtype that gradients are to
have. Readers get the value; its gradient is handed, cast once, to the carrier, and goes back through the carrier's steps. What
these compute in forward is read by nobody, and so is no part of the graph.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def computed_in(parameter: Tensor, dtype: torch.dtype, gradient_dtype: torch.dtype) -> Tensor:
    """The parameter in the dtype that is computed with; gradients between here and its readers travel in `gradient_dtype`.

    (As a function of its own it does not see to the latter: `autopar.ops.joint.trace_joint` does.)
    """
    return parameter.to(dtype)


class _Carried(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, carrier: Tensor) -> Tensor:
        ctx.dtype = carrier.dtype
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad.to(ctx.dtype)


class Wide:
    """Values and carriers, while a local graph is traced."""

    def __init__(self) -> None:
        self.values: dict[torch.fx.Node, Tensor] = {}
        self.carriers: dict[torch.fx.Node, Tensor] = {}

    def run(self, node: torch.fx.Node, args: tuple[Any, ...]) -> Tensor:
        """What the cast or conversion `node` makes for its readers. Casts begin, conversions continue."""
        source = node.args[0]
        assert callable(node.target)
        assert isinstance(source, torch.fx.Node)
        if "cast" in node.meta:
            value, carrier = args[0].detach(), args[0].to(node.meta["gradient_dtype"])
            self.carriers[node] = carrier
        else:
            value, carrier = self.values[source], self.carriers[source]
            self.carriers[node] = node.target(carrier, *args[1:])
        with torch.no_grad():
            self.values[node] = node.target(value, *args[1:])
        return cast(Tensor, _Carried.apply(self.values[node], self.carriers[node]))  # type: ignore[no-untyped-call]
