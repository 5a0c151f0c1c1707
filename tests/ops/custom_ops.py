"""Custom ops for tests, as users write them: a body, a fake implementation, a backward. No rule is given for any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Body = Callable[..., Any]


def op_of(body: Body) -> Any:
    """The overload of a custom op with this body, whose gradients are those of the body."""
    name = body.__name__
    op = torch.library.custom_op(f"autopar_tests::{name}", body, mutates_args=())
    op.register_fake(body)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.given = inputs

    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        given = [x.detach().requires_grad_() if is_float(x) else x for x in ctx.given]
        with torch.enable_grad():
            made = body(*given)
        results = made if isinstance(made, tuple) else (made,)
        ends = [(r, g) for r, g in zip(results, upstream, strict=True) if r.requires_grad]
        wanted = [x for x in given if is_float(x)]
        found = iter(torch.autograd.grad([r for r, _ in ends], wanted, [g for _, g in ends], allow_unused=True))
        return tuple(next(found) if is_float(x) else None for x in given)

    op.register_autograd(backward, setup_context=setup_context)
    return getattr(torch.ops.autopar_tests, name).default


def is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


@op_of
def project(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight.t()


@op_of
def unit_norm(x: Tensor, scale: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * scale


@op_of
def look_up(table: Tensor, ids: Tensor) -> Tensor:
    return table[ids]


@op_of
def ordered(x: Tensor) -> Tensor:
    return x.sort(dim=0).values


@op_of
def with_energy(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return x * weight, (x * x).sum()


@op_of
def heads(x: Tensor, count: int) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(-3, -2).clone()


@op_of
def merged(x: Tensor) -> Tensor:
    return x.flatten(0, 1).clone() * 2


@op_of
def enlarged(x: Tensor, shape: Sequence[int]) -> Tensor:
    return x.expand(shape).clone()


@op_of
def mixed(a: Tensor, b: Tensor) -> Tensor:
    return 2 * a - b


@op_of
def clipped_sum(x: Tensor) -> Tensor:
    return x.sum(0).clamp(-20, 20)


@op_of
def rolled(x: Tensor) -> Tensor:
    return x.roll(64, 0)


@op_of
def rolled_by(x: Tensor, shift: int = 48) -> Tensor:
    return x.roll(shift, 0)


@op_of
def in_blocks(x: Tensor) -> Tensor:
    return x.unflatten(0, (-1, 8)).softmax(1).flatten(0, 1)


@op_of
def padded_blocks(x: Tensor) -> Tensor:
    """Blocks of 16, the last one maybe smaller."""
    return torch.cat([block.softmax(0) for block in x.split(16)])


@op_of
def windowed(x: Tensor, width: int = 32) -> Tensor:
    sums = torch.nn.functional.pad(x, (0, 0, width, 0)).cumsum(0)
    return sums[width:] - sums[:-width]


@op_of
def is_huge(x: Tensor) -> Tensor:
    return x.abs().amax(0) > 1e6


@op_of
def above_average(x: Tensor) -> Tensor:
    return x > x.mean()


@op_of
def symmetric(x: Tensor) -> Tensor:
    return x + x.t()


@op_of
def counted(ids: Tensor, x: Tensor) -> Tensor:
    """Rows divided by how often their id occurs."""
    return x / (ids[:, None] == ids[None, :]).sum(1, keepdim=True)


@op_of
def sign_of_sum(x: Tensor) -> Tensor:
    return x.sum(1, keepdim=True).sign() * x


@op_of
def first_rows(x: Tensor, count: int) -> Tensor:
    return x[:count].clone()


@op_of
def repeated(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 0)


@op_of
def noisy(x: Tensor) -> Tensor:
    return x + torch.rand_like(x)


@op_of
def forgetful(x: Tensor) -> Tensor:
    return torch.zeros_like(x)


@op_of
def positions(x: Tensor) -> Tensor:
    return x + torch.arange(x.shape[0], dtype=x.dtype, device=x.device)[:, None]


@op_of
def only_positive(x: Tensor) -> Tensor:
    return x.log().sum(1)


@op_of
def never_finite(x: Tensor) -> Tensor:
    return x / torch.zeros((), dtype=x.dtype, device=x.device)


@torch.library.custom_op("autopar_tests::tilted", mutates_args=())
def _tilted(x: Tensor) -> Tensor:
    """The same as `x`; each gradient depends on all others."""
    return x.clone()


@_tilted.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


_tilted.register_autograd(lambda ctx, g: g / g.norm(dim=0), setup_context=lambda ctx, inputs, output: None)
tilted = torch.ops.autopar_tests.tilted.default


@torch.library.custom_op("autopar_tests::elsewhere", mutates_args=(), device_types="cuda")
def _elsewhere(x: Tensor) -> Tensor:
    return x.clone()


@_elsewhere.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


elsewhere = torch.ops.autopar_tests.elsewhere.default


@torch.library.custom_op("autopar_tests::picky", mutates_args=())
def _picky(x: Tensor) -> Tensor:
    assert x.shape == (384, 1024), "this op is for one shape only"
    return x.clone()


@_picky.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


picky = torch.ops.autopar_tests.picky.default


@op_of
def single(x: Tensor, weight: Tensor) -> Tensor:
    if x.dtype != torch.float32:
        raise TypeError("float32 only")
    return x @ weight
