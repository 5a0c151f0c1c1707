from __future__ import annotations

import torch

from tests.ops.examples.common import Examples
from tests.ops.pick import Pick
from tests.ops.proofs import Call

aten = torch.ops.aten


def topk(p: Pick) -> Call:
    shape = [p.size(4, 6, 12) for _ in range(p.one(3, 2, 1))]
    return Call(aten.topk.default, (p.tensor(*shape), p.one(2, 4), *p.one((), (p.dim(len(shape)),))))


def slice_scatter(p: Pick) -> Call:
    shape = [p.size(4, 6, 12) for _ in range(p.one(3, 2, 1))]
    dim = p.dim(len(shape))
    part = list(shape)
    part[dim] = 2
    return Call(aten.slice_scatter.default, (p.tensor(*shape), p.tensor(*part), dim, 1, 3))


def index(p: Pick) -> Call:
    x, at = p.tensor(4, 6, 2), p.integers(4, 3)
    return Call(aten.index.Tensor, (x, p.one([at], [None, at], [at, at])))


def gather(p: Pick) -> Call:
    return Call(aten.gather.default, (p.tensor(4, 6), p.one(0, 1), p.integers(4, 4, 6)))


def index_select(p: Pick) -> Call:
    return Call(aten.index_select.default, (p.tensor(4, 6), p.one(0, 1), p.integers(4, 2)))


def embedding(p: Pick) -> Call:
    v, h = p.size(4, 6, 12), p.size()
    options = p.one((), (), (1,), (-1, True))
    return Call(aten.embedding.default, (p.tensor(v, h), p.integers(v, *p.shape(p.one(2, 1, 3))), *options))


EXAMPLES: Examples = {
    aten.embedding.default: embedding,
    aten.index.Tensor: index,
    aten.index_select.default: index_select,
    aten.gather.default: gather,
    aten.topk.default: topk,
    aten.slice_scatter.default: slice_scatter,
}
