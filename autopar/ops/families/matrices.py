"""Matrix products, attention, mixtures of experts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from autopar.ir.experts import EXPERTS
from autopar.ops import fits
from autopar.ops.fits import argument
from autopar.ops.rule import OpRule, Rows, Shape, Signature, fit_text, given_shapes

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


def experts(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """A mixture of experts: tokens are alike, experts and their hidden dim are summed over."""
    up = "e g! n i!" if len(operands[3] or ()) == 4 else "e n i!"
    return fit_text(f"b* i!, b* c!, b* c!, {up}, e o! n -> b* o!", operands, results, {"e": "experts"})


ROWS: Rows = {
    aten.linear.default: OpRule(kind="matmul", text="b* k, n k, n -> b* n", sharded={"k": "linear"}),
    aten.addmm.default: OpRule(kind="matmul", fit=addmm),
    aten.mm.default: OpRule(kind="matmul", text="m k, k n -> m n"),
    aten.bmm.default: OpRule(kind="matmul", text="b m k, b k n -> b m n"),
    aten.matmul.default: OpRule(kind="matmul", fit=fits.matmul),
    aten.scaled_dot_product_attention.default: OpRule(kind="attention", fit=sdpa),
    EXPERTS: OpRule(kind="matmul", fit=experts),
}
