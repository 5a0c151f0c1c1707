"""For every op with a rule, calls of it: shapes and attributes that a `Pick` chooses.

Choices list the usual case first: hypothesis picks among all of them, the golden text shows the first ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from autopar.ir.experts import EXPERTS
from tests.ops.examples_inner import (
    Example,
    addmm,
    attention,
    bmm,
    convolution,
    cross_entropy,
    embedding,
    experts,
    layer_norm,
    linear,
    matmul,
    mm,
    rms_norm,
)
from tests.ops.pick import DTYPE, Pick
from tests.ops.proofs import Call

aten = torch.ops.aten


def along_one(target: Any, *after: Any) -> Example:
    """Ops of (x, dim, ...) that work along a dim."""

    def example(p: Pick) -> Call:
        rank = p.one(3, 2, 1)
        return Call(target, (p.tensor(*p.shape(rank)), p.dim(rank), *after))

    return example


def topk(p: Pick) -> Call:
    shape = [p.size(4, 6, 12) for _ in range(p.one(3, 2, 1))]
    return Call(aten.topk.default, (p.tensor(*shape), p.one(2, 4), *p.one((), (p.dim(len(shape)),))))


def along_some(target: Any) -> Example:
    """Ops of (x, dims)."""

    def example(p: Pick) -> Call:
        rank = p.one(3, 2, 1)
        return Call(target, (p.tensor(*p.shape(rank)), p.dims(rank)))

    return example


def reduction(target: Any, *, whole_too: bool = True) -> Example:
    """Ops of (x, dims, keepdim)."""

    def example(p: Pick) -> Call:
        rank = p.one(3, 2, 1)
        dims = p.one(p.dims(rank), p.dims(rank), [], None) if whole_too else p.dims(rank)
        return Call(target, (p.tensor(*p.shape(rank)), dims, p.one(False, True)))

    return example


def amax(p: Pick) -> Call:
    rank = p.one(3, 2, 1)
    return Call(aten.amax.default, (p.tensor(*p.shape(rank)), p.one(p.dims(rank), []), p.one(False, True)))


def argmax(p: Pick) -> Call:
    rank = p.one(3, 2, 1)
    return Call(aten.argmax.default, (p.tensor(*p.shape(rank)), p.one(p.dim(rank), None), p.one(False, True)))


def var(p: Pick) -> Call:
    shape = [p.size(4, 6, 2) for _ in range(p.one(3, 2))]
    options = p.one({}, {"correction": 0, "keepdim": True})
    return Call(aten.var.correction, (p.tensor(*shape), p.one(p.dims(len(shape)), None)), options)


def all_of(target: Any) -> Example:
    """Ops of (x)."""

    def example(p: Pick) -> Call:
        return Call(target, (p.tensor(*p.shape(p.one(3, 2, 1, 0))),))

    return example


def transposed(p: Pick) -> Call:
    return Call(aten.t.default, (p.tensor(*p.shape(p.one(2, 1))),))


def reshape(target: Any) -> Example:
    def example(p: Pick) -> Call:
        before, after = p.one(
            ([4, 6, 12], [24, 12]), ([24, 12], [4, 6, 12]), ([4, 12], [4, 2, -1]), ([4, 6], [6, 4]), ([2, 1, 6], [2, 6]),
            ([4, 6], [1, 4, 6, 1]), ([12], [2, 6]), ([4, 6, 2], [48]), ([2, 12, 2], [2, 4, 6]), ([6, 2, 2], [-1, 1, 4]),
            ([1], []), ([4, 9], [6, 6]),
        )  # fmt: skip
        return Call(target, (p.tensor(*before), after))

    return example


def permute(p: Pick) -> Call:
    return Call(aten.permute.default, (p.tensor(4, 6, *p.shape(2)), p.one([0, 2, 1, 3], [3, 1, 0, 2], [-1, 0, -2, 1])))


def transpose(p: Pick) -> Call:
    rank = p.one(3, 2)
    return Call(aten.transpose.int, (p.tensor(*p.shape(rank)), p.one(*range(rank)), p.dim(rank)))


def unsqueeze(p: Pick) -> Call:
    rank = p.one(2, 1, 0, 3)
    return Call(aten.unsqueeze.default, (p.tensor(*p.shape(rank)), p.one(0, -1, rank)))


def squeeze(target: Any) -> Example:
    def example(p: Pick) -> Call:
        shape = p.one([4, 1, 6], [2, 1, 3], [2, 3], [1, 1, 4], [4, 2, 1])
        dims: tuple[Any, ...] = (p.dims(len(shape)),) if target is aten.squeeze.dims else (p.dim(len(shape)),)
        return Call(target, (p.tensor(*shape), *(() if target is aten.squeeze.default else dims)))

    return example


def expand(p: Pick) -> Call:
    before, after = p.one(
        ([4, 1, 6], [4, 2, 6]), ([6], [4, 6]), ([1, 4], [2, 6, 4]), ([4, 1], [-1, 6]),
        ([2, 4], [2, 4]), ([], [4, 2]), ([1], [1]),
    )  # fmt: skip
    return Call(aten.expand.default, (p.tensor(*before), after))


def slice_(p: Pick) -> Call:
    shape = [p.size(4, 6, 12) for _ in range(p.one(3, 2, 1))]
    bounds = p.one((1, 3), (0, 2**63 - 1), (None, -1), (0, 4, 2), (2,))
    return Call(aten.slice.Tensor, (p.tensor(*shape), p.dim(len(shape)), *bounds))


def select(p: Pick) -> Call:
    rank = p.one(3, 2, 1)
    return Call(aten.select.int, (p.tensor(*p.shape(rank)), p.dim(rank), p.one(0, -1)))


def split(target: Any) -> Example:
    def example(p: Pick) -> Call:
        rank = p.one(3, 2, 1)
        dim = p.dim(rank)
        shape = p.shape(rank)
        shape[dim] = 6
        pieces = {aten.split.Tensor: (2, 4), aten.chunk.default: (3, 2), aten.split_with_sizes.default: ([4, 2], [1, 3, 2])}
        return Call(target, (p.tensor(*shape), p.one(*pieces[target]), dim))

    return example


def cat(p: Pick) -> Call:
    rank = p.one(3, 2, 1)
    dim, shape = p.dim(rank), p.shape(rank)
    parts = []
    for _ in range(p.one(2, 3, 1)):
        shape[dim] = p.size()
        parts.append(p.tensor(*shape, grad=p.one(True, True, False)))
    return Call(aten.cat.default, (p.one(parts, [*parts, parts[0]]), dim))


def pad(p: Pick) -> Call:
    shape = [p.size(4, 6, 12) for _ in range(p.one(3, 2, 1))]
    return Call(aten.constant_pad_nd.default, (p.tensor(*shape), p.one([0, 1], [1, -1], [0, 0, 2, 1][: 2 * len(shape)]), 0.5))


def cast(p: Pick) -> Call:
    x = p.one(p.tensor(*p.shape(2)), p.integers(9, 4, 6), p.flags(4, 6))
    return Call(aten._to_copy.default, (x,), p.one({"dtype": torch.float64}, {}, {"dtype": torch.bool}, {"dtype": torch.int64}))


def binary(target: Any, kind: str = "float", numbers: Sequence[Any] = (), **options: Any) -> Example:
    """Ops of two tensors that broadcast, or (given numbers) of a tensor and a number."""

    def example(p: Pick) -> Call:
        shape = p.shape(p.one(3, 2, 1))
        make = {"float": p.tensor, "positive": p.positive, "integer": lambda *s: p.integers(3, *s), "bool": p.flags}[kind]
        first = make(*p.one(shape, p.against(shape)))
        second = p.one(make(*shape), make(*p.against(shape)), first, *numbers)
        return Call(target, (first, second), p.one({}, options))

    return example


def unary(target: Any, *after: Any, positive: bool = False) -> Example:
    def example(p: Pick) -> Call:
        make = p.positive if positive else p.tensor
        return Call(target, (make(*p.shape(p.one(3, 2, 0))), *after))

    return example


def where(p: Pick) -> Call:
    shape = p.shape(3)
    return Call(aten.where.self, (p.flags(*p.one(shape, p.against(shape))), p.tensor(*shape), p.tensor(*p.against(shape))))


def masked_fill(p: Pick) -> Call:
    shape = p.shape(3)
    return Call(aten.masked_fill.Scalar, (p.tensor(*shape), p.flags(*p.one(shape, p.against(shape))), -3.0))


def addcmul(p: Pick) -> Call:
    shape = p.shape(2)
    factors = p.tensor(*p.against(shape)), p.tensor(*p.against(shape))
    return Call(aten.addcmul.default, (p.tensor(*shape), *factors), {"value": 2})


def dropout(p: Pick) -> Call:
    return Call(aten.dropout.default, (p.tensor(*p.shape(3)), *p.one((0.5, True), (0.5, False), (0.0, True), (1.0, True))))


def random_like(target: Any, *after: Any) -> Example:
    """Ops of (x) that draw numbers, whatever is in x."""

    def example(p: Pick) -> Call:
        return Call(target, (p.tensor(*p.shape(p.one(3, 2, 1, 0)), grad=False), *after))

    return example


def random_of_shape(target: Any, *before: Any, dtype: torch.dtype = DTYPE) -> Example:
    """Ops of (…, shape) that draw numbers."""

    def example(p: Pick) -> Call:
        return Call(target, (*before, p.shape(p.one(2, 1, 3))), {"dtype": dtype, "device": torch.device("cpu")})

    return example


def factory(target: Any, *after: Any) -> Example:
    def example(p: Pick) -> Call:
        return Call(target, (p.shape(p.one(2, 1, 3)), *after), {"dtype": DTYPE, "device": torch.device("cpu")})

    return example


def slice_scatter(p: Pick) -> Call:
    shape = [p.size(4, 6, 12) for _ in range(p.one(3, 2, 1))]
    dim = p.dim(len(shape))
    part = list(shape)
    part[dim] = 2
    return Call(aten.slice_scatter.default, (p.tensor(*shape), p.tensor(*part), dim, 1, 3))


def arange(target: Any, *bounds: Any) -> Example:
    return lambda p: Call(target, bounds, {"device": torch.device("cpu")})


def index(p: Pick) -> Call:
    x, at = p.tensor(4, 6, 2), p.integers(4, 3)
    return Call(aten.index.Tensor, (x, p.one([at], [None, at], [at, at])))


def gather(p: Pick) -> Call:
    return Call(aten.gather.default, (p.tensor(4, 6), p.one(0, 1), p.integers(4, 4, 6)))


def index_select(p: Pick) -> Call:
    return Call(aten.index_select.default, (p.tensor(4, 6), p.one(0, 1), p.integers(4, 2)))


EXAMPLES: dict[Any, Example] = {
    aten.linear.default: linear,
    aten.addmm.default: addmm,
    aten.mm.default: mm,
    aten.bmm.default: bmm,
    aten.matmul.default: matmul,
    aten.scaled_dot_product_attention.default: attention,
    aten.conv1d.default: convolution(1),
    aten.conv2d.default: convolution(2),
    EXPERTS: experts,
    aten.embedding.default: embedding,
    aten.layer_norm.default: layer_norm,
    aten.rms_norm.default: rms_norm,
    aten.cross_entropy_loss.default: cross_entropy,
    aten.softmax.int: along_one(aten.softmax.int),
    aten._softmax.default: along_one(aten._softmax.default, False),
    aten.log_softmax.int: along_one(aten.log_softmax.int),
    aten._log_softmax.default: along_one(aten._log_softmax.default, False),
    aten.cumsum.default: along_one(aten.cumsum.default),
    aten.flip.default: along_some(aten.flip.default),
    aten.topk.default: topk,
    aten.sum.default: all_of(aten.sum.default),
    aten.sum.dim_IntList: reduction(aten.sum.dim_IntList),
    aten.mean.default: all_of(aten.mean.default),
    aten.mean.dim: reduction(aten.mean.dim),
    aten.amax.default: amax,
    aten.argmax.default: argmax,
    aten.var.correction: var,
    aten.reshape.default: reshape(aten.reshape.default),
    aten.view.default: reshape(aten.view.default),
    aten.permute.default: permute,
    aten.transpose.int: transpose,
    aten.t.default: transposed,
    aten.unsqueeze.default: unsqueeze,
    aten.squeeze.default: squeeze(aten.squeeze.default),
    aten.squeeze.dim: squeeze(aten.squeeze.dim),
    aten.squeeze.dims: squeeze(aten.squeeze.dims),
    aten.contiguous.default: all_of(aten.contiguous.default),
    aten.alias.default: all_of(aten.alias.default),
    aten.clone.default: all_of(aten.clone.default),
    aten.detach.default: all_of(aten.detach.default),
    aten.expand.default: expand,
    aten.slice.Tensor: slice_,
    aten.select.int: select,
    aten.split_with_sizes.default: split(aten.split_with_sizes.default),
    aten.split.Tensor: split(aten.split.Tensor),
    aten.chunk.default: split(aten.chunk.default),
    aten.unbind.int: along_one(aten.unbind.int),
    aten.cat.default: cat,
    aten.index_select.default: index_select,
    aten.constant_pad_nd.default: pad,
    aten._to_copy.default: cast,
    aten.add.Tensor: binary(aten.add.Tensor, numbers=(2.0,), alpha=2),
    aten.sub.Tensor: binary(aten.sub.Tensor, numbers=(2.0,), alpha=3),
    aten.neg.default: unary(aten.neg.default),
    aten.mul.Tensor: binary(aten.mul.Tensor, numbers=(0.5,)),
    aten.div.Tensor: binary(aten.div.Tensor, "positive", numbers=(3.0,)),
    aten.dropout.default: dropout,
    aten.bernoulli.p: random_like(aten.bernoulli.p, 0.3),
    aten.uniform.default: random_like(aten.uniform.default, -1.0, 3.0),
    aten.normal_functional.default: random_like(aten.normal_functional.default, 1.0, 2.0),
    aten.exponential.default: random_like(aten.exponential.default, 2.0),
    aten.rand_like.default: random_like(aten.rand_like.default),
    aten.randn_like.default: random_like(aten.randn_like.default),
    aten.randint_like.default: random_like(aten.randint_like.default, 5),
    aten.randint_like.low_dtype: random_like(aten.randint_like.low_dtype, 2, 9),
    aten.rand.default: random_of_shape(aten.rand.default),
    aten.randn.default: random_of_shape(aten.randn.default),
    aten.normal.float_float: random_of_shape(aten.normal.float_float, 1.0, 2.0),
    aten.randint.default: random_of_shape(aten.randint.default, 5, dtype=torch.int64),
    aten.randint.low: random_of_shape(aten.randint.low, 2, 9, dtype=torch.int64),
    aten.randperm.default: lambda p: Call(aten.randperm.default, (p.size(),), {"device": torch.device("cpu")}),
    aten.arange.start_step: arange(aten.arange.start_step, 0, 12, 2),
    aten.arange.start: arange(aten.arange.start, 2, 6),
    aten.arange.default: arange(aten.arange.default, 6),
    aten.full.default: factory(aten.full.default, 2.5),
    aten.zeros.default: factory(aten.zeros.default),
    aten.ones.default: factory(aten.ones.default),
    aten.scalar_tensor.default: lambda p: Call(
        aten.scalar_tensor.default, (2.5,), {"dtype": DTYPE, "device": torch.device("cpu")}
    ),
    aten.full_like.default: unary(aten.full_like.default, 2.5),
    aten.slice_scatter.default: slice_scatter,
    aten.index.Tensor: index,
    aten.gather.default: gather,
}
"""One per row of the table."""

POINTWISE: dict[Any, Example] = {
    aten.gelu.default: unary(aten.gelu.default),
    aten.relu.default: unary(aten.relu.default),
    aten.silu.default: unary(aten.silu.default),
    aten.tanh.default: unary(aten.tanh.default),
    aten.sigmoid.default: unary(aten.sigmoid.default),
    aten.exp.default: unary(aten.exp.default),
    aten.cos.default: unary(aten.cos.default),
    aten.sin.default: unary(aten.sin.default),
    aten.rsqrt.default: unary(aten.rsqrt.default, positive=True),
    aten.pow.Tensor_Scalar: unary(aten.pow.Tensor_Scalar, 3.0),
    aten.pow.Tensor_Tensor: binary(aten.pow.Tensor_Tensor, "positive"),
    aten.clamp.default: unary(aten.clamp.default, -0.5, 0.5),
    aten.mul.Scalar: unary(aten.mul.Scalar, 2.0),
    aten.rsub.Scalar: unary(aten.rsub.Scalar, 1.0),
    aten.maximum.default: binary(aten.maximum.default, "positive"),
    aten.eq.Tensor: binary(aten.eq.Tensor, "integer"),
    aten.ne.Tensor: binary(aten.ne.Tensor, "integer"),
    aten.le.Tensor: binary(aten.le.Tensor, "integer"),
    aten.bitwise_and.Tensor: binary(aten.bitwise_and.Tensor, "bool"),
    aten.where.self: where,
    aten.masked_fill.Scalar: masked_fill,
    aten.addcmul.default: addcmul,
}
"""Ops whose rule comes from torch's pointwise tag."""
