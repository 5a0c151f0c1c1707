"""Tensors made of shapes and numbers."""

from __future__ import annotations

import torch

from autopar.ops import fits
from autopar.ops.rule import OpRule, Rows

aten = torch.ops.aten

ROWS: Rows = {
    aten.arange.start_step: OpRule(kind="whole", fit=fits.all_whole),
    aten.arange.start: OpRule(kind="whole", fit=fits.all_whole),
    aten.arange.default: OpRule(kind="whole", fit=fits.all_whole),
    aten.tril_indices.default: OpRule(kind="whole", fit=fits.all_whole),
    aten.triu_indices.default: OpRule(kind="whole", fit=fits.all_whole),
    aten.full.default: OpRule(kind="pointwise", fit=fits.factory, shape_argument=0),
    aten.zeros.default: OpRule(kind="pointwise", fit=fits.factory, shape_argument=0),
    aten.ones.default: OpRule(kind="pointwise", fit=fits.factory, shape_argument=0),
    aten.scalar_tensor.default: OpRule(kind="pointwise", fit=fits.factory),
    aten.full_like.default: OpRule(kind="pointwise", fit=fits.elementwise),
    aten.zeros_like.default: OpRule(kind="pointwise", fit=fits.elementwise),
    aten.ones_like.default: OpRule(kind="pointwise", fit=fits.elementwise),
}
