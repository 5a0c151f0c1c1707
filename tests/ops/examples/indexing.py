from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from autopar.ops.proof import Call
from tests.ops.examples.common import Examples
from tests.ops.pick import Pick

aten = torch.ops.aten


def topk(p: Pick) -> Call:
    shape = [p.size(4, 6, 12) for _ in range(p.one(3, 2, 1))]
    return Call(aten.topk.default, (p.tensor(*shape), p.one(2, 4), *p.one((), (p.dim(len(shape)),))))


def positions(p: Pick, size: int, *shape: int) -> Tensor:
    """Some of them counted from the end."""
    return p.integers(size, *shape) - p.one(0, 0, size) * p.flags(*shape)


def indices(p: Pick, shape: list[int]) -> list[Tensor | None]:
    """For some dims, positions that broadcast together."""
    broad = p.shape(p.one(1, 2, 0))
    at = p.one([1], [0], [-1], [0, 1], [0, -1], [1, 2])
    dims = {d % len(shape) for d in at if d < len(shape)} or {0}
    first = min(dims)
    found = [positions(p, n, *(broad if d == first else p.against(broad))) if d in dims else None for d, n in enumerate(shape)]
    return found[: p.one(max(dims) + 1, len(found))]


def index(p: Pick) -> Call:
    shape = p.shape(p.one(3, 2, 1, 4))
    return Call(aten.index.Tensor, (p.tensor(*shape), p.one(indices(p, shape), indices(p, shape), [p.flags(shape[0])])))


def gather(p: Pick) -> Call:
    rank = p.one(3, 2, 1)
    shape, dim = p.shape(rank), p.dim(rank)
    at = [n if p.one(True, True, False) else 1 for n in shape]
    at[dim] = p.size()
    return Call(aten.gather.default, (p.tensor(*shape), dim, p.integers(shape[dim], *at)))


def index_select(p: Pick) -> Call:
    rank = p.one(3, 2, 1)
    shape, dim = p.shape(rank), p.dim(rank)
    return Call(aten.index_select.default, (p.tensor(*shape), dim, p.integers(shape[dim], *p.one([p.size()], [p.size()], []))))


def embedding(p: Pick) -> Call:
    v, h = p.size(4, 6, 12), p.size()
    options = p.one((), (), (1,), (-1, True))
    return Call(aten.embedding.default, (p.tensor(v, h), p.integers(v, *p.shape(p.one(2, 1, 3))), *options))


def embedding_bag(p: Pick) -> Call:
    """Sums, means and maxima of bags; empty ones too; of one length as well."""
    v, h, bags, length = p.size(4, 6, 12), p.size(), p.size(), p.size(2, 3, 1)
    ids = p.integers(v, bags * length)
    offsets = torch.arange(0, bags * length, length)
    if p.one(True, False):
        offsets = torch.cat([offsets[:1], p.integers(bags * length, bags - 1).sort().values])
    last = p.one(False, False, True)
    if last:
        offsets = torch.cat([offsets, torch.tensor([bags * length])])
    mode = p.one(0, 1, 2)
    factors = p.one(p.tensor(bags * length), None) if mode == 0 else None
    counted, padding = p.one(False, False, True) and mode != 2, p.one(-1, -1, 0)
    options: tuple[Any, ...] = (counted, mode, False, factors, last, padding)
    return Call(aten._embedding_bag.default, (p.tensor(v, h), ids, offsets, *options), read=1)


def searchsorted(p: Pick) -> Call:
    batch = p.shape(p.one(2, 1))
    rows = p.one(batch, batch, [])
    edges = p.tensor(*rows, 6, grad=False).sort().values
    return Call(aten.searchsorted.Tensor, (edges, p.tensor(*batch, p.size(), grad=False)), {"right": p.one(False, True)})


def bucketize(p: Pick) -> Call:
    x = p.tensor(*p.shape(p.one(2, 1, 3)), grad=False)
    return Call(aten.bucketize.Tensor, (x, torch.tensor([-1.0, 0.0, 0.5], dtype=x.dtype)), {"right": p.one(False, True)})


EXAMPLES: Examples = {
    aten.embedding.default: embedding,
    aten._embedding_bag.default: embedding_bag,
    aten.index.Tensor: index,
    aten.index_select.default: index_select,
    aten.gather.default: gather,
    aten.topk.default: topk,
    aten.searchsorted.Tensor: searchsorted,
    aten.bucketize.Tensor: bucketize,
}
