"""An `autograd.Function` with gradients of its own is one op of a program, and may be given a rule as any other."""

from __future__ import annotations

import cProfile
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import FlopCounterMode

import autopar
from autopar.errors import RuleError, TraceError
from autopar.ir.program import Program
from autopar.ops import tables
from autopar.ops.flops import node_flops
from autopar.tracer import trace
from autopar.verification import verify
from benchmarks.coverage import roles
from tests.hardware_toy import toy_hardware


class Sign(Function):
    """Straight through where it is small."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.scale = scale
        return x.sign() * scale

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad * (x.abs() < 1) * ctx.scale, None


class Reversed(Function):
    """By `setup_context`, with a default; nothing is computed in forward."""

    @staticmethod
    def forward(x: Tensor, strength: int = 3) -> Tensor:
        return x

    @staticmethod
    def setup_context(ctx, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.strength = inputs[1]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * grad, None


class Largest(Function):
    """Two tensors and a number, after constants that no op takes; the gradient goes to all rather than to the largest."""

    @staticmethod
    def forward(ctx, dims: tuple[int, ...], unused: None, x: Tensor) -> tuple[Tensor, Tensor, int]:
        values, indices = x.max(dims[0])
        ctx.mark_non_differentiable(indices)
        ctx.dim, ctx.size = dims[0], x.shape[dims[0]]
        return values, indices, 7

    @staticmethod
    def backward(ctx, grad: Tensor, *_: Any) -> tuple[None, None, Tensor]:
        return None, None, grad.unsqueeze(ctx.dim).expand(*grad.shape, ctx.size) / ctx.size


class Product(Function):
    """A linear layer whose weight gets a gradient of its own."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return grad @ weight.T, (x.flatten(0, -2).T @ grad.flatten(0, -2)).clamp(-0.1, 0.1)


class Layer(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 16) / 4)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "sign":
            return Sign.apply(x @ self.weight, 0.5) + x
        if self.kind == "reversed":
            return Reversed.apply(x @ self.weight) + x
        if self.kind == "largest":
            values, indices, number = Largest.apply((-1,), None, x @ self.weight)
            return x + (values + indices + number).unsqueeze(-1)
        return Product.apply(x, self.weight) + x


class Net(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(16, 16)
        self.layers = nn.ModuleList(Layer(kind) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return x.square().mean()


def ops(program: Program, word: str) -> list[torch.fx.Node]:
    return [n for region in program.regions.values() for n in region.graph.nodes if word in str(n.target)]


@pytest.mark.parametrize("kind", ["sign", "reversed", "largest", "product"])
def test_a_backward_of_its_own_is_one_op_and_stays_its_own(kind: str) -> None:
    net, x = Net(kind), torch.randn(8, 4, 16)
    program = trace(net, (x,))
    assert len(ops(program, f"autopar_user.{kind.title()}_")) == 1, "three layers are one region"
    assert not any(ops(program, f"aten.{name}.") for name in ("sign", "max", "mm"))
    report = verify(net, "2x2", (x,), hardware=toy_hardware())
    assert report.ok, report


def test_the_gradient_is_not_that_of_the_ops_in_forward() -> None:
    """What the comparison above rests on: the serial run has the function's own gradients, and they make a difference."""
    net, x = Net("sign"), torch.randn(8, 4, 16)
    net(x).backward()
    own = net.first.weight.grad.clone()
    net.zero_grad()
    for layer in net.layers:
        layer.forward = lambda x, w=layer.weight: (x @ w).sign() * 0.5 + x  # type: ignore[method-assign]
    net(x).backward()
    assert not torch.allclose(own, net.first.weight.grad)


def test_what_it_may_be_cut_along_is_discovered() -> None:
    plan = autopar.plan(Net("sign"), "2x2", (torch.randn(8, 4, 16),), hardware=toy_hardware())
    (found,) = [rule for region in plan.regions.values() for rule in region.discovered.values()]
    assert "Sign" in found.op
    (unit,) = [unit for region in plan.regions.values() for unit in region.units.values() if unit.op and "Sign" in unit.op]
    assert any(role is not None for role in unit.roles)
    assert roles(plan)["cut"] == roles(plan)["units"]


def test_its_products_are_counted() -> None:
    x = torch.randn(8, 4, 16)
    (node,) = ops(trace(Net("product"), (x,)), "Product")
    with FlopCounterMode(display=False) as counter:
        x @ torch.randn(16, 16)
    assert node_flops(node) == counter.get_total_flops() > 0


class Uses(nn.Module):
    def __init__(self, function: type[Function], *rest: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.function, self.rest = function, rest

    def forward(self, x: Tensor) -> Tensor:
        return self.function.apply(self.linear(x), *self.rest).sum()


class Noise(Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x * torch.rand_like(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad


class Writes(Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad


class Calls(Function):
    @staticmethod
    def forward(ctx, x: Tensor, function: Any) -> Tensor:
        return function(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


@pytest.mark.parametrize(
    ("function", "rest", "reason"),
    [
        (Noise, (), r"it draws random numbers \(aten\.rand_like"),
        (Writes, (), "it writes into a tensor that it is given"),
        (Calls, (nn.Linear(4, 4),), r"it is called with \(FakeTensor, Linear\), and an op takes"),
    ],
)
def test_what_no_op_does_is_refused(function: type[Function], rest: tuple[Any, ...], reason: str) -> None:
    with pytest.raises(TraceError, match=rf"{function.__name__} at test_own_backwards\.py:\d+ .*{reason}.*register_autograd"):
        trace(Uses(function, *rest), (torch.randn(8, 4),))
    assert sys.getprofile() is None


class Fails(Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.sign()
        raise ZeroDivisionError("of the model")

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad


def test_whoever_profiles_goes_on_doing_so() -> None:
    seen: list[str] = []

    def mine(frame: Any, event: str, arg: Any) -> None:
        seen.append(event)

    sys.setprofile(mine)
    try:
        trace(Net("sign"), (torch.randn(8, 4, 16),))
        assert sys.getprofile() is mine
        with pytest.raises(TraceError, match="of the model"):
            trace(Uses(Fails), (torch.randn(8, 4),))
        assert sys.getprofile() is mine
    finally:
        sys.setprofile(None)
    assert seen
    profile = cProfile.Profile()
    program = profile.runcall(trace, Net("sign"), (torch.randn(8, 4, 16),))
    assert ops(program, "Sign")


class Scaled(Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        return x * weight

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, grad.flatten(0, -2).sum(0) * 0.5


def test_a_function_is_given_a_rule_as_an_op_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "USER_RULES", dict(tables.USER_RULES))
    assert autopar.op_rule("b d, d -> b d", kind="pointwise")(Scaled) is Scaled

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 16)
            self.weight = nn.Parameter(torch.rand(16))

        def forward(self, x: Tensor) -> Tensor:
            return Scaled.apply(self.linear(x), self.weight).square().mean()

    x = torch.randn(8, 16)
    plan = autopar.plan(Model(), "2", (x,), hardware=toy_hardware())
    assert not any(region.discovered for region in plan.regions.values())
    assert verify(Model(), "2x2", (x,), hardware=toy_hardware()).ok
    report = autopar.check_rule(Scaled, torch.randn(6, 4), torch.randn(4))
    assert set(report.cut) == {"b", "d"}


def test_a_wrong_rule_of_a_function_is_refuted() -> None:
    """A part of the rows gives a part of the weight's gradient, but not of the clamped one."""
    x, weight = torch.randn(6, 4), torch.randn(4, 5)
    assert autopar.check_rule(Product, x, weight, rule="m! k!, k! n! -> m! n!").cut == ()
    with pytest.raises(RuleError, match=r"Product.* is not what its rule says"):
        autopar.check_rule(Product, x, weight, rule="m k, k n -> m n")


def test_a_rule_of_a_function_has_no_use_for_shapes() -> None:
    with pytest.raises(RuleError, match="Sign tells its results itself"):
        autopar.op_rule("m n -> m n", shape=lambda x, scale: [x.shape])(Sign)
