"""Reductions, and sums along the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from autopar.ops import fits
from autopar.ops.fits import argument, reduced_inside
from autopar.ops.rule import OpRule, Rows, Shape, Signature

aten = torch.ops.aten


def positions(name: str) -> Callable[..., Signature]:
    """argmax, argmin: positions along a dim; in the flattened tensor (no dim) they are of no dim, which keeps all whole."""

    def fit(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
        if argument(node, "dim") is None and len(operands[0] or ()) > 1:
            return fits.reduction_whole(node, operands, results)
        return reduced_inside(name)(node, operands, results)

    return fit


def vector_norm(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """Of order 2 a root of sums, of order 1 a sum (of moduli: not linear), else whole."""
    order, dtype = argument(node, "ord", 2), argument(node, "dtype")
    if order == 1:
        return fits.reduction(node, operands, results)
    if order != 2 or dtype is not None:
        return fits.reduction_whole(node, operands, results)
    return reduced_inside("euclidean_norm")(node, operands, results)


def along_dim(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """Elementwise but for the dim (-1 by default), which stays whole."""
    base = fits.elementwise(node, operands, results)
    (dim,) = fits.dim_list(argument(node, "dim", -1), len(results[0])) or [0]
    return fits.signature(base.operands, base.results, dict(base.sizes), whole=[f"d{dim}"])


def reduced_dim(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """Reductions along `dim`, the last one by default, that look at all of it."""
    shape = operands[0] or ()
    (dim,) = fits.dim_list(argument(node, "dim", -1), len(shape)) or [0]
    ins, sizes = fits.named(shape)
    keep = bool(argument(node, "keepdim", False))
    out = tuple(() if i == dim else ins[i] for i in range(len(shape)) if keep or i != dim)
    return fits.signature([ins], [out] * len(results), sizes, whole=[f"d{dim}"])


def inside(name: str) -> OpRule:
    return OpRule(kind="reduction", fit=reduced_inside(name))


def whole(fit: Callable[..., Signature]) -> OpRule:
    return OpRule(kind="reduction", fit=fit)


ALONG = OpRule(kind="norm", fit=along_dim)

ROWS: Rows = {
    aten.sum.default: OpRule(kind="reduction", fit=fits.reduction, linear=True),
    aten.sum.dim_IntList: OpRule(kind="reduction", fit=fits.reduction, linear=True),
    aten.mean.default: OpRule(kind="reduction", fit=fits.mean, linear=True),
    aten.mean.dim: OpRule(kind="reduction", fit=fits.mean, linear=True),
    aten.amax.default: inside("maximum"),
    aten.amin.default: inside("minimum"),
    aten.max.default: inside("maximum"),
    aten.min.default: inside("minimum"),
    aten.max.dim: inside("max_at"),
    aten.min.dim: inside("min_at"),
    aten.argmax.default: whole(positions("argmax")),
    aten.argmin.default: whole(positions("argmin")),
    aten.any.default: inside("any"),
    aten.any.dim: inside("any"),
    aten.any.dims: inside("any"),
    aten.all.default: inside("all"),
    aten.all.dim: inside("all"),
    aten.all.dims: inside("all"),
    aten.var.correction: inside("var"),
    aten.var_mean.correction: inside("var_mean"),
    aten.linalg_vector_norm.default: OpRule(kind="reduction", fit=vector_norm),
    aten.prod.default: whole(fits.reduction_whole),
    aten.prod.dim_int: whole(fits.reduction_whole),
    aten.median.default: whole(fits.reduction_whole),
    aten.median.dim: whole(reduced_dim),
    aten.mode.default: whole(reduced_dim),
    aten.kthvalue.default: whole(reduced_dim),
    aten.cumsum.default: ALONG,
    aten.cumprod.default: ALONG,
    aten.logcumsumexp.default: ALONG,
    aten.cummax.default: ALONG,
    aten.cummin.default: ALONG,
    aten.sort.default: ALONG,
    aten.sort.stable: ALONG,
    aten.histc.default: whole(fits.all_whole),
}
