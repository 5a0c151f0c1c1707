"""Trace a local function forward and backward into one graph on fake tensors, without process groups, and run it later."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx


def trace_joint(function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor) -> fx.GraphModule:
    """The graph of (*inputs, grad of the output) -> (output, *gradients of the inputs that require one).

    Only shapes and dtypes of the examples matter.
    """

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        *given, upstream = values
        output = function(*given)
        wanted = [value for value in given if value.requires_grad]
        return output, *torch.autograd.grad(output, wanted, upstream)

    with FakeTensorMode():
        fakes = [torch.empty(x.shape, dtype=x.dtype, requires_grad=x.requires_grad) for x in inputs]
        upstream = torch.empty(grad.shape, dtype=grad.dtype)
    return make_fx(run, tracing_mode="fake")(*fakes, upstream)


def collectives_of(graph: fx.Graph) -> list[tuple[str, str]]:
    """(collective, axis) of each collective node, in order."""
    names = [(n, n.target.name().split("::")[1]) for n in graph.nodes if isinstance(n.target, torch._ops.OpOverload)]
    return [
        (name, node.args[-1]) for node, name in names if node.target.namespace == "_c10d_functional" and name != "wait_tensor"
    ]


def with_groups(module: fx.GraphModule, groups: Mapping[str, str]) -> fx.GraphModule:
    """The axis names that stand for groups replaced by the groups' own names."""
    for node in module.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "_c10d_functional":
            node.args = tuple(groups.get(arg, arg) if isinstance(arg, str) else arg for arg in node.args)
    module.recompile()
    return module
