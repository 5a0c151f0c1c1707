"""Norms and softmax: each element is scaled by what it stands among."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from autopar.ops import fits
from autopar.ops.factors import Dims
from autopar.ops.fits import argument, dim_list
from autopar.ops.rule import INVARIANT, WHOLE, Fit, OpRule, Rows, Shape, Signature, fit_text

aten = torch.ops.aten


def layer_norm(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    if len(argument(node, "normalized_shape")) != 1:
        return fits.last_whole(node, operands, results)
    return fit_text("b* h, h, h -> b* h", operands, results, {"h": "layer_norm"})


def rms_norm(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    if len(argument(node, "normalized_shape")) != 1:
        return fits.last_whole(node, operands, results)
    return fit_text("b* h, h -> b* h", operands, results, {"h": "rms_norm"})


def native_layer_norm(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """Mean and deviation, the second and third result, have ones in place of the normalized dims."""
    base = fits.last_whole(node, operands, results[:1])
    kept = len(results[0]) - len(argument(node, "normalized_shape"))
    statistics: Dims = (*base.results[0][:kept], *(() for _ in results[0][kept:]))
    whole = [f for f, marks in base.marks.items() if WHOLE in marks]
    return fits.signature(base.operands, (*base.results, statistics, statistics), dict(base.sizes), whole=whole)


def group_norm(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """Groups of channels (g c): statistics are those of a group, over all of space."""
    native = len(results) == 3
    shape, groups = results[0], argument(node, "group" if native else "num_groups")
    sizes = {"b": shape[0], "g": groups, "c": shape[1] // groups} | {f"x{i}": n for i, n in enumerate(shape[2:])}
    sizes = {f: n for f, n in sizes.items() if n != 1}

    def real(*factors: str) -> tuple[str, ...]:
        return tuple(f for f in factors if f in sizes)

    image = (real("b"), real("g", "c"), *(real(f"x{i}") for i in range(len(shape) - 2)))
    ins = [image, *(None if s is None else (real("g", "c"),) for s in operands[1:])]
    outs = [image, *[(real("b"), real("g"))] * (len(results) - 1)]
    return fits.signature(ins, outs, sizes, whole=[f for f in sizes if f not in "bg"])


def batch_norm(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """In training the statistics of a channel are those of the whole batch, wherever it is."""
    shape = results[0]
    image, sizes = fits.named(shape)

    def of_channels(shape: Shape) -> Dims:
        """Of weights and statistics; without training some are empty."""
        return (image[1],) if shape[0] else ((),)

    ins = [image, *(None if s is None else of_channels(s) for s in operands[1:])]
    base = fits.signature(ins, [image, *map(of_channels, results[1:])], sizes)
    if not argument(node, "training"):
        return base
    over = {f: frozenset({INVARIANT, f"sharded:batch_norm:{f}"}) for f in sizes if f != "d1"}
    return Signature(operands=base.operands, results=base.results, sizes=sizes, marks={**base.marks, **over})


def softmax(implementation: str) -> Fit:
    def fit(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
        base = fits.elementwise(node, operands, results)
        (dim,) = dim_list(argument(node, "dim"), len(results[0])) or [0]
        along = {f"d{dim}": implementation} if f"d{dim}" in base.sizes else {}
        return fits.signature(base.operands, base.results, dict(base.sizes), sharded=along)

    return fit


ROWS: Rows = {
    aten.layer_norm.default: OpRule(kind="norm", fit=layer_norm, shape_argument=1),
    aten.rms_norm.default: OpRule(kind="norm", fit=rms_norm, shape_argument=1),
    aten.native_layer_norm.default: OpRule(kind="norm", fit=native_layer_norm),
    aten.group_norm.default: OpRule(kind="norm", fit=group_norm, counts={"num_groups": "g"}),
    aten.native_group_norm.default: OpRule(
        kind="norm", fit=group_norm, counts={"N": "b", "C": "g c", "HxW": "x0 x1 x2 x3", "group": "g"}
    ),
    aten._native_batch_norm_legit_functional.default: OpRule(kind="norm", fit=batch_norm),
    aten._native_batch_norm_legit.no_stats: OpRule(kind="norm", fit=batch_norm),
    aten._native_batch_norm_legit_no_training.default: OpRule(kind="norm", fit=batch_norm),
    aten.softmax.int: OpRule(kind="norm", fit=softmax("softmax")),
    aten._softmax.default: OpRule(kind="norm", fit=softmax("softmax")),
    aten.log_softmax.int: OpRule(kind="norm", fit=softmax("log_softmax")),
    aten._log_softmax.default: OpRule(kind="norm", fit=softmax("log_softmax")),
}
