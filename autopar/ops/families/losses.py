"""Losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from autopar.ir.ctc import CTC_LOSS, CTC_TARGETS
from autopar.ops import fits
from autopar.ops.fits import argument
from autopar.ops.rule import OpRule, Rows, Shape, Signature, fit_text, given_shapes

aten = torch.ops.aten
NONE, MEAN, SUM = 0, 1, 2
"""The codes that aten's loss functions use for `reduction`."""


def cross_entropy(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """Logits [tokens, classes, ...]. Classes may be cut where the target is their index; targets that are probabilities, and
    logits of one token without its dim, keep them whole."""
    reduction = argument(node, "reduction", MEAN)
    logits, target = given_shapes(operands)[:2]
    if len(logits) < 2:
        return fits.all_whole(node, operands, results)
    out = "t d*" if reduction == NONE else ""
    if len(target) == len(logits):
        base = fit_text(f"t v! d*, t v! d*, v! -> {out}", operands, results)
        return fits.averaged(base) if reduction == MEAN else base
    tokens = () if reduction == NONE else ("t", *(f"d{d}" for d in range(len(logits) - 2)))
    sharded = dict.fromkeys((*tokens, "v"), "cross_entropy")
    return fit_text(f"t v d*, t d*, v -> {out}", operands, results, sharded, frozenset({"v"}))


def nll(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """Log-probabilities [tokens, classes, ...], read at the target's classes."""
    reduction = argument(node, "reduction", MEAN)
    log_probs = operands[0] or ()
    if len(log_probs) < 2:
        return fits.all_whole(node, operands, results)
    tokens = ("t", *(f"d{d}" for d in range(len(log_probs) - 2))) if reduction == MEAN else ()
    out = "t d*" if reduction == NONE else ""
    return fit_text(f"t v! d*, t d*, v! -> {out}", operands, results, dict.fromkeys(tokens, "nll_mean"))


def ctc(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """Sequences are alike, unless their targets lie one after the other."""
    if len(operands[1] or ()) == 1:
        return fits.all_whole(node, operands, results)
    return fit_text("t! b c!, b s!, b, b -> b", operands, results)


def ctc_targets(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """Rows are alike if each one's length is that of its own targets; else one may begin in the middle of another."""
    if not argument(node, "apart"):
        return fits.all_whole(node, operands, results)
    return fit_text("b s!, b s!, b -> b s!", operands, results)


def of_elements(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """Losses of single elements (operands broadcast), as they are, summed or averaged."""
    reduction = argument(node, "reduction", MEAN)
    if reduction == NONE:
        return fits.elementwise(node, operands, results)
    base = fits.elementwise(node, operands, [broadcast(given_shapes(operands))])
    summed = fits.signature(base.operands, [()], base.sizes)
    return fits.averaged(summed) if reduction == MEAN else summed


def broadcast(shapes: Sequence[Shape]) -> Shape:
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(next((n for n in sizes if n != 1), 1) for sizes in zip(*padded, strict=True))


CROSS_ENTROPY = OpRule(kind="loss", fit=cross_entropy, ragged=frozenset({"v"}))
NLL, ELEMENTS = OpRule(kind="loss", fit=nll), OpRule(kind="loss", fit=of_elements)

ROWS: Rows = {
    aten.cross_entropy_loss.default: CROSS_ENTROPY,
    aten.nll_loss_nd.default: NLL,
    CTC_LOSS: OpRule(kind="loss", fit=ctc),
    CTC_TARGETS: OpRule(kind="norm", fit=ctc_targets),
    aten.mse_loss.default: ELEMENTS,
    aten.l1_loss.default: ELEMENTS,
    aten.smooth_l1_loss.default: ELEMENTS,
    aten.huber_loss.default: ELEMENTS,
    aten.kl_div.default: ELEMENTS,
    aten.binary_cross_entropy.default: ELEMENTS,
    aten.binary_cross_entropy_with_logits.default: ELEMENTS,
}
