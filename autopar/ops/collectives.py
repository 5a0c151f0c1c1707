"""Conversions as differentiable functions of one device's piece: one collective (or none) forward, its dual backward.

One function per row of `autopar.ir.conversion.TABLE`. All of them take a mesh axis as `axis`, the name of its process group
(a planner writes the axis name, the lowered graph the group's), and `size`, its number of devices. What depends on the device
depends on `coordinate` alone, a 0-dim int64 tensor that holds the device's place on the axis: so one graph is right on every
rank, and on fake tensors without any process group. Every result is contiguous and owns its memory, except where a
conversion does nothing (`copy`, `forget`: an alias).

A dim that `size` does not divide is cut unevenly: it is padded with zeros first, so that all pieces are of one size. Where
pieces are put together, `length` says how many elements are wanted of them (None: all); padding is left out then.

`_c10d_functional` collectives work on dim 0 of contiguous tensors; another dim costs one copy, after a gather or before a
scatter, which torch elides by itself when all dims before it have size 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from autopar.ir.conversion import ConversionKind

c10d = torch.ops._c10d_functional


def run(function: type[torch.autograd.Function], *args: Any) -> Tensor:
    """`function.apply`, typed."""
    return cast(Tensor, function.apply(*args))  # type: ignore[no-untyped-call]


def wait(started: Tensor) -> Tensor:
    """The result of a collective once it is there."""
    return cast(Tensor, c10d.wait_tensor(started))


def all_reduce(x: Tensor, axis: str, op: str = "sum") -> Tensor:
    """The sum (or elementwise "max", "min") over the axis; no gradient of its own."""
    return wait(c10d.all_reduce(x.contiguous(), op, axis))


def all_gather(x: Tensor, dim: int, axis: str, size: int, length: int | None = None) -> Tensor:
    """All pieces of `dim` side by side; no gradient of its own. Of dim 0 without padding: a view."""
    gathered = wait(c10d.all_gather_into_tensor(x.contiguous(), size, axis))
    if dim == 0:
        return gathered if length is None else gathered.narrow(0, 0, length)
    return merge(cut(gathered, 0, size), dim, length)


def all_gather_into(x: Tensor, size: int, group: str) -> Tensor:
    """`c10d.all_gather_into_tensor`, begun in another way, for gloo: several of the former under way at once corrupt the heap
    there (torch 2.13; a loop of nothing else, on a busy machine, ends within minutes)."""
    whole = x.new_empty(size * x.shape[0], *x.shape[1:])
    return cast(Tensor, c10d.all_gather_into_tensor_out(x, size, group, out=whole))


def all_reduce_together(tensors: Sequence[Tensor], op: str, group: str) -> list[Tensor]:
    """`c10d.all_reduce_coalesced`, begun in another way: all side by side, reduced as one, of which the results are parts. A
    wait for one of these is for all. (Of the former, gloo makes that copy and another one back, on a thread of its own.)"""
    whole = torch.cat([t.reshape(-1) for t in tensors])
    c10d.all_reduce_(whole, op, group)
    parts = torch.split_with_sizes(whole, [t.numel() for t in tensors])
    return [part.view_as(t) for part, t in zip(parts, tensors, strict=True)]


def sum_scatter(x: Tensor, dim: int, axis: str, size: int) -> Tensor:
    """The own piece of `dim` of the sum over the axis; no gradient of its own."""
    pieces = padded(x, dim, size).contiguous() if dim == 0 else split(x, dim, size).flatten(0, 1)
    return wait(c10d.reduce_scatter_tensor(pieces, "sum", size, axis))


def all_to_all(x: Tensor, dim_before: int, dim_after: int, axis: str, size: int, length: int | None = None) -> Tensor:
    """From a piece of `dim_before` to a piece of `dim_after`; no gradient of its own. `length`: of `dim_before`."""
    pieces = split(x, dim_after, size)
    splits = [pieces.shape[1]] * size
    received = wait(c10d.all_to_all_single(pieces.flatten(0, 1), splits, splits, axis))
    return merge(cut(received, 0, size), dim_before, length)


def padded(x: Tensor, dim: int, size: int) -> Tensor:
    """With zeros at the end of `dim`, as many as it takes for `size` equal pieces; itself if that is none."""
    missing = -x.shape[dim] % size
    return torch.constant_pad_nd(x, [0, 0] * (x.ndim - dim - 1) + [0, missing]) if missing else x


def cut(x: Tensor, dim: int, size: int) -> Tensor:
    """[..., size * n, ...] -> [..., size, n, ...], a view."""
    return x.reshape(*x.shape[:dim], size, x.shape[dim] // size, *x.shape[dim + 1 :])


def split(x: Tensor, dim: int, size: int) -> Tensor:
    """[..., size * n, ...] -> [size, ..., n, ...], contiguous: the pieces of `dim` one after another."""
    return cut(padded(x, dim, size), dim, size).movedim(dim, 0).contiguous()


def merge(pieces: Tensor, dim: int, length: int | None = None) -> Tensor:
    """[size, ..., n, ...] -> [..., size * n, ...], contiguous: the inverse of `split`."""
    if length is None:
        return pieces.movedim(0, dim).flatten(dim, dim + 1).contiguous()  # with n = 1 flatten is a view
    if dim == 0:
        return pieces.flatten(0, 1).narrow(0, 0, length)
    *full, last = pieces.unbind(0)
    return torch.cat([*full, last.narrow(dim, 0, length - len(full) * last.shape[dim])], dim)


def own_piece(x: Tensor, dim: int, size: int, coordinate: Tensor) -> Tensor:
    """A copy of the piece of `dim` at the coordinate; no gradient of its own."""
    return cut(padded(x, dim, size), dim, size).index_select(dim, coordinate.reshape(1)).squeeze(dim)


def among_zeros(x: Tensor, dim: int, size: int, coordinate: Tensor, length: int) -> Tensor:
    """Zeros but for `x` as the piece of `dim` at the coordinate; no gradient of its own."""
    elsewhere = (torch.arange(size, device=x.device) != coordinate).view(size, *(1,) * (x.ndim - dim))
    return x.unsqueeze(dim).masked_fill(elsewhere, 0).flatten(dim, dim + 1).narrow(dim, 0, length).contiguous()


def wanted(x: Tensor, dim: int, size: int) -> int | None:
    """The `length` with which the pieces of `x` are put together again."""
    return x.shape[dim] if x.shape[dim] % size else None


class Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, axis: str, size: int, length: int | None) -> Tensor:
        ctx.constants = dim, axis, size
        return all_gather(x, dim, axis, size, length)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return sum_scatter(grad, *ctx.constants), None, None, None, None


class GatherInvariant(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, axis: str, size: int, coordinate: Tensor, length: int | None) -> Tensor:
        ctx.constants = dim, size
        ctx.save_for_backward(coordinate)
        return all_gather(x, dim, axis, size, length)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return own_piece(grad, *ctx.constants, *ctx.saved_tensors), None, None, None, None, None


class Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: str) -> Tensor:
        ctx.axis = axis
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return all_reduce(grad, ctx.axis), None


class Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: str) -> Tensor:
        return all_reduce(x, axis)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return grad, None


class ReduceReplicate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: str) -> Tensor:
        ctx.axis = axis
        return all_reduce(x, axis)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return all_reduce(grad, ctx.axis), None


class Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, axis: str, size: int) -> Tensor:
        ctx.constants = dim, axis, size, wanted(x, dim, size)
        return sum_scatter(x, dim, axis, size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return all_gather(grad, *ctx.constants), None, None, None


class Shard(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, axis: str, size: int, coordinate: Tensor) -> Tensor:
        ctx.constants = dim, axis, size, wanted(x, dim, size)
        return own_piece(x, dim, size, coordinate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return all_gather(grad, *ctx.constants), None, None, None, None


class Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim_before: int, dim_after: int, axis: str, size: int, length: int | None) -> Tensor:
        ctx.constants = dim_after, dim_before, axis, size, wanted(x, dim_after, size)
        return all_to_all(x, dim_before, dim_after, axis, size, length)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return all_to_all(grad, *ctx.constants), None, None, None, None, None


class ShardReplicate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, size: int, coordinate: Tensor) -> Tensor:
        ctx.constants = dim, size, x.shape[dim]
        ctx.save_for_backward(coordinate)
        return own_piece(x, dim, size, coordinate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        dim, size, length = ctx.constants
        (coordinate,) = ctx.saved_tensors
        return among_zeros(grad, dim, size, coordinate, length), None, None, None


class Forget(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, coordinate: Tensor) -> Tensor:
        ctx.save_for_backward(coordinate)
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (coordinate,) = ctx.saved_tensors
        return grad.masked_fill(coordinate != 0, 0), None


def gather(x: Tensor, dim: int, axis: str, size: int, length: int | None = None) -> Tensor:
    """S(dim) -> R: all-gather; backward reduce-scatter."""
    return run(Gather, x, dim, axis, size, length)


def gather_invariant(x: Tensor, dim: int, axis: str, size: int, coordinate: Tensor, length: int | None = None) -> Tensor:
    """S(dim) -> I: all-gather; backward the own slice."""
    return run(GatherInvariant, x, dim, axis, size, coordinate, length)


def copy(x: Tensor, axis: str, size: int) -> Tensor:
    """I -> R: nothing; backward all-reduce."""
    return run(Copy, x, axis)


def reduce(x: Tensor, axis: str, size: int) -> Tensor:
    """P -> I: all-reduce; backward nothing."""
    return run(Reduce, x, axis)


def reduce_replicate(x: Tensor, axis: str, size: int) -> Tensor:
    """P -> R: all-reduce; backward all-reduce."""
    return run(ReduceReplicate, x, axis)


def scatter(x: Tensor, dim: int, axis: str, size: int) -> Tensor:
    """P -> S(dim): reduce-scatter; backward all-gather."""
    return run(Scatter, x, dim, axis, size)


def shard(x: Tensor, dim: int, axis: str, size: int, coordinate: Tensor) -> Tensor:
    """I -> S(dim): the own slice; backward all-gather."""
    return run(Shard, x, dim, axis, size, coordinate)


def exchange(x: Tensor, dim_before: int, dim_after: int, axis: str, size: int, length: int | None = None) -> Tensor:
    """S(dim_before) -> S(dim_after): all-to-all; backward all-to-all."""
    return run(Exchange, x, dim_before, dim_after, axis, size, length)


def shard_replicate(x: Tensor, dim: int, axis: str, size: int, coordinate: Tensor) -> Tensor:
    """R -> S(dim): the own slice; backward zeros around the slice."""
    return run(ShardReplicate, x, dim, size, coordinate)


def forget(x: Tensor, axis: str, size: int, coordinate: Tensor) -> Tensor:
    """R -> I: nothing; backward zero on all devices but the first."""
    return run(Forget, x, coordinate)


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "gather": gather,
    "gather_invariant": gather_invariant,
    "copy": copy,
    "reduce": reduce,
    "reduce_replicate": reduce_replicate,
    "reduce_scatter": scatter,
    "slice": shard,
    "exchange": exchange,
    "slice_replicate": shard_replicate,
    "forget": forget,
}
"""`ConversionKind.name` to the function that runs it."""

NEEDS_COORDINATE = frozenset({"gather_invariant", "slice", "slice_replicate", "forget"})
"""Names of the conversions whose function takes the device's coordinate as its last argument."""


def arguments(
    kind: ConversionKind, dims: tuple[int | None, int | None], axis: str, size: int, coordinate: Any, length: int | None = None
) -> tuple[Any, ...]:
    """What follows the tensor in a call of `FUNCTIONS[kind.name]`; `coordinate` may be a graph node. `length`: of the dim that
    is put together, if its pieces are padded.

    >>> from autopar.ir.conversion import KINDS
    >>> arguments(KINDS["S", "R"], (1, None), "data", 8, "coordinate_data")
    (1, 'data', 8)
    >>> arguments(KINDS["I", "S"], (None, 0), "data", 8, "coordinate_data")
    (0, 'data', 8, 'coordinate_data')
    >>> arguments(KINDS["S", "R"], (0, None), "data", 8, "coordinate_data", 50257)
    (0, 'data', 8, 50257)
    """
    given = tuple(dim for dim in dims if dim is not None)
    place = (coordinate,) if kind.name in NEEDS_COORDINATE else ()
    return (*given, axis, size, *place, *(() if length is None else (length,)))
