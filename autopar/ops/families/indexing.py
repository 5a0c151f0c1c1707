"""Reading by position: embeddings, bags of them, gathers, advanced indexing, searches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from autopar.ir.program import Size
from autopar.ops import fits
from autopar.ops.factors import Dims, Factor, quotient
from autopar.ops.fits import argument, dim_list, named, signature
from autopar.ops.rule import OpRule, Rows, Shape, Signature, fit_text, given_shapes, pad
from autopar.torch_private import size_of

aten = torch.ops.aten
SUM_OF_BAG, MEAN_OF_BAG = 0, 1
"""The codes that aten's embedding bags use for `mode`; 2 is a maximum."""


def embedding(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """Gradients that are divided by how often a row was read need all reads, and all rows, in one place."""
    if argument(node, "scale_grad_by_freq", False) or argument(node, "sparse", False):
        return fit_text("v! h, b*! -> b*! h", operands, results)
    return fit_text("v h, b* -> b* h", operands, results, {"v": "embedding"})


def bag_length(node: torch.fx.Node, ids: Size, bags: Size) -> Size | None:
    """How many ids each bag has, where the offsets say that all have as many; None where they depend on data."""
    offsets = argument(node, "offsets")
    if not isinstance(offsets, torch.fx.Node) or offsets.target is not aten.arange.start_step:
        return None
    length = quotient(ids, bags)
    even = argument(offsets, "start") == 0 and length is not None and argument(offsets, "step") == length
    return length if even and not argument(node, "include_last_offset") else None


def embedding_bag(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """Bags of one length are a dim of the ids. Other results than what is in the bags have no dims: where they are read, all
    stays whole."""
    table, ids, offsets, *factors = pad(operands, 4)
    assert ids is not None
    assert offsets is not None
    counted = argument(node, "scale_grad_by_freq") or argument(node, "sparse")
    if counted or any(user.args[1] != 0 for user in node.users):
        return fits.all_whole(node, operands, results)
    rows = "v" if argument(node, "mode") in (SUM_OF_BAG, MEAN_OF_BAG) and argument(node, "padding_idx") < 0 else "v!"
    length = bag_length(node, ids[0], offsets[0])
    flat, text = ids, f"{rows} h, n!, o!, n! -> r! h"
    if length is not None:
        flat, text = (offsets[0], length), f"{rows} h, b l!, b, b l! -> b h"
    given = [table, flat, offsets, flat if factors[0] else None]
    sharded = {f: "embedding_bag" for f, n in (("v", "v"), ("b", "b")) if n in text}
    base = fit_text(text, given[: len(operands)], results[:1], sharded)
    joined = [d if i % 2 == 0 or d is None else (tuple(f for dim in d for f in dim),) for i, d in enumerate(base.operands)]
    return replace(base, operands=tuple(joined), results=(*base.results, *(tuple(() for _ in shape) for shape in results[1:])))


@dataclass(frozen=True, kw_only=True)
class Indexed:
    """What is read or written by position: dims of the tensor, of the indices, and of what lies at these positions.

    Dims that are indexed have factors i0, i1, ..., dims of the positions b0, b1, ..., the other ones d0, d1, ... A dim that is
    read row by row (x[arange(n), at]) is the same loop as the position that counts it: one of `counted`.
    """

    tensor: Dims
    indices: tuple[Dims | None, ...]
    picked: Dims
    sizes: dict[Factor, Size]
    counted: tuple[Factor, ...] = ()

    @property
    def by_position(self) -> list[Factor]:
        return [f for f in self.sizes if f.startswith("i")]

    @staticmethod
    def of(shape: Shape, indices: Sequence[Shape | None], row_by_row: Sequence[int] = ()) -> Indexed:
        """Positions lie side by side where the indexed dims do, else in front: as numpy and torch have it."""
        at = [d for d, index in enumerate(indices) if index is not None]
        letters = ["i" if d in at else "d" for d in range(len(shape))]
        tensor: Dims = tuple(
            (f"{letter}{d}",) if n != 1 else () for d, (letter, n) in enumerate(zip(letters, shape, strict=True))
        )
        rank = max((len(index) for index in indices if index is not None), default=0)
        broad: list[Size] = [1] * rank
        for index in filter(None, indices):
            for d, n in enumerate(index, rank - len(index)):
                broad[d] = n if n != 1 else broad[d]
        positions, sizes = named(tuple(broad), "b")
        aligned = [
            None if index is None else tuple(positions[rank - len(index) + d] if n != 1 else () for d, n in enumerate(index))
            for index in indices
        ]
        counting = {d: next(dim for dim in aligned[d] or () if dim) for d in row_by_row if shape[d] != 1}
        tensor = tuple(counting.get(d, dim) for d, dim in enumerate(tensor))
        rest = [(d, tensor[d]) for d in range(len(shape)) if d not in at]
        first = at[0] if at and at == list(range(at[0], at[-1] + 1)) else 0
        picked = (*(f for d, f in rest if d < first), *positions, *(f for d, f in rest if d >= first))
        sizes |= {f: n for dim, n in zip(tensor, shape, strict=True) for f in dim}
        counted = tuple(factor for dim in counting.values() for factor in dim)
        return Indexed(tensor=tensor, indices=tuple(aligned), picked=picked, sizes=sizes, counted=counted)


def counted_dims(indices: Sequence[object], shape: Shape) -> list[int]:
    """The dims that are indexed with 0, 1, ... up to their size, each by another dim of the positions."""
    found: dict[int, int] = {}
    for d, index in enumerate(indices):
        if isinstance(index, torch.fx.Node) and counts(index, shape[d]):
            sizes = sizes_of(index)
            found.setdefault(next((len(sizes) - i for i, n in enumerate(sizes) if n != 1), 0), d)
    return sorted(found.values())


def sizes_of(node: torch.fx.Node) -> Shape:
    return tuple(size_of(n) for n in node.meta["val"].shape)


def counts(index: torch.fx.Node, size: Size) -> bool:
    """Whether the node is arange(size), maybe with more dims of size one."""
    numbers = index
    while numbers.target in (aten.unsqueeze.default, aten.reshape.default, aten.view.default):
        (numbers,) = numbers.all_input_nodes[:1]
    if numbers.target is not aten.arange.start_step or [n for n in sizes_of(index) if n != 1] != [size]:
        return False
    return bool(argument(numbers, "start") == 0 and argument(numbers, "step") == 1)


def is_mask(index: object) -> bool:
    return isinstance(index, torch.fx.Node) and index.meta["val"].dtype in (torch.bool, torch.uint8)


def with_sharded(base: Signature, factors: Sequence[Factor], implementation: str) -> Signature:
    """With an implementation where one of the factors is cut."""
    mark = {f: base.marks[f] | {f"sharded:{implementation}:{f}"} for f in factors}
    return replace(base, marks={**base.marks, **mark})


def index(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """Positions may be cut, and dims that are not indexed; of a lone index also the dim that it counts."""
    indices: Sequence[object] = argument(node, "indices")
    if any(map(is_mask, indices)):
        return fits.all_whole(node, operands, results)
    shape = operands[0] or ()
    found = Indexed.of(shape, operands[1:], counted_dims(indices, shape))
    lone = len(given_shapes(operands[1:])) == 1 and not found.counted
    base = signature([found.tensor, *found.indices], [found.picked], found.sizes, whole=() if lone else found.by_position)
    return with_sharded(with_sharded(base, found.by_position if lone else [], "index"), found.counted, "index_rows")


def index_select(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    shape, at = operands[0] or (), operands[1] or ()
    (dim,) = dim_list(argument(node, "dim"), len(shape)) or [0]
    if not shape:
        return fits.all_whole(node, operands, results)
    found = Indexed.of(shape, [*[None] * dim, at or (1,)])
    base = signature([found.tensor, found.indices[dim] if at else ()], [found.picked], found.sizes)
    return with_sharded(base, found.by_position, "index_select")


def gather(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """Dims beside `dim` are loops where x and the index have them whole; a device reads the rows that it has."""
    shape, at = operands[0] or (), operands[1] or ()
    if not shape or not at or argument(node, "sparse_grad"):
        return fits.all_whole(node, operands, results)
    (dim,) = dim_list(argument(node, "dim"), len(shape))
    x, positions, sizes, whole = rows_of(dim, shape, at)
    return with_sharded(signature([x, positions], [positions], sizes, whole), [f"i{dim}"] if shape[dim] != 1 else [], "gather")


def rows_of(dim: int, shape: Shape, at: Shape) -> tuple[Dims, Dims, dict[Factor, Size], list[Factor]]:
    """Dims of a tensor, of the positions along its `dim`, sizes, whole factors.

    Rows are i{dim} and positions b{dim}. Other dims are d0, d1, ...; whole ones i and b where the positions
    are not of all of a dim.
    """
    sizes: dict[Factor, Size] = {}
    whole: list[Factor] = []
    dims: tuple[list[tuple[Factor, ...]], ...] = ([], [])
    for d, pair in enumerate(zip(shape, at, strict=True)):
        letters = ("d", "d") if d != dim and pair[0] == pair[1] else ("i", "b")
        for letter, size, side in zip(letters, pair, dims, strict=True):
            side.append((f"{letter}{d}",) if size != 1 else ())
            sizes |= {f"{letter}{d}": size} if size != 1 else {}
            whole += [f"{letter}{d}"] if size != 1 and letter != "d" and d != dim else []
    return tuple(dims[0]), tuple(dims[1]), sizes, whole


def searchsorted(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """One sorted sequence for all, or one for each row of the values."""
    text = "n!, b* -> b*" if len(operands[0] or ()) == 1 else "b* n!, b* m -> b* m"
    if len(operands) > 2:
        return fits.all_whole(node, operands, results)
    return fit_text(text, operands, results)


ROWS: Rows = {
    aten.embedding.default: OpRule(kind="embedding", fit=embedding, ragged=frozenset({"v"})),
    aten._embedding_bag.default: OpRule(kind="embedding", fit=embedding_bag),
    aten.index.Tensor: OpRule(kind="norm", fit=index),
    aten.index_select.default: OpRule(kind="norm", fit=index_select),
    aten.gather.default: OpRule(kind="norm", fit=gather),
    aten.topk.default: OpRule(kind="norm", fit=fits.along("dim")),
    aten.searchsorted.Tensor: OpRule(kind="norm", fit=searchsorted),
    aten.bucketize.Tensor: OpRule(kind="pointwise", text="b*, n! -> b*"),
}
