from __future__ import annotations

from typing import Any

import torch

from autopar.ops.proof import Call
from tests.ops.examples.common import Example, Examples
from tests.ops.examples.indexing import indices
from tests.ops.pick import Pick

aten = torch.ops.aten


def scatter(
    target: Any, *, value: bool = False, after: tuple[Any, ...] = ((),), options: dict[str, Any] | None = None
) -> Example:
    """Ops of (base, dim, index, source or value, ...). Those that add may hit a row often; of others it is open who wins."""
    adds, learns = target is aten.scatter_add.default or target is aten.scatter_reduce.two, options is None

    def example(p: Pick) -> Call:
        rank = p.one(3, 2, 1)
        shape, dim = p.shape(rank), p.dim(rank)
        at = [n if p.one(True, True, False) else 1 for n in shape]
        at[dim] = p.size() if adds else p.one(shape[dim], 1)
        index = p.integers(shape[dim], *at)
        if not adds:
            index = torch.rand(shape[dim], generator=p.generator).argsort()[: at[dim]]
            index = index.view(-1, *(1,) * (rank - 1 - dim % rank)).expand(at).contiguous()
        source = 2.0 if value else p.tensor(*at, grad=learns)
        given = p.tensor(*shape, grad=learns), dim, index, source, *p.one(*after)
        return Call(target, given, options or (p.one({}, {"include_self": False}) if after[0] else {}))

    return example


def index_add(p: Pick) -> Call:
    rank = p.one(3, 2, 1)
    shape, dim = p.shape(rank), p.dim(rank)
    source = list(shape)
    source[dim] = p.size()
    given = p.tensor(*shape), dim, p.integers(shape[dim], source[dim]), p.tensor(*source)
    return Call(aten.index_add.default, given, p.one({}, {"alpha": 2}))


def index_put(p: Pick) -> Call:
    shape = p.shape(p.one(3, 2, 1, 4))
    if p.one(False, False, True):
        value = p.one(p.tensor(grad=False), p.tensor(1, grad=False))
        at = [p.flags(*shape[: p.one(1, len(shape))])]
        return Call(aten.index_put.default, (p.tensor(*shape), at, value, p.one(False, True)))
    base, at = p.tensor(*shape), p.one(indices(p, shape), indices(p, shape), [p.flags(shape[0])])
    picked = list(aten.index.Tensor(base, at).shape)
    values = p.tensor(*p.one(picked, picked, p.against(picked)))
    accumulate = p.one(True, False)
    if not accumulate:
        values = torch.ones_like(values).requires_grad_(False)
    return Call(aten.index_put.default, (base, at, values, accumulate))


def masked_scatter(p: Pick) -> Call:
    shape = p.shape(2)
    return Call(aten.masked_scatter.default, (p.tensor(*shape), p.flags(*shape), p.tensor(*shape)))


def slice_scatter(p: Pick) -> Call:
    shape = [p.size(4, 6, 12) for _ in range(p.one(3, 2, 1))]
    dim = p.dim(len(shape))
    part = list(shape)
    part[dim] = 2
    return Call(aten.slice_scatter.default, (p.tensor(*shape), p.tensor(*part), dim, 1, 3))


REDUCES = tuple((how,) for how in ("sum", "amax", "mean", "prod", "amin"))

EXAMPLES: Examples = {
    aten.scatter.src: scatter(aten.scatter.src),
    aten.scatter.value: scatter(aten.scatter.value, value=True),
    aten.scatter.reduce: scatter(aten.scatter.reduce, options={"reduce": "add"}),
    aten.scatter.value_reduce: scatter(aten.scatter.value_reduce, value=True, options={"reduce": "multiply"}),
    aten.scatter_add.default: scatter(aten.scatter_add.default),
    aten.scatter_reduce.two: scatter(aten.scatter_reduce.two, after=REDUCES),
    aten.index_add.default: index_add,
    aten.index_put.default: index_put,
    aten.masked_scatter.default: masked_scatter,
    aten.slice_scatter.default: slice_scatter,
}
