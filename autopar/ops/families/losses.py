"""Losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from autopar.ops import fits
from autopar.ops.fits import argument
from autopar.ops.rule import OpRule, Rows, Shape, Signature, fit_text, given_shapes

aten = torch.ops.aten


def cross_entropy(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """Class indices over [tokens, vocab] logits, summed or averaged, without class weights; anything else stays whole."""
    reduces = argument(node, "reduction", 1) in (1, 2)
    if [len(shape) for shape in given_shapes(operands)] != [2, 1] or len(operands) != 2 or not reduces:
        return fits.all_whole(node, operands, results)
    sharded = {"t": "cross_entropy", "v": "cross_entropy"}
    return fit_text("t v, t ->", operands, results, sharded, frozenset({"v"}))


ROWS: Rows = {
    aten.cross_entropy_loss.default: OpRule(kind="loss", fit=cross_entropy),
}
