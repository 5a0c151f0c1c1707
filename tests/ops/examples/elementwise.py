from __future__ import annotations

import torch

from autopar.ops.proof import Call
from tests.ops.examples.common import Examples, binary, unary
from tests.ops.pick import Pick

aten = torch.ops.aten


def cast(p: Pick) -> Call:
    x = p.one(p.tensor(*p.shape(2)), p.integers(9, 4, 6), p.flags(4, 6))
    return Call(aten._to_copy.default, (x,), p.one({"dtype": torch.float64}, {}, {"dtype": torch.bool}, {"dtype": torch.int64}))


EXAMPLES: Examples = {
    aten._to_copy.default: cast,
    aten.add.Tensor: binary(aten.add.Tensor, numbers=(2.0,), alpha=2),
    aten.sub.Tensor: binary(aten.sub.Tensor, numbers=(2.0,), alpha=3),
    aten.neg.default: unary(aten.neg.default),
    aten.mul.Tensor: binary(aten.mul.Tensor, numbers=(0.5,)),
    aten.div.Tensor: binary(aten.div.Tensor, "positive", numbers=(3.0,)),
    aten.mul.Scalar: unary(aten.mul.Scalar, 2.0),
    aten.hardswish.default: unary(aten.hardswish.default),
    aten.log_sigmoid.default: unary(aten.log_sigmoid.default),
}
