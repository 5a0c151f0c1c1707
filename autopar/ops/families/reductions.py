"""Reductions, and sums along the way."""

from __future__ import annotations

import torch

from autopar.ops import fits
from autopar.ops.rule import OpRule, Rows

aten = torch.ops.aten

ROWS: Rows = {
    aten.sum.default: OpRule(kind="reduction", fit=fits.reduction, linear=True),
    aten.sum.dim_IntList: OpRule(kind="reduction", fit=fits.reduction, linear=True),
    aten.mean.default: OpRule(kind="reduction", fit=fits.mean, linear=True),
    aten.mean.dim: OpRule(kind="reduction", fit=fits.mean, linear=True),
    aten.amax.default: OpRule(kind="reduction", fit=fits.reduction_whole),
    aten.argmax.default: OpRule(kind="reduction", fit=fits.reduction_whole),
    aten.var.correction: OpRule(kind="reduction", fit=fits.reduction_whole),
    aten.cumsum.default: OpRule(kind="norm", fit=fits.elementwise_whole("dim")),
}
