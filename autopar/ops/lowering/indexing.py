"""How reading and writing by position goes into a local graph where the positions' dim is cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from autopar.ops.families.indexing import Indexed, counted_dims
from autopar.ops.fits import argument, dim_list
from autopar.ops.lowering.reductions import Places, axes_of, cut_of
from autopar.ops.rule import tensor_operands
from autopar.ops.sharded import common, indexing
from autopar.ops.units import shapes_of

if TYPE_CHECKING:
    from autopar.ops.lowering.emit import Axes, Cuts, LocalCall, Lowering

aten = torch.ops.aten


def rows_and_sums(cuts: Cuts) -> tuple[Axes, Places, Places]:
    """What cuts the rows that are written ("i0", "i1", ...: axes and coordinates), and what cuts summands: coordinates."""
    rows = next((factor for factor in cuts if factor.startswith("i")), "")
    return *cut_of(cuts, rows), axes_of(cuts, rows)[1]


def rank_of_first(call: LocalCall) -> int:
    first = call.node.args[0]
    assert isinstance(first, torch.fx.Node)
    return len(shapes_of(first)[0])


def only_index(indices: Any) -> tuple[int, torch.fx.Node]:
    """The indexed dim, and what it is indexed with."""
    ((dim, at),) = [(dim, at) for dim, at in enumerate(indices) if at is not None]
    return dim, at


def from_own_start(call: LocalCall) -> list[Any]:
    """The indices, those that count a dim's rows less the first row that a device has."""
    source = call.node.args[0]
    assert isinstance(source, torch.fx.Node)
    found = list(call.args[1])
    for d in counted_dims(argument(call.node, "indices"), shapes_of(source)[0]):
        first = call.emit(aten.slice.Tensor, (call.emit(aten.reshape.default, (found[d], [-1])), 0, 0, 1))
        found[d] = call.emit(aten.sub.Tensor, (found[d], first))
    return found


def counted_by(call: LocalCall) -> tuple[str, ...]:
    """The factors of positions that count a dim's rows."""
    operands = [None if n is None else shapes_of(n)[0] for n in tensor_operands(call.node)]
    shape, indices = operands[0] or (), argument(call.node, "indices")
    return Indexed.of(shape, operands[1 : 1 + len(indices)], counted_dims(indices, shape)).counted


def index_rows(call: LocalCall, cuts: Cuts) -> torch.fx.Node:
    return call.emit(call.target, (call.args[0], from_own_start(call)))


def index(call: LocalCall, cuts: Cuts) -> torch.fx.Node:
    dim, at = only_index(call.args[1])
    return call.emit(indexing.index, (call.args[0], at, dim, *axes_of(cuts)))


def index_select(call: LocalCall, cuts: Cuts) -> torch.fx.Node:
    (dim,) = dim_list(call.args[1], rank_of_first(call))
    at = call.emit(aten.reshape.default, (call.args[2], [-1]))  # one position is a list of one
    return call.emit(indexing.index, (call.args[0], at, dim, *axes_of(cuts)))


def gather(call: LocalCall, cuts: Cuts) -> torch.fx.Node:
    (dim,) = dim_list(call.args[1], rank_of_first(call))
    return call.emit(indexing.gather, (call.args[0], dim, call.args[2], *axes_of(cuts)))


def scatter(call: LocalCall, cuts: Cuts) -> torch.fx.Node:
    axes, coordinates, summing = rows_and_sums(cuts)
    base, dim, at, *rest = call.args
    if not axes:
        first = call.emit(common.once, (base, summing))
        return call.emit(call.target, (first, dim, at, *rest), call.kwargs)
    (dim,) = dim_list(dim, rank_of_first(call))
    given = str(call.node.target), base, dim, at, tuple(rest), dict(call.kwargs)
    return call.emit(indexing.scatter, (*given, axes, coordinates, summing))


def index_put(call: LocalCall, cuts: Cuts) -> torch.fx.Node:
    axes, coordinates, summing = rows_and_sums({f: cut for f, cut in cuts.items() if f not in counted_by(call)})
    base, indices, values = call.args[:3]
    if not axes:
        first = call.emit(common.once, (base, summing))
        return call.emit(call.target, (first, from_own_start(call), *call.args[2:]), call.kwargs)
    dim, at = only_index(indices)
    accumulate = bool(argument(call.node, "accumulate"))
    return call.emit(indexing.index_put, (base, at, dim, values, accumulate, axes, coordinates, summing))


def embedding_bag(call: LocalCall, cuts: Cuts) -> torch.fx.Node:
    weight, ids, offsets = call.args[:3]
    if "b" in cuts:  # bags of one length: those of a device begin where its ids do
        offsets = call.emit(aten.sub.Tensor, (offsets, call.emit(aten.slice.Tensor, (offsets, 0, 0, 1))))
    if "v" not in cuts:
        return call.emit(call.target, (weight, ids, offsets, *call.args[3:]), call.kwargs)
    options = (call.named(name) for name in ("mode", "per_sample_weights", "include_last_offset"))
    return call.emit(indexing.embedding_bag, (weight, ids, offsets, *options, *cut_of(cuts, "v")))


IMPLEMENTATIONS: dict[str, Lowering] = {
    "index": index,
    "index_rows": index_rows,
    "index_select": index_select,
    "gather": gather,
    "scatter": scatter,
    "index_put": index_put,
    "embedding_bag": embedding_bag,
}
