"""Ops whose rule comes from torch's pointwise tag."""

from __future__ import annotations

from typing import Any

import torch

from autopar.ops.proof import Call
from tests.ops.examples.common import Example, Examples, binary, unary
from tests.ops.pick import Pick

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


def clamp_to_tensors(p: Pick) -> Call:
    shape = p.shape(3)
    low = p.tensor(*p.against(shape), grad=False)
    high = p.one(None, (low + 1).detach())
    return Call(aten.clamp.Tensor, (p.tensor(*shape), low, high))


def shifted(target: Any) -> Example:
    return lambda p: Call(target, (p.integers(9, *p.shape(3)), 2))


EXAMPLES: Examples = {
    **{
        op: unary(op)
        for op in [
            *(aten.abs.default, aten.sign.default, aten.floor.default, aten.ceil.default, aten.round.default),
            *(aten.trunc.default, aten.isnan.default, aten.isinf.default, aten.logical_not.default, aten.erf.default),
            *(aten.expm1.default, aten.sinh.default, aten.cosh.default, aten.atan.default, aten.asinh.default),
            *(aten.softplus.default, aten.elu.default, aten.leaky_relu.default, aten.mish.default),
            *(aten.hardtanh.default, aten.hardsigmoid.default, aten.relu6.default),
        ]
    },
    **{
        op: unary(op, positive=True)
        for op in [
            *(aten.log.default, aten.log1p.default, aten.log2.default, aten.log10.default, aten.sqrt.default),
            *(aten.reciprocal.default, aten.lgamma.default, aten.digamma.default, aten.special_erfcx.default),
        ]
    },
    **{
        op: binary(op)
        for op in [
            *(aten.minimum.default, aten.fmax.default, aten.fmin.default, aten.atan2.default, aten.hypot.default),
            *(aten.ge.Tensor, aten.gt.Tensor, aten.lt.Tensor, aten.copysign.Tensor),
        ]
    },
    **{op: binary(op, "bool") for op in (aten.logical_and.default, aten.logical_or.default, aten.bitwise_or.Tensor)},
    **{op: unary(op, 0.5) for op in (aten.eq.Scalar, aten.ne.Scalar, aten.le.Scalar, aten.lt.Scalar, aten.gt.Scalar)},
    **{op: unary(op, 1.5) for op in (aten.add.Scalar, aten.remainder.Scalar, aten.fmod.Scalar)},
    aten.pow.Tensor_Scalar: unary(aten.pow.Tensor_Scalar, 3.0),
    aten.__lshift__.Scalar: shifted(aten.__lshift__.Scalar),
    aten.__rshift__.Scalar: shifted(aten.__rshift__.Scalar),
    aten.bitwise_and.Scalar: shifted(aten.bitwise_and.Scalar),
    aten.fmod.Tensor: binary(aten.fmod.Tensor, "positive"),
    aten.remainder.Tensor: binary(aten.remainder.Tensor, "positive"),
    aten.pow.Scalar: lambda p: Call(aten.pow.Scalar, (2.0, p.tensor(*p.shape(2)))),
    aten.erfinv.default: lambda p: Call(aten.erfinv.default, (p.tensor(*p.shape(2), grad=False).tanh().requires_grad_(),)),
    aten.clamp.Tensor: clamp_to_tensors,
    aten.gelu.default: unary(aten.gelu.default),
    aten.relu.default: unary(aten.relu.default),
    aten.silu.default: unary(aten.silu.default),
    aten.tanh.default: unary(aten.tanh.default),
    aten.sigmoid.default: unary(aten.sigmoid.default),
    aten.exp.default: unary(aten.exp.default),
    aten.cos.default: unary(aten.cos.default),
    aten.sin.default: unary(aten.sin.default),
    aten.rsqrt.default: unary(aten.rsqrt.default, positive=True),
    aten.pow.Tensor_Tensor: binary(aten.pow.Tensor_Tensor, "positive"),
    aten.clamp.default: unary(aten.clamp.default, -0.5, 0.5),
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
