from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from autopar.ops.proof import Call
from tests.ops.examples.common import Example, Examples
from tests.ops.pick import Pick

aten = torch.ops.aten


def batched(p: Pick) -> list[int]:
    return p.one([p.size()], [p.size()], [])


def convolution(rank: int, target: Any) -> Example:
    """Whole strides are drawn for windows that lie side by side; `same` knows no strides."""

    def example(p: Pick) -> Call:
        groups = p.one(1, 1, 2, 4)
        c, o = (groups * p.size(2, 1, 3) for _ in range(2))
        kernel, image = [p.one(3, 1, 2) for _ in range(rank)], [p.size(6, 4, 12) for _ in range(rank)]
        tiled, same = p.one(False, True), p.one("same", "valid", "same")
        overload = target._overloadname == "padding"
        stride = [1] * rank if overload and same == "same" else kernel if tiled else [p.one(1, 2) for _ in range(rank)]
        padding = [0 if tiled else p.one(0, 1, 2) for _ in range(rank)]
        dilation = [1 if tiled else p.one(1, 1, 2) if n > 4 else 1 for n in image]
        bias = p.tensor(o) if p.one(True, False) else None
        inputs = p.tensor(*batched(p), c, *image), p.tensor(o, c // groups, *kernel), bias
        return Call(target, (*inputs, stride, same if overload else padding, dilation, groups))

    return example


def transposed(rank: int, target: Any) -> Example:
    def example(p: Pick) -> Call:
        groups = p.one(1, 1, 2, 4)
        c, o = (groups * p.size(2, 1, 3) for _ in range(2))
        kernel, image = [p.one(3, 1, 2) for _ in range(rank)], [p.size(4, 6, 3) for _ in range(rank)]
        tiled = p.one(False, True)
        stride = kernel if tiled else [p.one(1, 2) for _ in range(rank)]
        padding = [0 if tiled or k == 1 else p.one(0, 1) for k in kernel]
        dilation = [1 if tiled else p.one(1, 2) for _ in range(rank)]
        extra = [0 if tiled or s == d == 1 else p.one(0, 1) for s, d in zip(stride, dilation, strict=True)]
        bias = p.tensor(o) if p.one(True, False) else None
        batch = [p.size()] if target is aten.convolution.default else batched(p)
        inputs = p.tensor(*batch, c, *image), p.tensor(c, o // groups, *kernel), bias
        if target is aten.convolution.default:
            return Call(target, (*inputs, stride, padding, dilation, True, extra, groups))
        return Call(target, (*inputs, stride, padding, extra, groups, dilation))

    return example


def either_convolution(p: Pick) -> Call:
    rank = p.one(2, 1, 3)
    if p.one(True, False):
        return transposed(rank, aten.convolution.default)(p)
    x, *given, groups = convolution(rank, {1: aten.conv1d, 2: aten.conv2d, 3: aten.conv3d}[rank].default)(p).args
    return Call(aten.convolution.default, (x if x.dim() == rank + 2 else x[None], *given, False, [0] * rank, groups))


def pool(rank: int, target: Any, kind: str) -> Example:
    def example(p: Pick) -> Call:
        image = [p.size(6, 4, 12) for _ in range(rank)]
        kernel, tiled = [p.one(2, 3, 1) for _ in range(rank)], p.one(True, False)
        stride: list[int] = p.one([], kernel) if tiled else [p.one(1, 2) for _ in range(rank)]
        padding = [0 if tiled or k == 1 else p.one(0, 1) for k in kernel]
        options: tuple[Any, ...] = ([1 if tiled else p.one(1, 2) for _ in range(rank)],) if kind == "max" else ()
        if kind == "max" and any(d * (k - 1) >= n for d, k, n in zip(options[0], kernel, image, strict=True)):
            options = ([1] * rank,)
        options += (p.one(False, True),)
        if kind == "average":
            options += (p.one(True, False), p.one(None, 5))
        return Call(target, (p.tensor(*batched(p), p.size(), *image), kernel, stride, padding, *options))

    return example


def adaptive(rank: int, target: Any) -> Example:
    def example(p: Pick) -> Call:
        image = [p.size(6, 4, 12) for _ in range(rank)]
        return Call(target, (p.tensor(*batched(p), p.size(), *image), [p.one(1, 3, 5, 2) for _ in range(rank)]))

    return example


def unpool(rank: int, target: Any) -> Example:
    def example(p: Pick) -> Call:
        image = [p.size(6, 4) for _ in range(rank)]
        indices = {2: aten.max_pool2d_with_indices, 3: aten.max_pool3d_with_indices}[rank]
        x, where = indices(p.tensor(*batched(p), p.size(), *image, grad=False), [2] * rank)
        more = ([2] * rank, [0] * rank) if rank == 3 else ()
        return Call(target, (x.requires_grad_(), where, image, *more))

    return example


def fractional(rank: int, target: Any) -> Example:
    def example(p: Pick) -> Call:
        b, c = p.size(), p.size()
        samples = torch.rand(b, c, rank, dtype=torch.float64, generator=p.generator)
        return Call(target, (p.tensor(b, c, *[p.size(6, 12) for _ in range(rank)]), [2] * rank, [3] * rank, samples))

    return example


def resampled(rank: int, target: Any) -> Example:
    """`vec` overloads take sizes or scales, and only some modes know corners."""
    corners = any(a.name == "align_corners" for a in target._schema.arguments)

    def example(p: Pick) -> Call:
        image, out = ([p.size(4, 6, 3) for _ in range(rank)] for _ in range(2))
        scales = [p.one(2.0, 1.5) for _ in range(rank)]
        x = p.tensor(p.size(), p.size(), *image)
        corner = (p.one(False, True),) if corners else ()
        if target._overloadname == "vec":
            given = p.one((None, *corner, scales), (out, *corner, None))
        else:
            out = [int(n * s) for n, s in zip(image, scales, strict=True)]
            given = p.one((out, *corner), (out, *corner, *scales))
        return Call(target, (x, *given))

    return example


def padded(rank: int, target: Any) -> Example:
    def example(p: Pick) -> Call:
        image = [p.size(6, 4, 3) for _ in range(rank)]
        return Call(target, (p.tensor(*batched(p), p.size(), *image), [p.one(1, 0, 2) for _ in range(2 * rank)]))

    return example


def im2col(p: Pick) -> Call:
    image = [p.size(6, 4, 12) for _ in range(2)]
    kernel, dilation, stride = [p.one(2, 1, 3), 2], [1, p.one(1, 2)], [p.one(2, 1), p.one(1, 2)]
    padding = [p.one(0, 1) for _ in range(2)]
    return Call(aten.im2col.default, (p.tensor(*batched(p), p.size(), *image), kernel, dilation, padding, stride))


def col2im(p: Pick) -> Call:
    forward = im2col(p)
    x, *rest = forward.args
    table = aten.im2col.default(*forward.args)
    return Call(aten.col2im.default, (p.tensor(*table.shape), list(x.shape[-2:]), *rest))


def grid_sample(rank: int, target: Any) -> Example:
    def example(p: Pick) -> Call:
        b, c, out = p.size(), p.size(), [p.size(2, 4, 3) for _ in range(rank)]
        grid = (torch.rand(b, *out, rank, dtype=torch.float64, generator=p.generator) * 2.4 - 1.2).requires_grad_()
        modes = p.one(0, 1), p.one(0, 1, 2), p.one(False, True)
        return Call(target, (p.tensor(b, c, *[p.size(4, 3) for _ in range(rank)]), grid, *modes))

    return example


def each(make: Callable[[int, Any], Example], rank: int, *packets: Any) -> Examples:
    """The same example for all overloads of the given ops that have a row: `default`, and `vec` where there is one."""
    found = {getattr(packet, name) for packet in packets for name in packet.overloads() if name in ("default", "vec")}
    return {op: make(rank, op) for op in sorted(found, key=str)}


def maxima(rank: int, target: Any) -> Example:
    return pool(rank, target, "max")


def averages(rank: int, target: Any) -> Example:
    return pool(rank, target, "average")


EXAMPLES: Examples = {
    aten.conv1d.default: convolution(1, aten.conv1d.default),
    aten.conv2d.default: convolution(2, aten.conv2d.default),
    aten.conv3d.default: convolution(3, aten.conv3d.default),
    aten.conv1d.padding: convolution(1, aten.conv1d.padding),
    aten.conv2d.padding: convolution(2, aten.conv2d.padding),
    aten.conv3d.padding: convolution(3, aten.conv3d.padding),
    aten.conv_transpose1d.default: transposed(1, aten.conv_transpose1d.default),
    aten.conv_transpose2d.input: transposed(2, aten.conv_transpose2d.input),
    aten.conv_transpose3d.input: transposed(3, aten.conv_transpose3d.input),
    aten.convolution.default: either_convolution,
    **each(maxima, 2, aten.max_pool2d, aten.max_pool2d_with_indices),
    **each(maxima, 3, aten.max_pool3d, aten.max_pool3d_with_indices),
    **each(averages, 2, aten.avg_pool2d),
    **each(averages, 3, aten.avg_pool3d),
    **each(adaptive, 2, aten.adaptive_avg_pool2d, aten._adaptive_avg_pool2d, aten.adaptive_max_pool2d),
    **each(adaptive, 3, aten.adaptive_avg_pool3d, aten._adaptive_avg_pool3d, aten.adaptive_max_pool3d),
    **each(unpool, 2, aten.max_unpool2d),
    **each(unpool, 3, aten.max_unpool3d),
    **each(fractional, 2, aten.fractional_max_pool2d),
    **each(fractional, 3, aten.fractional_max_pool3d),
    **each(resampled, 1, aten.upsample_nearest1d, aten._upsample_nearest_exact1d, aten.upsample_linear1d),
    **each(resampled, 2, aten.upsample_nearest2d, aten._upsample_nearest_exact2d, aten.upsample_bilinear2d),
    **each(resampled, 2, aten.upsample_bicubic2d, aten._upsample_bilinear2d_aa, aten._upsample_bicubic2d_aa),
    **each(resampled, 3, aten.upsample_nearest3d, aten._upsample_nearest_exact3d, aten.upsample_trilinear3d),
    **each(padded, 1, aten.reflection_pad1d, aten.replication_pad1d),
    **each(padded, 2, aten.reflection_pad2d, aten.replication_pad2d),
    **each(padded, 3, aten.reflection_pad3d, aten.replication_pad3d),
    aten.im2col.default: im2col,
    aten.col2im.default: col2im,
    **each(grid_sample, 2, aten.grid_sampler_2d),
    **each(grid_sample, 3, aten.grid_sampler_3d),
}
