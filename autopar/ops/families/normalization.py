"""Norms and softmax: each element is scaled by what it stands among."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from autopar.ops import fits
from autopar.ops.fits import argument
from autopar.ops.rule import OpRule, Rows, Shape, Signature, fit_text

aten = torch.ops.aten


def layer_norm(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    if len(argument(node, "normalized_shape")) != 1:
        return fits.last_whole(node, operands, results)
    return fit_text("b* h, h, h -> b* h", operands, results, {"h": "layer_norm"})


def rms_norm(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    if len(argument(node, "normalized_shape")) != 1:
        return fits.last_whole(node, operands, results)
    return fit_text("b* h, h -> b* h", operands, results, {"h": "rms_norm"})


ROWS: Rows = {
    aten.layer_norm.default: OpRule(kind="norm", fit=layer_norm, shape_argument=1),
    aten.rms_norm.default: OpRule(kind="norm", fit=rms_norm, shape_argument=1),
    aten.softmax.int: OpRule(kind="norm", fit=fits.elementwise_whole("dim")),
    aten._softmax.default: OpRule(kind="norm", fit=fits.elementwise_whole("dim")),
    aten.log_softmax.int: OpRule(kind="norm", fit=fits.elementwise_whole("dim")),
    aten._log_softmax.default: OpRule(kind="norm", fit=fits.elementwise_whole("dim")),
}
