"""Fourier transforms, and complex numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from autopar.ops import fits
from autopar.ops.fits import argument, dim_list
from autopar.ops.rule import OpRule, Rows, Shape, Signature, given_shapes

aten = torch.ops.aten


def transform(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """The transformed dims stay whole, of one size or (where half of the frequencies say all) of another."""
    (shape,), (result,) = given_shapes(operands), results
    dims = dim_list(argument(node, "dim"), len(shape)) if argument(node, "dim") else []
    ins, sizes = fits.named(shape)
    out = tuple(dim if d not in dims else (f"o{d}",) if result[d] != 1 else () for d, dim in enumerate(ins))
    sizes |= {f"o{d}": result[d] for d in dims if result[d] != 1}
    whole = [f for d in dims for f in (f"d{d}", f"o{d}") if f in sizes]
    return fits.signature([ins], [out], sizes, whole)


TRANSFORM = OpRule(kind="norm", fit=transform, linear=True)

ROWS: Rows = {
    aten._fft_r2c.default: TRANSFORM,
    aten._fft_c2c.default: TRANSFORM,
    aten._fft_c2r.default: TRANSFORM,
    aten.view_as_real.default: OpRule(kind="pointwise", text="b* -> b* c!", linear=True),
    aten.view_as_complex.default: OpRule(kind="pointwise", text="b* c! -> b*", linear=True),
    aten._conj_physical.default: OpRule(kind="pointwise", fit=fits.elementwise, linear=True),
    aten.complex.default: OpRule(kind="pointwise", fit=fits.elementwise),
    aten.polar.default: OpRule(kind="pointwise", fit=fits.elementwise),
}
