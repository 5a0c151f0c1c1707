"""Matrix products, attention, mixtures of experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from autopar.ir.experts import EXPERTS
from autopar.ir.program import Size
from autopar.ops import fits
from autopar.ops.factors import Dims, Factor
from autopar.ops.fits import argument
from autopar.ops.rule import Fit, OpRule, Rows, Shape, Signature, fit_text, given_shapes

aten = torch.ops.aten


def sdpa(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """Attention over [batch, heads, queries, dim]; each piece of the queries needs all keys, and under `is_causal` its place.

    With `enable_gqa` a head of the keys serves as many heads of the queries as there are more of them, one after the other.
    """
    query_shape, key_shape, _, *masks = given_shapes(operands)
    if len(query_shape) != 4:
        return fits.all_whole(node, operands, results)
    sharded = {"q": "causal_attention"} if argument(node, "is_causal", False) else {}
    mask_dims = {0: "", 2: ", q k!", 3: ", h q k!", 4: ", b h q k!"}
    mask = mask_dims[len(masks[0]) if masks else 0]
    if not argument(node, "enable_gqa", False) or query_shape[1] == key_shape[1]:
        return fit_text(f"b h q d!, b h k! d!, b h k! e!{mask} -> b h q e!", operands, results, sharded)
    if masks:
        return fits.all_whole(node, operands, results)
    shapes = [(s[0], key_shape[1], s[1] // key_shape[1], *s[2:]) for s in (query_shape, results[0])]
    base = fit_text("b g r q d!, b g k! d!, b g k! e! -> b g r q e!", [shapes[0], *operands[1:3]], [shapes[1]], sharded)
    joined = [(dims[0], dims[1] + dims[2], *dims[3:]) for dims in (base.operands[0] or (), base.results[0])]
    return Signature(operands=(joined[0], *base.operands[1:]), results=(joined[1],), sizes=base.sizes, marks=base.marks)


def addmm(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    bias = "n" if len(operands[0] or ()) == 1 else "t n"
    return fit_text(f"{bias}, t k, k n -> t n", operands, results, {"k": "addmm"})


def added(text: str, *summed: str) -> Fit:
    """A tensor that broadcasts against the result, and a product that is added to it: summands have the former once."""

    def fit(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
        base = fit_text(text, operands[1:], results, dict.fromkeys(summed, "once"))
        shape, (result,) = operands[0] or (), results
        aligned = zip(shape, base.results[0][len(result) - len(shape) :], strict=True)
        first = tuple(dim if n != 1 else () for n, dim in aligned)
        return replace(base, operands=(first, *base.operands))

    return fit


def trilinear(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """A sum of products of three tensors, each given further dims of size one (nn.Bilinear)."""
    further = [argument(node, f"expand{i}") for i in (1, 2, 3)]
    summed = argument(node, "sumdim")
    rank = len(operands[0] or ()) + len(further[0])
    sizes: dict[Factor, Size] = {}
    ins: list[Dims] = []
    for shape, missing in zip(given_shapes(operands), further, strict=True):
        at = [d for d in range(rank) if d not in missing]
        ins.append(tuple((f"d{d}",) if n != 1 else () for d, n in zip(at, shape, strict=True)))
        sizes |= {f"d{d}": n for d, n in zip(at, shape, strict=True) if n != 1}
    out = tuple((f"d{d}",) if f"d{d}" in sizes else () for d in range(rank) if d not in summed)
    return fits.signature(ins, [out], sizes)


def of_matrices(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """Decompositions, inverses, determinants, solutions: of each matrix by itself, if it is one; no broadcasting."""
    first = operands[0] or ()
    batch = first[:-2]
    alike = all(len(shape) == len(first) or shape == first[:-1] for shape in given_shapes(operands))
    if not alike or any(shape[: len(batch)] != batch for shape in (*given_shapes(operands), *results)):
        return fits.all_whole(node, operands, results)
    whole = fits.all_whole(node, [None if s is None else s[len(batch) :] for s in operands], [s[len(batch) :] for s in results])
    outer, sizes = fits.named(batch, "b")
    ins = [None if dims is None else (*outer, *dims) for dims in whole.operands]
    return fits.signature(ins, [(*outer, *dims) for dims in whole.results], {**sizes, **whole.sizes}, whole=whole.sizes)


def experts(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """A mixture of experts: tokens are alike, and may travel to their experts; these and their hidden dim are summed over."""
    up = "e g! n i!" if len(operands[3] or ()) == 4 else "e n i!"
    text = f"b* i!, b* c!, b* c!, {up}, e o! n, {up.removesuffix(' i!')}, e o! -> b* o!"
    biased = len(operands) > 5
    return fit_text(text, operands, results, {"e": "experts", **({"n": "experts"} if biased else {})}, exchanged={"b*": "e"})


ROWS: Rows = {
    aten.linear.default: OpRule(kind="matmul", text="b* k, n k, n -> b* n", sharded={"k": "linear"}, ragged=frozenset({"n"})),
    aten.addmm.default: OpRule(kind="matmul", fit=addmm, ragged=frozenset({"n"})),
    aten.mm.default: OpRule(kind="matmul", text="m k, k n -> m n", ragged=frozenset({"n"})),
    aten.bmm.default: OpRule(kind="matmul", text="b m k, b k n -> b m n"),
    aten.baddbmm.default: OpRule(kind="matmul", fit=added("b m k, b k n -> b m n", "k")),
    aten.addbmm.default: OpRule(kind="matmul", fit=added("b m k, b k n -> m n", "b", "k")),
    aten.addmv.default: OpRule(kind="matmul", fit=added("m k, k -> m", "k")),
    aten.matmul.default: OpRule(kind="matmul", fit=fits.matmul),
    aten._trilinear.default: OpRule(kind="matmul", fit=trilinear),
    aten._cdist_forward.default: OpRule(kind="matmul", text="b* m d!, b* n d! -> b* m n"),
    **dict.fromkeys(
        [
            *(aten.linalg_qr.default, aten._linalg_svd.default, aten._linalg_eigh.default, aten._linalg_det.default),
            *(aten._linalg_slogdet.default, aten.linalg_inv_ex.default, aten.linalg_cholesky_ex.default),
            aten._linalg_solve_ex.default,
        ],
        OpRule(kind="matmul", fit=of_matrices),
    ),
    aten.scaled_dot_product_attention.default: OpRule(kind="attention", fit=sdpa),
    EXPERTS: OpRule(kind="matmul", fit=experts),
}
