"""Norms and softmax along dims that are cut: what they need to know of all devices is summed, or is a maximum.

As in `autopar.ops.sharded.common`: differentiable functions of local tensors, `axes` as (group name, size). Results are S where
operands are; statistics are I.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from autopar.ops.collectives import run
from autopar.ops.sharded.common import Axes, mean_and_variance, parts, precise, reduce_over


class NormHidden(torch.autograd.Function):
    """y = (x - mean) rstd weight + bias over trailing dims, of which the device has one of `parts(axes)` pieces."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, dims: int, eps: float, axes: Axes, centered: bool
    ) -> Tensor:
        over = tuple(range(x.ndim - dims, x.ndim))
        wide = x.to(precise(x.dtype))
        mean, rstd = moments(wide, over, eps, axes) if centered else (None, inverse_rms(wide, over, eps, axes))
        ctx.dims, ctx.axes, ctx.bias_dtype = dims, axes, None if bias is None else bias.dtype
        ctx.save_for_backward(x, weight, mean, rstd)
        y = normalized(wide, mean, rstd)
        y = y if weight is None else y * weight
        return (y if bias is None else y + bias).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        batch, over = tuple(range(x.ndim - ctx.dims)), tuple(range(x.ndim - ctx.dims, x.ndim))
        xhat, grad = normalized(x.to(rstd.dtype), mean, rstd), grad.to(rstd.dtype)
        weight_grad = None if weight is None else over_batch(grad * xhat, batch).to(weight.dtype)
        bias_grad = None if ctx.bias_dtype is None else over_batch(grad, batch).to(ctx.bias_dtype)
        inner = grad if weight is None else grad * weight
        means = [(inner * xhat).mean(over, keepdim=True)]
        if mean is not None:
            means.append(inner.mean(over, keepdim=True))
        along, *shift = (reduce_over(torch.stack(means), ctx.axes) / parts(ctx.axes)).unbind(0)
        centered = inner - xhat * along
        x_grad = (centered - shift[0] if shift else centered) * rstd
        return x_grad.to(x.dtype), weight_grad, bias_grad, None, None, None, None


def normalized(x: Tensor, mean: Tensor | None, rstd: Tensor) -> Tensor:
    return x * rstd if mean is None else (x - mean) * rstd


def over_batch(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return x.sum(dims) if dims else x


def moments(x: Tensor, dims: tuple[int, ...], eps: float, axes: Axes) -> tuple[Tensor, Tensor]:
    """Mean and 1 / sqrt(variance + eps) over the dims and all devices."""
    mean, variance = mean_and_variance(x, dims, axes)
    return mean, (variance + eps).rsqrt()


def inverse_rms(x: Tensor, dims: tuple[int, ...], eps: float, axes: Axes) -> Tensor:
    """1 / sqrt(mean square + eps) over the dims and all devices."""
    return (reduce_over(x.square().mean(dims, keepdim=True), axes) / parts(axes) + eps).rsqrt()


def trailing_dims(shape: Sequence[int], numel: int) -> int:
    """How many trailing dims of a local shape hold `numel` elements; at least one."""
    for dims in range(1, len(shape) + 1):
        if math.prod(shape[-dims:]) == numel:
            return dims
    raise AssertionError(f"no trailing dims of {tuple(shape)} have {numel} elements")


def layer_norm_hidden(
    x: Tensor, normalized_numel: int, weight: Tensor | None, bias: Tensor | None, eps: float, axes: Axes
) -> Tensor:
    """aten.layer_norm with a normalized dim sharded: x, weight, bias and the result are S there.

    `normalized_numel`: elements that are normalized together, over all devices. Communicates two numbers per token and
    axis, forward (all-gather) and backward (all-reduce). Keeps x and two numbers per token.
    """
    dims = trailing_dims(x.shape, normalized_numel // parts(axes))
    return run(NormHidden, x, weight, bias, dims, eps, tuple(axes), True)


def rms_norm_hidden(x: Tensor, normalized_numel: int, weight: Tensor | None, eps: float | None, axes: Axes) -> Tensor:
    """aten.rms_norm with a normalized dim sharded: x, weight and the result are S there; as `layer_norm_hidden`."""
    dims = trailing_dims(x.shape, normalized_numel // parts(axes))
    eps = torch.finfo(precise(x.dtype)).eps if eps is None else eps
    return run(NormHidden, x, weight, None, dims, eps, tuple(axes), False)


class BatchNorm(torch.autograd.Function):
    """y = (x - mean) rstd weight + bias per channel (dim 1), over all other dims and all devices."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, axes: Axes
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The result, the mean and the variance (over the count) per channel."""
        wide = x.to(precise(x.dtype))
        over, shape = (0, *range(2, x.ndim)), (-1, *[1] * (x.ndim - 2))
        mean, variance = mean_and_variance(wide, over, axes)
        rstd = (variance + eps).rsqrt()
        ctx.axes, ctx.bias_dtype = axes, None if bias is None else bias.dtype
        ctx.save_for_backward(x, weight, mean, rstd)
        y = normalized(wide, mean, rstd)
        y = y if weight is None else y * weight.view(shape)
        y = y if bias is None else y + bias.view(shape)
        mean, variance = mean.flatten(), variance.flatten()
        ctx.mark_non_differentiable(mean, variance)
        return y.to(x.dtype), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        over, shape = (0, *range(2, x.ndim)), (-1, *[1] * (x.ndim - 2))
        xhat, grad = normalized(x.to(rstd.dtype), mean, rstd), grad.to(rstd.dtype)
        sums = torch.stack([grad.sum(over), (grad * xhat).sum(over)])
        bias_grad = None if ctx.bias_dtype is None else sums[0].to(ctx.bias_dtype)
        weight_grad = None if weight is None else sums[1].to(weight.dtype)
        shift, along = (reduce_over(sums, ctx.axes) / counted(x, ctx.axes)).unbind(0)
        scale = rstd if weight is None else rstd * weight.view(shape)
        x_grad = (grad - shift.view(shape) - xhat * along.view(shape)) * scale
        return x_grad.to(x.dtype), weight_grad, bias_grad, None, None


def counted(x: Tensor, axes: Axes) -> int:
    """Elements per channel, on all devices."""
    return math.prod([x.shape[0], *x.shape[2:]]) * parts(axes)


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running: tuple[Tensor, Tensor] | None,
    momentum: float,
    eps: float,
    axes: Axes,
) -> tuple[Tensor, ...]:
    """aten._native_batch_norm_legit in training, with batch or space sharded: x and the first result S there, weight and bias
    R, `running` (mean, variance) I.

    The other results are I: mean and 1 / sqrt(variance + eps), and the new running statistics where there are any; like the
    serial ones these hold the variance over the count less one. Communicates two numbers per channel and axis, forward
    (all-gather) and backward (all-reduce). Keeps x and two numbers per channel.
    """
    y, mean, variance = cast(tuple[Tensor, Tensor, Tensor], run(BatchNorm, x, weight, bias, eps, tuple(axes)))
    statistics = y, mean, (variance + eps).rsqrt()
    if running is None:
        return statistics
    count = counted(x, axes)
    found = mean, variance * (count / (count - 1))
    moved = (old * (1 - momentum) + new.to(old.dtype) * momentum for old, new in zip(running, found, strict=True))
    return *statistics, *moved


class Softmax(torch.autograd.Function):
    """exp(x) / sum exp(x) along a dim, or its logarithm, of which the device has one of `parts(axes)` pieces."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, dtype: torch.dtype, logarithm: bool, axes: Axes) -> Tensor:
        wide = x.to(precise(dtype))
        maximum = reduce_over(wide.amax(dim, keepdim=True), axes, "max")
        shifted = wide - maximum
        exponents = shifted.exp()
        total = reduce_over(exponents.sum(dim, keepdim=True), axes)
        y = (shifted - total.log() if logarithm else exponents / total).to(dtype)
        ctx.dim, ctx.logarithm, ctx.axes, ctx.dtype = dim, logarithm, axes, x.dtype
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (y,) = ctx.saved_tensors
        y, grad = y.to(precise(y.dtype)), grad.to(precise(y.dtype))
        weighted = grad if ctx.logarithm else grad * y
        total = reduce_over(weighted.sum(ctx.dim, keepdim=True), ctx.axes)
        x_grad = grad - y.exp() * total if ctx.logarithm else weighted - y * total
        return x_grad.to(ctx.dtype), None, None, None, None


def softmax(x: Tensor, dim: int, dtype: torch.dtype | None, axes: Axes, *, logarithm: bool = False) -> Tensor:
    """aten.softmax or log_softmax along a sharded dim, in `dtype` (None: that of x): x and the result are S there.

    Communicates per axis a maximum and a sum for each row, backward a sum. Keeps the result.
    """
    return run(Softmax, x, dim, dtype or x.dtype, logarithm, tuple(axes))
