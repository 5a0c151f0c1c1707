"""Sharded implementations of reading and writing by position, where the dim that positions count is cut.

A device reads what it has and zeros elsewhere, so that results are summands; it writes what is meant for its rows, and the
rest into a row beside them that nobody reads. See `autopar.ops.sharded.common`. Nothing here communicates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from autopar.ops.sharded.common import Axes, local_index, once, parts

aten = torch.ops.aten
SUM_OF_BAG, MEAN_OF_BAG = 0, 1
"""The codes that aten's embedding bags use for `mode`; 2 is a maximum."""


def counted_from_front(index: Tensor, rows: int, axes: Axes) -> Tensor:
    """Positions of a sharded dim with those that count from its end made positive."""
    return torch.where(index < 0, index + rows * parts(axes), index)


def index(x: Tensor, at: Tensor, dim: int, axes: Axes, coordinates: Sequence[Tensor]) -> Tensor:
    """aten.index (and index_select) of one index tensor, whose dims take the place of `dim`, with `dim` sharded; P."""
    rows = x.shape[dim]
    local, here = local_index(counted_from_front(at, rows, axes), rows, axes, coordinates)
    picked: Tensor = aten.index.Tensor(x, [*(None for _ in range(dim)), local])
    return picked.masked_fill(~here.view((*here.shape, *(1,) * (x.ndim - dim - 1))), 0)


def gather(x: Tensor, dim: int, at: Tensor, axes: Axes, coordinates: Sequence[Tensor]) -> Tensor:
    """aten.gather with `dim` of x sharded: index I along it, the result is P."""
    local, here = local_index(at, x.shape[dim], axes, coordinates)
    return x.gather(dim, local).masked_fill(~here, 0)


SCATTERS: Mapping[str, Any] = {
    str(op): op
    for op in [
        *(aten.scatter.src, aten.scatter.value, aten.scatter.reduce, aten.scatter.value_reduce),
        *(aten.scatter_add.default, aten.scatter_reduce.two, aten.index_add.default),
    ]
}
"""By name: ops of (base, dim, index, ...) that write what follows into rows of the base."""


def scatter(
    op: str,
    base: Tensor,
    dim: int,
    at: Tensor,
    rest: Sequence[Any],
    options: Mapping[str, Any],
    axes: Axes,
    coordinates: Sequence[Tensor],
    summing: Sequence[Tensor],
) -> Tensor:
    """A scatter with `dim` of the base sharded over the axes, the rest R along it; the result is S.

    `summing`: coordinates on the axes that cut what is added up, where the result is P: the base is in it once.
    """
    base = once(base, summing)
    rows = base.shape[dim]
    wide, local = with_row_beside(base, at, dim, axes, coordinates)
    return cast(Tensor, SCATTERS[op](wide, dim, local, *rest, **options).narrow(dim, 0, rows))


def with_row_beside(base: Tensor, at: Tensor, dim: int, axes: Axes, coordinates: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The base with one more row, and the positions in it: that row for what is meant for other devices."""
    rows = base.shape[dim]
    local, here = local_index(counted_from_front(at, rows, axes), rows, axes, coordinates)
    wide = torch.constant_pad_nd(base, [0, 0] * (base.ndim - 1 - dim) + [0, 1], 1)
    return wide, local.masked_fill(~here, rows)


def index_put(
    base: Tensor,
    at: Tensor,
    dim: int,
    values: Tensor,
    accumulate: bool,
    axes: Axes,
    coordinates: Sequence[Tensor],
    summing: Sequence[Tensor],
) -> Tensor:
    """aten.index_put with one index tensor, of `dim`, which is sharded; as `scatter`."""
    base = once(base, summing)
    rows = base.shape[dim]
    wide, local = with_row_beside(base, at, dim, axes, coordinates)
    return cast(Tensor, aten.index_put(wide, [*(None for _ in range(dim)), local], values, accumulate).narrow(dim, 0, rows))


def embedding_bag(
    weight: Tensor,
    ids: Tensor,
    offsets: Tensor,
    mode: int,
    factors: Tensor | None,
    last_offset: bool,
    axes: Axes,
    coordinates: Sequence[Tensor],
) -> tuple[Tensor]:
    """The first result of aten._embedding_bag (sums or means) with the table's rows S(0), ids and offsets I; P.

    `factors` are the weights per id of a sum. A mean is over all ids of the bag, wherever their rows are.
    """
    local, here = local_index(ids, weight.shape[0], axes, coordinates)
    share = here.to(weight.dtype) if factors is None else factors.masked_fill(~here, 0)
    sums = aten._embedding_bag(weight, local, offsets, False, SUM_OF_BAG, False, share, last_offset)[0]
    if mode == SUM_OF_BAG:
        return (sums,)
    if last_offset:
        counts = offsets[1:] - offsets[:-1]
    else:
        last = torch.arange(offsets.shape[0], device=offsets.device) == offsets.shape[0] - 1
        counts = offsets.roll(-1).masked_fill(last, ids.shape[0]) - offsets
    return (sums / counts.clamp(min=1).unsqueeze(1),)
