"""`torch.cond` becomes plain ops that compute what the branch that is meant computes, and its gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import autopar
from autopar.errors import TraceError
from autopar.ir.program import Program
from autopar.ir.run import run_values
from autopar.tracer import trace
from tests.hardware_toy import toy_hardware

Take = Callable[..., Tensor]


def python_if(predicate: Tensor, yes: Take, no: Take, operands: tuple[Tensor, ...]) -> Tensor:
    return yes(*operands) if predicate.item() else no(*operands)


class Guarded(nn.Module):
    """Two nested choices, over parameters too; what is not taken has gradients that are nan."""

    def __init__(self, cond: Callable[..., Tensor] = torch.cond) -> None:
        super().__init__()
        self.cond, self.first, self.second = cond, nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor, sign: Tensor) -> Tensor:
        x = self.first(x)
        positive = x.square() + 1

        def inner(a: Tensor) -> Tensor:
            return self.cond(sign.sum() > 10, lambda b: self.second(b) * 3, lambda b: self.second(b).tanh(), (a,))

        def roots(a: Tensor) -> Tensor:
            return inner(a.sqrt())

        out = self.cond(sign.sum() > 0, roots, lambda a: (-a).sqrt() + 0 * self.second.weight.sum(), (positive * sign.sign(),))
        return out.square().mean()


SIGNS = [torch.ones(()), 20 * torch.ones(()), -torch.ones(())]


@pytest.mark.parametrize("sign", SIGNS)
def test_values_and_gradients_are_those_of_the_branch(sign: Tensor) -> None:
    """Against the same module with a plain `if`, run eagerly."""
    torch.manual_seed(0)
    model, x = Guarded().double(), torch.randn(4, 16, dtype=torch.float64)
    eager = Guarded(python_if).double()
    eager.load_state_dict(model.state_dict())
    program = trace(model, (x, sign))
    state = {name: tensor.detach().clone().requires_grad_() for name, tensor in model.named_parameters()}
    state |= {name: s.value for name, s in program.state.items() if s.value is not None}
    names = [name for name in program.inputs if name]
    assert program.loss is not None
    ours = run_values(program, state, values=dict(zip(names, (x, sign), strict=True)))[program.loss]
    theirs = eager(x, sign)
    torch.testing.assert_close(ours, theirs)
    ours.backward()
    theirs.backward()
    for name, parameter in eager.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(state[name].grad, expected)


def test_on_a_mesh() -> None:
    report = autopar.verify(Guarded(), "2", (torch.randn(4, 16), torch.ones(())), hardware=toy_hardware(), gap=0.02)
    assert any(c.count for c in report.plan.figures.collectives)
    assert report.ok, report.tensors[:3]


class Loops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        from torch._higher_order_ops.while_loop import while_loop

        return while_loop(lambda i, a: i < 3, lambda i, a: (i + 1, a * 2), (torch.tensor(0), self.linear(x)))[1].sum()


class ByTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.shape[0] > 5, lambda a: a * 2, lambda a: a + 1, (self.linear(x),)).sum()


def test_other_control_flow_is_named() -> None:
    with pytest.raises(TraceError, match=r"the model uses while_loop at test_branches\.py:\d+, .*Python loop"):
        trace(Loops(), (torch.randn(2, 4),))
    trace(ByTwo(), (torch.randn(4, 4),))
    with pytest.raises(TraceError, match=r"batch|dynamic"):
        trace(ByTwo(), (torch.randn(4, 4),), dynamic={"batch": 0})


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad * 3


class Tanh(torch.autograd.Function):
    """Keeps its result only; the gradient is the usual one."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        y = torch.tanh(x * scale)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return grad * (1 - y * y) * ctx.scale, None


class Saving(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(64, 64))

    def forward(self, x: Tensor) -> Tensor:
        return Tanh.apply(x @ self.weight, 0.5).sum()


def test_a_backward_that_is_the_usual_one_is_fine() -> None:
    program = trace(Saving(), (torch.randn(32, 64),))
    assert "aten.tanh.default" in {str(n.target) for region in program.regions.values() for n in region.graph.nodes}


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor, *, of_input: bool) -> Tensor:
        if of_input:
            return (Doubled.apply(x) * self.weight).sum()
        with torch.no_grad():
            shift = Doubled.apply(self.weight)
        return Doubled.apply(x * self.weight + shift).sum()


def uses(program: Program) -> int:
    return sum("Doubled" in str(node.target) for region in program.regions.values() for node in region.graph.nodes)


def test_a_backward_of_its_own_is_an_op_where_a_gradient_passes() -> None:
    x = torch.randn(4)
    assert uses(trace(Own(), (x,), {"of_input": False})) == 1, "without gradients it is the ops in it"
    assert uses(trace(Own(), (x,), {"of_input": True})) == 0
    assert uses(trace(Own(), (x.requires_grad_(),), {"of_input": True})) == 1
