"""Views, and data movement that is a view of some dims and leaves one whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from autopar.ops import fits
from autopar.ops.factors import Dims, Factor
from autopar.ops.fits import argument
from autopar.ops.rule import Fit, OpRule, Rows, Shape, Signature, given_shapes

aten = torch.ops.aten


def repeat(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """A dim that is not repeated is one loop, a repeated dim of one element another; a dim of more, repeated, stays whole."""
    (result,) = results
    shape = (*(1 for _ in range(len(result) - len(operands[0] or ()))), *(operands[0] or ()))
    counts = argument(node, "repeats")
    out, sizes = fits.named(result)
    kept = [d for d, count in enumerate(counts) if count == 1]
    made = [d for d, n in enumerate(shape) if n == 1 and d not in kept]
    ins: list[tuple[Factor, ...]] = [out[d] if d in kept else () if n == 1 else (f"i{d}",) for d, n in enumerate(shape)]
    sizes |= {f"i{d}": n for d, n in enumerate(shape) if n != 1 and d not in kept}
    whole = [f for f in sizes if f not in {f"d{d}" for d in (*kept, *made)}]
    return fits.signature([tuple(ins[len(result) - len(operands[0] or ()) :])], [out], sizes, whole)


def dims_moved_last(*names: str) -> Fit:
    """Ops that take dims away, which stay whole, and put others last (a diagonal, windows)."""

    def fit(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
        first, *others = operands
        rank = len(first or ())
        taken = {argument(node, name) % max(rank, 1) for name in names}
        ins, sizes = fits.named(first or ())
        kept = [ins[d] for d in range(rank) if d not in taken]
        whole = {f"d{d}" for d in taken}
        smaller = [shape for shape in (*others, *results) if shape is not None and shape != first]
        for shape in smaller:
            sizes |= {f"o{d}": n for d, n in enumerate(shape) if d >= len(kept) and n != 1}
        last = {f for f in sizes if f.startswith("o")}

        def dims_of(shape: Shape) -> Dims:
            if shape == first:
                return ins
            return (*kept, *((f"o{d}",) if shape[d] != 1 else () for d in range(len(kept), len(shape))))

        outs = [dims_of(shape) for shape in results]
        return fits.signature([dims_of(s) for s in operands if s is not None], outs, sizes, whole=(whole & set(sizes)) | last)

    return fit


def windows(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """aten.unfold: windows along a dim, their elements in a new last dim; both stay whole."""
    (shape,), (result,) = given_shapes(operands), results
    if not shape:
        return fits.all_whole(node, operands, results)
    dim = argument(node, "dimension") % len(shape)
    ins, sizes = fits.named(shape)
    sizes |= {f"o{d}": result[d] for d in (dim, len(shape)) if result[d] != 1}
    out = tuple((f"o{d}",) if f"o{d}" in sizes else () if d in (dim, len(shape)) else ins[d] for d in range(len(result)))
    return fits.signature([ins], [out], sizes, whole=[f for f in (f"d{dim}", f"o{dim}", f"o{len(shape)}") if f in sizes])


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
    aten.roll.default: OpRule(kind="pointwise", fit=fits.elementwise_whole("dims"), linear=True),
    aten.repeat.default: OpRule(kind="pointwise", fit=repeat, linear=True),
    aten.copy.default: OpRule(kind="pointwise", fit=fits.elementwise),
    aten.diagonal.default: OpRule(kind="pointwise", fit=dims_moved_last("dim1", "dim2"), linear=True),
    aten.diagonal_scatter.default: OpRule(kind="pointwise", fit=dims_moved_last("dim1", "dim2")),
    aten.unfold.default: OpRule(kind="pointwise", fit=windows, linear=True),
    aten.as_strided.default: OpRule(kind="norm", fit=fits.all_whole),
    aten.repeat_interleave.Tensor: OpRule(kind="norm", fit=fits.all_whole),
    aten.constant_pad_nd.default: OpRule(kind="pointwise", fit=fits.padded),
}
