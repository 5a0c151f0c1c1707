"""Sharded implementations of reductions whose parts do not add up: maxima, variances, norms; see `autopar.ops.sharded.common`.

x is S along reduced dims, the result I. Backward passes need the upstream gradient alone, which is I as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from autopar.ops.collectives import run
from autopar.ops.sharded.common import Axes, local_index, mean_and_variance, parts, piece_of, precise, reduce_over

Dims = tuple[int, ...]


def shaped(x: Tensor, dims: Dims, keepdim: bool) -> Tensor:
    """A reduced tensor of which dims of size one are kept, without them if they are not wanted."""
    return x if keepdim else x.squeeze(dims)


def reshaped(grad: Tensor, dims: Dims, keepdim: bool) -> Tensor:
    """The inverse of `shaped`."""
    for dim in () if keepdim else sorted(dims):
        grad = grad.unsqueeze(dim)
    return grad


class Extremum(torch.autograd.Function):
    """The gradient is shared evenly among all elements, on all devices, that are the extremum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dims: Dims, keepdim: bool, lowest: bool, axes: Axes) -> Tensor:
        result = reduce_over((x.amin if lowest else x.amax)(dims, True), axes, "min" if lowest else "max")
        ctx.constants = dims, keepdim, axes
        ctx.save_for_backward(x, result)
        return shaped(result, dims, keepdim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        dims, keepdim, axes = ctx.constants
        x, result = ctx.saved_tensors
        among = (x == result).to(grad.dtype)
        count = reduce_over(among.sum(dims, True), axes)
        return among * (reshaped(grad, dims, keepdim) / count), None, None, None, None


def extremum(x: Tensor, dims: Sequence[int], keepdim: bool, lowest: bool, axes: Axes) -> Tensor:
    """aten.amax, amin over `dims`, of which some are sharded over the axes. Communicates one extremum per result and axis, and
    backward one count. Keeps x and the result."""
    return run(Extremum, x, tuple(dims), keepdim, lowest, tuple(axes))


class ExtremumAt(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dim: int, keepdim: bool, lowest: bool, axes: Axes, *coordinates: Tensor
    ) -> tuple[Tensor, Tensor]:
        local, at = (x.min if lowest else x.max)(dim, True)
        result = reduce_over(local, axes, "min" if lowest else "max")
        rows = x.shape[dim]
        at = (at + piece_of(axes, coordinates, x.device) * rows).masked_fill(local != result, rows * parts(axes))
        at = reduce_over(at, axes, "min")
        ctx.constants = dim, keepdim, axes, x.shape
        ctx.save_for_backward(at, *coordinates)
        ctx.mark_non_differentiable(at)
        return shaped(result, (dim,), keepdim), shaped(at, (dim,), keepdim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
        dim, keepdim, axes, shape = ctx.constants
        at, *coordinates = ctx.saved_tensors
        index, here = local_index(at, shape[dim], axes, coordinates)
        grad = reshaped(grad, (dim,), keepdim).masked_fill(~here, 0)
        return grad.new_zeros(shape).scatter(dim, index, grad), *(None for _ in range(4 + len(coordinates)))


def extremum_at(
    x: Tensor, dim: int, keepdim: bool, lowest: bool, axes: Axes, coordinates: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """aten.max.dim, min.dim with `dim` sharded: the extrema, and the first global position of each.

    Communicates two numbers per result and axis, backward nothing. Keeps the positions.
    """
    return cast(tuple[Tensor, Tensor], run(ExtremumAt, x, dim, keepdim, lowest, tuple(axes), *coordinates))


def position_of_extremum(x: Tensor, dim: int, keepdim: bool, lowest: bool, axes: Axes, coordinates: Sequence[Tensor]) -> Tensor:
    """aten.argmax, argmin with `dim` sharded; as `extremum_at`."""
    return extremum_at(x.detach(), dim, keepdim, lowest, axes, coordinates)[1]


def truth(x: Tensor, dims: Sequence[int], keepdim: bool, every: bool, axes: Axes) -> Tensor:
    """aten.any, or aten.all (`every`), over `dims`, of which some are sharded over the axes."""
    local = (x.all if every else x.any)(tuple(dims), keepdim).to(torch.int32)
    return reduce_over(local, axes, "min" if every else "max") != 0


class Moments(torch.autograd.Function):
    """With N elements and M = N - correction: d x = 2 (x - mean) / M d variance + 1 / N d mean."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dims: Dims, correction: float, keepdim: bool, axes: Axes) -> tuple[Tensor, Tensor]:
        count = math.prod(x.shape[dim] for dim in dims) * parts(axes)
        mean, variance = mean_and_variance(x.to(precise(x.dtype)), dims, axes)
        ctx.constants = dims, keepdim, count, count - correction
        ctx.save_for_backward(x, mean)
        results = variance * (count / (count - correction)), mean
        variance, mean = (shaped(r.to(x.dtype), dims, keepdim) for r in results)
        return variance, mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, variance_grad: Tensor, mean_grad: Tensor) -> tuple[Any, ...]:
        dims, keepdim, count, freedom = ctx.constants
        x, mean = ctx.saved_tensors
        along, shift = reshaped(variance_grad, dims, keepdim), reshaped(mean_grad, dims, keepdim)
        grad = (x - mean) * (along * (2 / freedom)) + shift / count
        return grad.to(x.dtype), None, None, None, None


def var_mean(x: Tensor, dims: Sequence[int], correction: float, keepdim: bool, axes: Axes) -> tuple[Tensor, Tensor]:
    """aten.var_mean over `dims`, of which some are sharded over the axes.

    Each device's own moments are gathered and merged: two numbers per result and axis; backward nothing. Keeps x.
    """
    return cast(tuple[Tensor, Tensor], run(Moments, x, tuple(dims), correction, keepdim, tuple(axes)))


def var(x: Tensor, dims: Sequence[int], correction: float, keepdim: bool, axes: Axes) -> Tensor:
    """aten.var, as `var_mean`."""
    return var_mean(x, dims, correction, keepdim, axes)[0]


class Euclidean(torch.autograd.Function):
    """d x = x / norm, and 0 where the norm is 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dims: Dims, keepdim: bool, axes: Axes) -> Tensor:
        local = torch.linalg.vector_norm(x, 2, dims, True, dtype=precise(x.dtype) if x.is_floating_point() else None)
        norm = reduce_over(local.square(), axes).sqrt()
        ctx.constants = dims, keepdim
        ctx.save_for_backward(x, norm)
        return shaped(norm.to(x.abs().dtype if x.is_complex() else x.dtype), dims, keepdim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        dims, keepdim = ctx.constants
        x, norm = ctx.saved_tensors
        scale = (reshaped(grad, dims, keepdim) / norm).masked_fill(norm == 0, 0)
        return (x * scale).to(x.dtype), None, None, None


def euclidean_norm(x: Tensor, dims: Sequence[int], keepdim: bool, axes: Axes) -> Tensor:
    """aten.linalg_vector_norm of order 2 over `dims`, of which some are sharded over the axes: the root of the sum of squares.

    Communicates one number per result and axis, backward nothing. Keeps x and the norm.
    """
    return run(Euclidean, x, tuple(dims), keepdim, tuple(axes))
