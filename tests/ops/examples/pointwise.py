"""Ops whose rule comes from torch's pointwise tag."""

from __future__ import annotations

import torch

from tests.ops.examples.common import Examples, binary, unary
from tests.ops.pick import Pick
from tests.ops.proofs import Call

aten = torch.ops.aten


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


EXAMPLES: Examples = {
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
