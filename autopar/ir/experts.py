"""Ops of a Program beyond ATen: a mixture of experts as one op, and the grouped matrix product that it runs.

Traced models sort tokens by expert, multiply group by group and put the rows back. In between stand permuted rows, which
mean something only beside their own permutation: no placement can say how they are cut. As one op from tokens to tokens
each dim is a loop, and cutting tokens, experts or the experts' hidden dim is an ordinary strategy.

`autopar::experts` is composite: run or traced, it becomes ATen ops, gathers, and `autopar::grouped_mm`, an op of its own
since torch's has no double precision, which proofs compare in, and since the rows of absent experts cost nothing.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from autopar.ir.activations import activated


@torch.library.custom_op("autopar::grouped_mm", mutates_args=())
def grouped_mm(a: Tensor, b: Tensor, offsets: Tensor, share: float = 1.0) -> Tensor:
    """Products of groups, which end at `offsets` (int32, ascending) and begin where the one before ends.

    a [rows, k], b [groups, k, n] -> [rows, n]: each group of rows with its own matrix; rows after the last group are
    undefined. a [m, rows], b [rows, n] -> [groups, m, n]: over each group of rows. `share` is the expected fraction of
    the rows that are in groups: only they cost anything.
    """
    if a.dtype == torch.float64:
        return grouped_mm_by_group(a, b, offsets)
    return torch.nn.functional.grouped_mm(a, b, offs=offsets)


@grouped_mm.register_fake
def _(a: Tensor, b: Tensor, offsets: Tensor, share: float = 1.0) -> Tensor:
    shape = (a.shape[0], b.shape[2]) if b.dim() == 3 else (offsets.shape[0], a.shape[0], b.shape[1])
    return a.new_empty(shape)


def grouped_mm_by_group(a: Tensor, b: Tensor, offsets: Tensor) -> Tensor:
    """The same, one product after the other, in any dtype; rows after the last group are zero."""
    ends = offsets.tolist()
    groups = list(zip([0, *ends], ends, strict=False))
    if b.dim() == 2:
        return torch.stack([a[:, start:end] @ b[start:end] for start, end in groups])
    rest = a.new_zeros(a.shape[0] - ends[-1], b.shape[2])
    return torch.cat([*(a[start:end] @ b[i] for i, (start, end) in enumerate(groups)), rest])


class GroupedLinear(torch.autograd.Function):
    """x [rows, k], weight [groups, n, k] -> [rows, n]: `linear` with the matrix of the row's group."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, offsets: Tensor, share: float) -> Tensor:
        ctx.share = share
        ctx.save_for_backward(x, weight, offsets)
        return cast(Tensor, grouped_mm(x, weight.transpose(1, 2), offsets, share))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, offsets = ctx.saved_tensors
        grad = grad.contiguous()
        x_grad = grouped_mm(grad, weight, offsets, ctx.share)
        return x_grad, grouped_mm(grad.t(), x, offsets, ctx.share), None, None


class ToExperts(torch.autograd.Function):
    """Rows of tokens [tokens, k] -> [tokens * choices, k] in the order of their experts. Backward adds up a token's rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, back: Tensor, choices: int) -> Tensor:
        ctx.choices = choices
        ctx.save_for_backward(back)
        return x.index_select(0, order // choices)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (back,) = ctx.saved_tensors
        rows = grad.index_select(0, back)
        return rows.view(-1, ctx.choices, rows.shape[1]).sum(1), None, None, None


class FromExperts(torch.autograd.Function):
    """Rows in the order of their experts -> in the order of the tokens."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return rows.index_select(0, back)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (order,) = ctx.saved_tensors
        return grad.index_select(0, order), None, None


def run(function: type[torch.autograd.Function], *args: Any) -> Tensor:
    return cast(Tensor, function.apply(*args))  # type: ignore[no-untyped-call]


def experts(
    x: Tensor,
    index: Tensor,
    scale: Tensor,
    up: Tensor,
    down: Tensor,
    activation: str,
    share: float = 1.0,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """sum_c scale[..., c] * (down[e] @ act(up[e] @ x + up_bias[e]) + down_bias[e]), e = index[..., c]: x [..., k] -> [..., o].

    index and scale [..., choices]; down [experts, o, n]; up [experts, n, k], or [experts, 2, n, k] with the gate first, as in
    `autopar.ir.activations`; biases [experts, (2,) n] and [experts, o]. An index of `experts` means none of them and adds
    nothing; `share` is the expected fraction of the others. The sum is cast to `dtype` if that is given.
    """
    count, choices = down.shape[0], index.shape[-1]
    ids, order = torch.sort(index.reshape(-1))
    numbers = torch.arange(count, dtype=ids.dtype, device=ids.device)
    offsets = torch.searchsorted(ids, numbers, right=True, out_int32=True)
    positions = torch.arange(order.shape[0], device=order.device)
    back = torch.empty_like(order).scatter(0, order, positions)
    absent = None if share == 1 else (ids == count).unsqueeze(1)
    rows = run(ToExperts, x.reshape(-1, x.shape[-1]), order, back, choices)
    rows = rows if absent is None else rows.masked_fill(absent, 0)
    wide = run(GroupedLinear, rows, up.reshape(count, -1, up.shape[-1]), offsets, share)
    present = ids if absent is None else ids.clamp(max=count - 1)
    if up_bias is not None:
        wide = wide + up_bias.reshape(count, -1).index_select(0, present)
        wide = wide if absent is None else wide.masked_fill(absent, 0)
    out = run(GroupedLinear, activated(wide, activation, up.dim() == 4), down, offsets, share)
    out = out if down_bias is None else out + down_bias.index_select(0, present)
    out = out if absent is None else out.masked_fill(absent, 0)
    chosen = run(FromExperts, out, order, back).reshape(*index.shape, down.shape[1])
    total = (chosen * scale.unsqueeze(-1)).sum(-2)
    return total if dtype is None else total.to(dtype)


LIBRARY: Any = torch.library.Library("autopar", "FRAGMENT")  # type: ignore[no-untyped-call]
"""Holds the op's registration for as long as the process lives."""
LIBRARY.define(
    "experts(Tensor x, Tensor index, Tensor scale, Tensor up, Tensor down, str activation, float share=1., "
    "Tensor? up_bias=None, Tensor? down_bias=None, *, ScalarType? dtype=None) -> Tensor"
)
LIBRARY.impl("experts", experts, "CompositeImplicitAutograd")
EXPERTS = torch.ops.autopar.experts.default
GROUPED_MM = torch.ops.autopar.grouped_mm
