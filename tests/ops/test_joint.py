"""Joint tracing: the same graphs as torch's own `make_fx` writes, op by op, and each forward op's origin."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from autopar.ops.joint import Joint, TensorLike, forget_detached, trace_joint
from autopar.ops.sharded.losses import cross_entropy
from autopar.ops.sharded.norms import layer_norm_hidden
from autopar.torch_private import fake_mode

aten = torch.ops.aten
Call = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function, and its arguments: "%3" is the input or result with that number."""


def like(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = True) -> TensorLike:
    return TensorLike(shape=shape, dtype=dtype, needs_grad=grad)


def local_graph(inputs: Sequence[TensorLike], calls: Sequence[Call], outputs: Sequence[int]) -> fx.Graph:
    graph = fx.Graph()
    values = [graph.placeholder(f"input_{i}") for i in range(len(inputs))]
    for function, args in calls:
        values.append(graph.call_function(function, tuple(values[int(a[1:])] if isinstance(a, str) else a for a in args)))
    graph.output(tuple(values[i] for i in outputs))
    return graph


def by_make_fx(graph: fx.Graph, inputs: Sequence[TensorLike], differentiated: Sequence[bool]) -> fx.Graph:
    """Outputs, then gradients of the inputs that want one, of the same graph under torch's own tracer."""
    module = fx.GraphModule(torch.nn.Module(), graph)
    wanted = [n for n, i in enumerate(inputs) if i.needs_grad]
    with fake_mode():
        leaves = [i.empty("cpu").requires_grad_(i.needs_grad) for i in inputs]
        ends = [o for o, d in zip(module(*leaves), differentiated, strict=True) if d]
        tangents = [torch.empty_like(end).contiguous() for end in ends]

        def forward_and_backward(*flat: Tensor) -> Any:
            given, upstream = flat[: len(leaves)], list(flat[len(leaves) :])
            outputs = fx.Interpreter(module).run(*given)
            ends = [o for o, d in zip(outputs, differentiated, strict=True) if d]
            return outputs, torch.autograd.grad(ends, [given[n] for n in wanted], upstream, allow_unused=True)

        traced = make_fx(forward_and_backward, tracing_mode="real")(*leaves, *tangents).graph
    forget_detached(traced)
    traced.eliminate_dead_code(lambda n: n.op in ("placeholder", "output"))
    return traced


def text(graph: fx.Graph) -> list[str]:
    """Per op its target, arguments, and the shape, strides and dtype of its result, with nodes numbered in order."""
    number = {node: f"%{i}" for i, node in enumerate(graph.nodes)}
    lines = []
    for node in graph.nodes:
        val = node.meta.get("val")
        made = [
            (list(v.shape), v.stride(), v.dtype) for v in (val if isinstance(val, tuple | list) else [val]) if v is not None
        ]
        args = fx.node.map_arg((node.args, node.kwargs), number.__getitem__)
        lines.append(f"{node.op} {node.target if node.op == 'call_function' else ''} {args if made else ''} {made}")
    return lines


CASES: dict[str, tuple[list[TensorLike], list[Call], list[int]]] = {
    "linear and gelu": (
        [like(4, 8), like(16, 8), like(16)],
        [(aten.linear.default, ("%0", "%1", "%2")), (aten.gelu.default, ("%3",))],
        [4],
    ),
    "attention": (
        [like(2, 4, 16, 8), like(2, 4, 16, 8), like(2, 4, 16, 8)],
        [(aten.scaled_dot_product_attention.default, ("%0", "%1", "%2", None, 0.0, True))],
        [3],
    ),
    "several results, one unused": (
        [like(2, 3, 8, 8)],
        [(aten.max_pool2d_with_indices.default, ("%0", [2, 2])), (operator.getitem, ("%1", 0)), (aten.relu.default, ("%2",))],
        [3],
    ),
    "in place, also of the shape": (
        [like(4, 8)],
        [(aten.mul.Tensor, ("%0", 2.0)), (aten.neg_.default, ("%1",)), (aten.t_.default, ("%2",)), (aten.sin.default, ("%3",))],
        [4],
    ),
    "an input twice, and without gradient": (
        [like(4, 4), like(4, 4, grad=False)],
        [(aten.mm.default, ("%0", "%0")), (aten.add.Tensor, ("%2", "%1")), (aten.argmax.default, ("%1",))],
        [3, 4],
    ),
    "a sharded loss": (
        [like(16, 32), like(16, dtype=torch.int64, grad=False), like(dtype=torch.int64, grad=False)],
        [(lambda x, y, c: cross_entropy(x, y, vocab_axes=(("a", 2),), vocab_coordinates=(c,)), ("%0", "%1", "%2"))],
        [3],
    ),
    "a sharded norm": (
        [like(4, 8), like(8), like(8)],
        [(lambda x, w, b: layer_norm_hidden(x, 16, w, b, 1e-5, (("a", 2),)), ("%0", "%1", "%2"))],
        [3],
    ),
    "a factory": ([like(4, 8)], [(aten.ones.default, ([4, 1],)), (aten.mul.Tensor, ("%0", "%1"))], [2]),
}


def traced(case: str) -> tuple[Joint, fx.Graph]:
    inputs, calls, outputs = CASES[case]
    graph = local_graph(inputs, calls, outputs)
    differentiated = [case != "an input twice, and without gradient" or i == 0 for i in range(len(outputs))]
    return trace_joint(graph, inputs, differentiated), by_make_fx(graph, inputs, differentiated)


@pytest.mark.parametrize("case", CASES)
def test_traced_as_make_fx_does(case: str) -> None:
    joint, reference = traced(case)
    assert text(joint.graph)[:-1] == text(reference)[:-1]


def test_forward_ops_know_their_origin_and_values_their_node() -> None:
    joint, _ = traced("linear and gelu")
    assert [joint.origin[n] for n in joint.forward] == ["linear_default", "linear_default", "gelu_default"]
    assert joint.value["gelu_default"] is joint.outputs[0]
    assert not any(n.meta["val"].requires_grad for n in (*joint.inputs, *joint.forward, *joint.backward))
    assert len(joint.backward) > 3
    assert not set(joint.backward) & set(joint.origin)


def test_writes_into_views_are_not_lost() -> None:
    """The backward of a half-sided transform doubles a slice of what it made, that of its inverse writes into zeros."""
    given = [like(4, 8, dtype=torch.float64), like(4, 8, dtype=torch.float64, grad=False)]
    calls: list[Call] = [
        (aten._fft_r2c.default, ("%0", [1], 0, True)),
        (aten._fft_r2c.default, ("%1", [1], 0, True)),
        (aten.mul.Tensor, ("%2", "%3")),
        (aten._fft_c2r.default, ("%4", [1], 2, 8)),
    ]
    joint = trace_joint(local_graph(given, calls, [5]), given, [True])
    x, y, upstream = torch.randn(3, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind(0)
    (output,), (found, _) = fx.GraphModule(torch.nn.Module(), joint.graph)(x, y, upstream)
    x.requires_grad_()
    wanted = torch.fft.irfft(torch.fft.rfft(x) * torch.fft.rfft(y))
    torch.testing.assert_close(output, wanted)
    torch.testing.assert_close(found, torch.autograd.grad(wanted, x, upstream)[0])
