"""Random numbers: each element's is a function of its place, so dropout is linear in what it is applied to."""

from __future__ import annotations

import torch

from autopar.ops import fits
from autopar.ops.rule import OpRule, Rows

aten = torch.ops.aten

ROWS: Rows = {
    aten.dropout.default: OpRule(kind="pointwise", fit=fits.elementwise, linear=True, random=True),
    aten.bernoulli.p: OpRule(kind="pointwise", fit=fits.factory, random=True),
    aten.uniform.default: OpRule(kind="pointwise", fit=fits.factory, random=True),
    aten.normal_functional.default: OpRule(kind="pointwise", fit=fits.factory, random=True),
    aten.exponential.default: OpRule(kind="pointwise", fit=fits.factory, random=True),
    aten.rand_like.default: OpRule(kind="pointwise", fit=fits.factory, random=True),
    aten.randn_like.default: OpRule(kind="pointwise", fit=fits.factory, random=True),
    aten.randint_like.default: OpRule(kind="pointwise", fit=fits.factory, random=True),
    aten.randint_like.low_dtype: OpRule(kind="pointwise", fit=fits.factory, random=True),
    aten.rand.default: OpRule(kind="pointwise", fit=fits.factory, shape_argument=0, random=True),
    aten.randn.default: OpRule(kind="pointwise", fit=fits.factory, shape_argument=0, random=True),
    aten.normal.float_float: OpRule(kind="pointwise", fit=fits.factory, shape_argument=2, random=True),
    aten.randint.default: OpRule(kind="pointwise", fit=fits.factory, shape_argument=1, random=True),
    aten.randint.low: OpRule(kind="pointwise", fit=fits.factory, shape_argument=2, random=True),
    aten.randperm.default: OpRule(kind="whole", fit=fits.all_whole, random=True),
}
