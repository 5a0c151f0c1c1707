"""Inputs, outputs and state that are unlike those of a usual model: right on all ranks, or one clear error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn import functional as F

import autopar
from autopar.errors import AutoparError, InputError, TraceError, UnshardableError
from autopar.verification import Report
from tests.hardware_toy import toy_hardware
from tests.processes import run_processes

Code = Callable[..., Any]
ROWS, SIZE = 8, 16


class Net(nn.Module):
    """Two layers, buffers and an empty parameter, for code that is given; `net(x)` is the layers alone."""

    def __init__(self, code: Code) -> None:
        super().__init__()
        self.code = code
        self.up, self.down = nn.Linear(SIZE, 2 * SIZE), nn.Linear(2 * SIZE, SIZE)
        self.unused, self.empty = nn.Linear(3, 3), nn.Parameter(torch.empty(0, SIZE))
        self.embed, self.matrix = nn.Embedding(SIZE, SIZE), nn.Parameter(torch.randn(SIZE, SIZE, dtype=torch.complex64))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("history", torch.zeros(4, SIZE))

    def net(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))  # type: ignore[no-any-return]

    def loss(self, x: Tensor) -> Tensor:
        return self.net(x).square().mean()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.code(self, *args, **kwargs)


class Plain(nn.Module):
    """Without parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return x.square().mean()


def rows(*shape: int) -> Tensor:
    return torch.randn(shape or (ROWS, SIZE), generator=torch.Generator().manual_seed(0))


def counted(net: Net, x: Tensor) -> Tensor:
    net.count += 1
    net.history[0] = x.mean(0).detach()
    net.history[1:3] += 1
    return net.loss(x) + net.history.sum() + net.count


def bound_again(net: Net, x: Tensor) -> Tensor:
    net.history = net.history * 0.9 + x[:4].detach()
    return (net.net(x)[:4] - net.history).square().mean()


def nested(net: Net, x: Tensor) -> dict[str, Any]:
    y = net.net(x)
    return {"loss": y.square().mean(), "more": [None, 3, (y, {"text": "a", "number": 1.5})], "none": None}


def views(net: Net, x: Tensor) -> dict[str, Tensor]:
    y = net.net(x)
    return {"loss": y.square().mean(), "y": y, "again": y, "t": y.t(), "x": x, "flat": x.view(-1), "row": x[0]}


def weights(net: Net, x: Tensor) -> dict[str, Tensor]:
    return {"loss": net.loss(x), "weight": net.up.weight, "view": net.down.weight.t()}


def scaled(net: Net, x: Tensor, *, flag: bool = False, scale: float = 2.0) -> Tensor:
    return (net.net(x) * scale).square().mean() if flag else net.net(x).sum()


def in_eval(net: Net, x: Tensor) -> Tensor:
    return F.dropout(net.net(x), 0.5, net.training).square().mean()


X = rows()
RIGHT: dict[str, tuple[Code, tuple[Any, ...], dict[str, Any]]] = {
    "batch of zero": (lambda net, x: net.net(x).sum(), (rows(0, SIZE),), {}),
    "empty parameter": (lambda net, x: torch.cat([net.net(x), net.empty]).square().mean(), (X,), {}),
    "empty input": (lambda net, x, e: net.loss(torch.cat([x, e], 1)), (X, rows(ROWS, 0)), {}),
    "scalar input": (lambda net, x, k: net.loss(x) * k, (X, torch.tensor(2.0)), {}),
    "transposed": (Net.loss, (rows(SIZE, ROWS).t(),), {}),
    "expanded": (Net.loss, (rows(1, SIZE).expand(ROWS, SIZE),), {}),
    "every second": (Net.loss, (rows(ROWS, 2 * SIZE)[:, ::2],), {}),
    "shared memory": (lambda net, x, y: (net.net(x) - y).square().mean(), (X, X.view(ROWS, SIZE)), {}),
    "the same twice": (lambda net, x, y: (net.net(x) - y).square().mean(), (X, X), {}),
    "views as outputs": (views, (X,), {}),
    "weights as outputs": (weights, (X,), {}),
    "nested outputs": (nested, (X,), {}),
    "buffers written in place": (counted, (X,), {}),
    "a buffer bound again": (bound_again, (X,), {}),
    "int32 ids": (lambda net, i: net.loss(net.embed(i)), (torch.arange(ROWS, dtype=torch.int32),), {}),
    "flags": (lambda net, x, m: net.loss(x.masked_fill(m, 0)), (X, X > 0), {}),
    "complex input": (lambda net, x: net.loss(x.abs() + x.real), (torch.complex(X, rows(ROWS, SIZE)),), {}),
    "complex parameter": (lambda net, x: (net.net(x) + 0j).matmul(net.matrix).abs().square().mean(), (X,), {}),
    "written in backward": (lambda net, x: torch.fft.rfft(net.net(x)).abs().square().mean(), (X,), {}),
    "a dtype by position": (
        lambda net, x: (F.softmax(net.net(x), -1, dtype=x.dtype) @ net.down.weight).square().mean(),
        (X,),
        {},
    ),
    "keywords": (scaled, (X,), {"flag": True}),
    "defaults": (scaled, (X,), {}),
    "any arguments": (lambda net, *xs, **named: (net.net(sum(xs)) - named["y"]).square().mean(), (X, X), {"y": X}),
    "nested inputs": (lambda net, d: net.loss(d["a"] * d["b"][0][1]), ({"a": X, "b": [(None, 2)]},), {}),
    "constants": (lambda net, x, text, n, none: net.loss(x) * n, (X, "text", 3, None), {}),
    "a weight twice": (lambda net, x: (net.net(net.net(x)) @ net.up.weight.t()).square().mean(), (X,), {}),
    "two shapes": (lambda net, x, y: net.loss(x) + net.loss(y), (X, rows(4, 6, SIZE)), {}),
    "nan": (lambda net, x: (net.loss(x) - 1e9).log(), (X,), {}),
    "odd rows": (Net.loss, (rows(7, SIZE),), {}),
}


def verified(net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Report:
    return autopar.verify(net, "2", args, kwargs, hardware=toy_hardware(), steps=2, gap=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", RIGHT)
def test_right(name: str) -> None:
    """Losses, outputs, gradients, weights and buffers are those of the serial run, under a plan that cuts something."""
    code, args, kwargs = RIGHT[name]
    torch.manual_seed(0)
    report = verified(Net(code), args, kwargs)
    assert any(c.count for c in report.plan.figures.collectives)
    assert report.ok, report.tensors[:3]


@pytest.mark.slow
def test_frozen_in_part_and_in_eval_mode() -> None:
    net = Net(in_eval).eval()
    net.up.requires_grad_(False)
    report = verified(net, (X,), {})
    assert report.ok
    trained = {t.name for t in report.tensors if t.kind == "gradient"}
    assert trained == {"down.weight", "down.bias"}


@pytest.mark.slow
def test_gradients_of_inputs() -> None:
    """Compared as well: against autograd's, and zero would be noticed."""
    report = verified(Net(Net.loss), (rows().requires_grad_(),), {})
    assert report.ok
    assert "args_0" in {t.name for t in report.tensors if t.kind == "gradient"}


@pytest.mark.slow
def test_gradients_of_inputs_on_processes() -> None:
    run_processes(2, gradients_of_inputs)


def gradients_of_inputs(rank: int) -> None:
    """Of a plain tensor that every process has as a whole, and of a DTensor."""
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("gpu",))
    torch.manual_seed(0)
    net, x = Net(Net.loss), rows().requires_grad_()
    net.loss(x).backward()
    assert x.grad is not None
    parallel = autopar.compile(net, mesh, (rows().requires_grad_(),), hardware=toy_hardware(), gap=0.05)
    assert parallel.plan.inputs["args_0"].placement.states == (0,)
    whole, pieces = rows().requires_grad_(), distribute_tensor(rows(), mesh, [Shard(0)]).requires_grad_()
    for given in (whole, pieces):
        parallel(given).backward()
    assert whole.grad is not None
    torch.testing.assert_close(whole.grad, x.grad)
    torch.testing.assert_close(pieces.grad.full_tensor(), x.grad)  # type: ignore[union-attr]


@dataclass
class Result:
    loss: Tensor
    y: Tensor


def as_dataclass(net: Net, x: Tensor) -> Result:
    return Result(loss=net.loss(x), y=x)


def written(net: Net, x: Tensor) -> Tensor:
    x.add_(1)
    return net.loss(x)


def written_in_part(net: Net, x: Tensor) -> Tensor:
    x[:, 0] = 0
    return net.loss(x)


def written_weight(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        net.up.weight.mul_(0.9)
    return net.loss(x)


WRONG: dict[str, tuple[Code, tuple[Any, ...], type[AutoparError], str]] = {
    "an input is written": (written, (X,), TraceError, "changes a tensor .*clone it"),
    "a slice of an input is written": (written_in_part, (X,), TraceError, "changes a tensor .*clone it"),
    "a parameter is written": (written_weight, (X,), TraceError, r"changes a tensor .*'up\.weight'.*clone it"),
    "a dataclass": (as_dataclass, (X,), TraceError, r"returns an object of type Result.*register_dataclass\(Result\)"),
    "an object": (lambda net, x: [net.loss(x), object()], (X,), TraceError, "returns an object of type object"),
    "a slice": (lambda net, x, s: net.loss(x[s]), (X, slice(0, 4)), TraceError, "takes an object of type slice"),
    "a loss of one dim": (lambda net, x: net.loss(x).reshape(1), (X,), InputError, "no scalar loss"),
    "no scalar": (Net.net, (X,), InputError, "no scalar loss"),
    "an integer loss": (lambda net, x: {"loss": net.net(x).argmax()}, (X,), InputError, "no scalar loss"),
    "a complex loss": (lambda net, x: torch.fft.rfft(net.net(x)).sum(), (X,), InputError, "no scalar loss"),
    "nothing": (lambda net, x: None, (X,), UnshardableError, "no dim of Net"),
    "text for a tensor": (
        Net.loss,
        ("text",),
        TraceError,
        r"test_odd_inputs\.py:\d+ \(`return self\.down.*must be Tensor",
    ),
    "other sizes": (Net.loss, (rows(ROWS, 15),), TraceError, r"test_odd_inputs\.py:\d+ \(`return self\.down.*15"),
    "more bytes than there are": (
        Net.loss,
        (torch.empty(2**40, 2**20, device="meta"),),
        InputError,
        r"float32\[1099511627776, 1048576\], does not fit cpu: build the model on the meta device",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_one_clear_error(name: str) -> None:
    code, args, kind, words = WRONG[name]
    before = [a.clone() if isinstance(a, Tensor) and not a.is_meta else a for a in args]
    with pytest.raises(kind, match=words):
        verified(Net(code), args, {})
    for now, then in zip(args, before, strict=True):
        assert not isinstance(now, Tensor) or now.is_meta or torch.equal(now, then)


def test_without_parameters() -> None:
    with pytest.raises(UnshardableError, match="no dim of Plain"):
        verified(Plain(), (X,), {})


def test_all_frozen() -> None:
    with pytest.raises(InputError, match="no scalar loss"):
        verified(Net(Net.loss).requires_grad_(False), (X,), {})


def test_sizes_beyond_int64() -> None:
    """Of a value within the model: more elements, or bytes, than 64 bits count."""
    for size in (2**40, 2**32):
        with torch.device("meta"):
            net, x = Net(lambda net, x, n=size: (net.net(x)[:, :, None].expand(-1, -1, n) * 2).mean()), torch.empty(2**27, SIZE)
        with pytest.raises(TraceError, match="overflow"):
            autopar.plan(net, "2", (x,), hardware=toy_hardware())


def test_large_sizes() -> None:
    """Some hundred gigabytes on the meta device are planned as any others."""
    with torch.device("meta"):
        net, x = Net(Net.loss), torch.empty(2**31, SIZE)
    plan = autopar.plan(net, "2", (x,), hardware=toy_hardware(), memory="1TiB")
    assert plan.inputs["args_0"].placement.states == (0,)
