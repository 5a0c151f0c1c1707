"""Views, and data movement that is a view of some dims and leaves one whole."""

from __future__ import annotations

import torch

from autopar.ops import fits
from autopar.ops.rule import OpRule, Rows

aten = torch.ops.aten

ROWS: Rows = {
    aten.flip.default: OpRule(kind="pointwise", fit=fits.elementwise_whole("dims"), linear=True),
    aten.reshape.default: OpRule(kind="view", fit=fits.regrouped, linear=True, shape_argument=1),
    aten.view.default: OpRule(kind="view", fit=fits.regrouped, linear=True, shape_argument=1),
    aten.permute.default: OpRule(kind="view", fit=fits.permuted(fits.permute_order), linear=True),
    aten.transpose.int: OpRule(kind="view", fit=fits.permuted(fits.transpose_order), linear=True),
    aten.t.default: OpRule(kind="view", fit=fits.permuted(fits.transpose_order), linear=True),
    aten.unsqueeze.default: OpRule(kind="view", fit=fits.ones_moved, linear=True),
    aten.squeeze.default: OpRule(kind="view", fit=fits.ones_moved, linear=True),
    aten.squeeze.dim: OpRule(kind="view", fit=fits.ones_moved, linear=True),
    aten.squeeze.dims: OpRule(kind="view", fit=fits.ones_moved, linear=True),
    aten.contiguous.default: OpRule(kind="view", fit=fits.elementwise, linear=True),
    aten.alias.default: OpRule(kind="view", fit=fits.elementwise, linear=True),
    aten.clone.default: OpRule(kind="pointwise", fit=fits.elementwise, linear=True),
    aten.detach.default: OpRule(kind="pointwise", fit=fits.elementwise, linear=True),
    aten.expand.default: OpRule(kind="pointwise", fit=fits.elementwise, linear=True, shape_argument=1),
    aten.slice.Tensor: OpRule(kind="pointwise", fit=fits.along("dim"), linear=True),
    aten.select.int: OpRule(kind="pointwise", fit=fits.along("dim"), linear=True),
    aten.split_with_sizes.default: OpRule(kind="pointwise", fit=fits.along("dim"), linear=True),
    aten.split.Tensor: OpRule(kind="pointwise", fit=fits.along("dim"), linear=True),
    aten.chunk.default: OpRule(kind="pointwise", fit=fits.along("dim"), linear=True),
    aten.unbind.int: OpRule(kind="pointwise", fit=fits.along("dim"), linear=True),
    aten.cat.default: OpRule(kind="pointwise", fit=fits.along("dim"), linear=True),
    aten.constant_pad_nd.default: OpRule(kind="pointwise", fit=fits.padded),
}
