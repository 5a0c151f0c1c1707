"""What stands between the two products of an expert, with its gradient: functions of what the first product made.

Where experts have a gate, the first product makes the gate and what it lets through, one after the other. "clamped:A:L" is the
gate of GPT-OSS: with g = min(gate, L) and v within -L and L, g sigmoid(A g) (v + 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

aten = torch.ops.aten
CLAMPED = "clamped:"

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": torch.nn.functional.silu,
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
}
"""Of one argument, with a gate or without."""

SLOPES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "silu": aten.silu_backward,
    "relu": lambda grad, x: aten.threshold_backward(grad, x, 0),
    "gelu": aten.gelu_backward,
    "gelu_tanh": lambda grad, x: aten.gelu_backward(grad, x, approximate="tanh"),
}
"""Gradients of `ACTIVATIONS`, from that of the result and the argument."""


def constants(activation: str) -> tuple[float, float]:
    """A and L of "clamped:A:L"."""
    _, alpha, limit = activation.split(":")
    return float(alpha), float(limit)


def activated(wide: Tensor, activation: str, gated: bool) -> Tensor:
    """[rows, n] of [rows, n], or of [rows, 2 n] with a gate."""
    if not gated:
        return ACTIVATIONS[activation](wide)
    gate, value = torch.split(wide, wide.shape[1] // 2, 1)
    if not activation.startswith(CLAMPED):
        return ACTIVATIONS[activation](gate) * value
    alpha, limit = constants(activation)
    gate = gate.clamp(max=limit)
    return gate * torch.sigmoid(alpha * gate) * (value.clamp(-limit, limit) + 1)


def activated_backward(grad: Tensor, wide: Tensor, activation: str, gated: bool) -> Tensor:
    """The gradient of `wide` from that of the result."""
    if not gated:
        return SLOPES[activation](grad, wide)
    gate, value = torch.split(wide, wide.shape[1] // 2, 1)
    if not activation.startswith(CLAMPED):
        return torch.cat([SLOPES[activation](grad * value, gate), grad * ACTIVATIONS[activation](gate)], 1)
    alpha, limit = constants(activation)
    low = gate.clamp(max=limit)
    sigmoid = torch.sigmoid(alpha * low)
    value_grad = (grad * low * sigmoid).masked_fill(value.abs() > limit, 0)
    grad = grad * (value.clamp(-limit, limit) + 1)
    gate_grad = (grad * sigmoid * (1 + alpha * low * (1 - sigmoid))).masked_fill(gate > limit, 0)
    return torch.cat([gate_grad, value_grad], 1)
