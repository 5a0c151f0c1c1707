"""What a mixture of experts costs, counted on the graphs that run: forward and backward, whole and cut."""

from __future__ import annotations

import pytest
import torch

from autopar.ir.experts import EXPERTS
from autopar.ops.flops import node_flops
from autopar.ops.joint import TensorLike, trace_joint
from autopar.ops.proof import Call, prove, unit_of
from autopar.ops.sharded.layers import experts_of_axes

TOKENS, HIDDEN, WIDTH, COUNT, CHOICES = 24, 16, 32, 4, 2
ROWS = TOKENS * CHOICES
PRODUCTS = 2 * ROWS * HIDDEN * 2 * WIDTH + 2 * ROWS * WIDTH * HIDDEN
"""Gate and up, and down, of each row once; a multiply-add is two."""


def flops(graph: torch.fx.Graph, experts: int) -> tuple[int, int]:
    """Forward and backward."""
    inputs = [
        TensorLike(shape=shape, dtype=dtype, needs_grad=dtype.is_floating_point)
        for shape, dtype in (
            ((TOKENS, HIDDEN), torch.bfloat16),
            ((TOKENS, CHOICES), torch.int64),
            ((TOKENS, CHOICES), torch.float32),
            ((experts, 2, WIDTH, HIDDEN), torch.bfloat16),
            ((experts, HIDDEN, WIDTH), torch.bfloat16),
        )
    ]
    count = len(graph.find_nodes(op="placeholder"))
    inputs += [TensorLike(shape=(), dtype=torch.int64, needs_grad=False)] * (count - len(inputs))
    joint = trace_joint(graph, inputs, [True])
    return sum(map(node_flops, joint.forward)), sum(map(node_flops, joint.backward))


def graph_of(target: object, coordinates: int, *more: object) -> torch.fx.Graph:
    graph = torch.fx.Graph()
    operands = [graph.placeholder(f"x{i}") for i in range(5)]
    at = tuple(graph.placeholder(f"at{i}") for i in range(coordinates))
    graph.output((graph.call_function(target, (*operands, "silu", *more, *([at] if at else []))),))  # type: ignore[arg-type]
    return graph


def test_products_of_each_row_once_and_twice_in_backward() -> None:
    assert flops(graph_of(EXPERTS, 0), COUNT) == (PRODUCTS, 2 * PRODUCTS)


@pytest.mark.parametrize("axes", [(("a", 2),), (("a", 2), ("b", 2))], ids=str)
def test_cut_experts_cost_their_even_share(axes: tuple[tuple[str, int], ...]) -> None:
    parts = 2 ** len(axes)
    assert flops(graph_of(experts_of_axes, len(axes), axes), COUNT // parts) == (PRODUCTS / parts, 2 * PRODUCTS / parts)


@pytest.mark.parametrize("activation", ["silu", "clamped:1.7:0.5"])
def test_biases_are_added_once_however_it_is_cut(activation: str) -> None:
    """All strategies on two axes: over tokens, experts, both, and the hidden dim that the second bias does not have."""
    torch.manual_seed(0)
    shapes = ((4, 8, 6), (4, 8, 2), (4, 2, 8, 6), (4, 10, 8), (4, 2, 8), (4, 10))
    x, scale, up, down, up_bias, down_bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes)
    index = torch.randint(0, 4, (4, 8, 2))
    biases = {"up_bias": up_bias, "down_bias": down_bias}
    assert prove(*unit_of([Call(EXPERTS, (x, index, scale, up, down, activation), biases)]), (2, 2)) == 49
