"""Writing by position: scatters, sums at positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from autopar.ops import fits
from autopar.ops.factors import Factor
from autopar.ops.families.indexing import Indexed, counted_dims, is_mask, rows_of, with_sharded
from autopar.ops.fits import argument, dim_list, signature
from autopar.ops.rule import OpRule, Rows, Shape, Signature, given_shapes

aten = torch.ops.aten


def adds(node: torch.fx.Node) -> bool:
    """Whether what is written is added to what is there: then summands may come from many devices."""
    reduce = argument(node, "reduce")
    return node.target is aten.scatter_add.default or (reduce == "sum" and bool(argument(node, "include_self")))


def scatter(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """base, index (and source) along `dim`: a device writes the rows that it has, or adds the positions that it has."""
    base, *others = given_shapes(operands)
    if not base or not others[0] or others[0] != others[-1]:
        return fits.all_whole(node, operands, results)
    (dim,) = dim_list(argument(node, "dim"), len(base))
    rows, positions, sizes, whole = rows_of(dim, base, others[0])
    summed = [f"b{dim}"] if adds(node) else []
    if not summed:
        whole.append(f"b{dim}")
    return written(signature([rows, *[positions] * len(others)], [rows], sizes, whole), [f"i{dim}", *summed], "scatter")


def written(base: Signature, factors: Sequence[Factor], implementation: str) -> Signature:
    """With an implementation where rows, or what is summed, are cut."""
    return with_sharded(base, [f for f in factors if f in base.sizes], implementation)


def index_add(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    base, at, _ = given_shapes(operands)
    if not base or not at:
        return fits.all_whole(node, operands, results)
    (dim,) = dim_list(argument(node, "dim"), len(base))
    found = Indexed.of(base, [*[None] * dim, at])
    operand_dims = [found.tensor, found.indices[dim], found.picked]
    return written(signature(operand_dims, [found.tensor], found.sizes), [f"i{dim}", "b0"], "scatter")


def index_put(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """Values broadcast to what lies at the positions; these may be cut where values are added up, as summands.

    One value where a mask says is a choice for each element.
    """
    base, *indices, values = operands
    nodes: Sequence[object] = argument(node, "indices")
    assert base is not None
    assert values is not None
    if is_mask(nodes[0]) and len(given_shapes(indices)) == 1 and set(values) <= {1}:
        out, sizes = fits.named(base)
        return signature([out, out[: len(indices[0] or ())], tuple(() for _ in values)], [out], sizes)
    if any(map(is_mask, nodes)):
        return fits.all_whole(node, operands, results)
    found = Indexed.of(base, indices, counted_dims(nodes, base))
    spread = found.picked[len(found.picked) - len(values) :]
    aligned = tuple(dim if n != 1 else () for dim, n in zip(spread, values, strict=True))
    positions = [f for f in found.sizes if f.startswith("b") and f not in found.counted]
    adding, lone = bool(argument(node, "accumulate")), len(given_shapes(indices)) == 1 and not found.counted
    whole = [*([] if adding else positions), *([] if lone else found.by_position)]
    base_dims = signature([found.tensor, *found.indices, aligned], [found.tensor], found.sizes, whole)
    moved = written(base_dims, [f for f in (*positions, *found.by_position) if f not in whole], "index_put")
    return with_sharded(moved, found.counted, "index_put")


SCATTER = OpRule(kind="norm", fit=scatter)

ROWS: Rows = {
    aten.scatter.src: SCATTER,
    aten.scatter.value: SCATTER,
    aten.scatter.reduce: SCATTER,
    aten.scatter.value_reduce: SCATTER,
    aten.scatter_add.default: SCATTER,
    aten.scatter_reduce.two: SCATTER,
    aten.index_add.default: OpRule(kind="norm", fit=index_add),
    aten.index_put.default: OpRule(kind="norm", fit=index_put),
    aten.masked_scatter.default: OpRule(kind="norm", fit=fits.all_whole),
    aten.slice_scatter.default: OpRule(kind="pointwise", fit=fits.along("dim")),
}
