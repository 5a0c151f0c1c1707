"""Reading and writing by position: embeddings, gathers, sorts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from autopar.ops import fits
from autopar.ops.fits import argument
from autopar.ops.rule import OpRule, Rows, Shape, Signature, fit_text

aten = torch.ops.aten


def embedding(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """Gradients that are divided by how often a row was read need all reads, and all rows, in one place."""
    if argument(node, "scale_grad_by_freq", False) or argument(node, "sparse", False):
        return fit_text("v! h, b*! -> b*! h", operands, results)
    return fit_text("v h, b* -> b* h", operands, results, {"v": "embedding"})


ROWS: Rows = {
    aten.embedding.default: OpRule(kind="embedding", fit=embedding),
    aten.index.Tensor: OpRule(kind="whole", fit=fits.all_whole),
    aten.index_select.default: OpRule(kind="whole", fit=fits.all_whole),
    aten.gather.default: OpRule(kind="whole", fit=fits.all_whole),
    aten.topk.default: OpRule(kind="norm", fit=fits.along("dim")),
    aten.slice_scatter.default: OpRule(kind="pointwise", fit=fits.along("dim")),
}
