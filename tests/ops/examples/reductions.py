from __future__ import annotations

from typing import Any

import torch

from tests.ops.examples.common import Example, Examples, all_of, along_one
from tests.ops.pick import Pick
from tests.ops.proofs import Call

aten = torch.ops.aten


def reduction(target: Any, *, whole_too: bool = True) -> Example:
    """Ops of (x, dims, keepdim)."""

    def example(p: Pick) -> Call:
        rank = p.one(3, 2, 1)
        dims = p.one(p.dims(rank), p.dims(rank), [], None) if whole_too else p.dims(rank)
        return Call(target, (p.tensor(*p.shape(rank)), dims, p.one(False, True)))

    return example


def amax(p: Pick) -> Call:
    rank = p.one(3, 2, 1)
    return Call(aten.amax.default, (p.tensor(*p.shape(rank)), p.one(p.dims(rank), []), p.one(False, True)))


def argmax(p: Pick) -> Call:
    rank = p.one(3, 2, 1)
    return Call(aten.argmax.default, (p.tensor(*p.shape(rank)), p.one(p.dim(rank), None), p.one(False, True)))


def var(p: Pick) -> Call:
    shape = [p.size(4, 6, 2) for _ in range(p.one(3, 2))]
    options = p.one({}, {"correction": 0, "keepdim": True})
    return Call(aten.var.correction, (p.tensor(*shape), p.one(p.dims(len(shape)), None)), options)


EXAMPLES: Examples = {
    aten.sum.default: all_of(aten.sum.default),
    aten.sum.dim_IntList: reduction(aten.sum.dim_IntList),
    aten.mean.default: all_of(aten.mean.default),
    aten.mean.dim: reduction(aten.mean.dim),
    aten.amax.default: amax,
    aten.argmax.default: argmax,
    aten.var.correction: var,
    aten.cumsum.default: along_one(aten.cumsum.default),
}
