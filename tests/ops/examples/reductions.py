from __future__ import annotations

from typing import Any

import torch

from autopar.ops.proof import Call
from tests.ops.examples.common import Example, Examples, all_of, along_one
from tests.ops.pick import Pick

aten = torch.ops.aten


def reduction(target: Any, *, whole_too: bool = True) -> Example:
    """Ops of (x, dims, keepdim)."""

    def example(p: Pick) -> Call:
        rank = p.one(3, 2, 1)
        dims = p.one(p.dims(rank), p.dims(rank), [], None) if whole_too else p.dims(rank)
        return Call(target, (p.tensor(*p.shape(rank)), dims, p.one(False, True)))

    return example


def tied(p: Pick, *shape: int, grad: bool = True) -> torch.Tensor:
    """Few different numbers: maxima come more than once."""
    return p.integers(3, *shape).double().requires_grad_(grad)


def extremum(target: Any) -> Example:
    def example(p: Pick) -> Call:
        rank = p.one(3, 2, 1)
        make = p.one(tied, Pick.tensor)
        return Call(target, (make(p, *p.shape(rank)), p.one(p.dims(rank), []), p.one(False, True)))

    return example


def extremum_of_all(target: Any) -> Example:
    return lambda p: Call(target, (p.one(tied, Pick.tensor)(p, *p.shape(p.one(3, 2, 1))),))


def extremum_along(target: Any, *, of_all: bool = False) -> Example:
    def example(p: Pick) -> Call:
        rank = p.one(3, 2, 1)
        x = p.one(tied, Pick.tensor)(p, *p.shape(rank), grad=p.one(True, False))
        return Call(target, (x, p.one(p.dim(rank), p.dim(rank), *((None,) if of_all else ())), p.one(False, True)))

    return example


def truth(target: Any) -> Example:
    def example(p: Pick) -> Call:
        rank = p.one(3, 2, 1)
        flags = p.one(p.flags(*p.shape(rank)), p.integers(5, *p.shape(rank)) > 0, p.integers(2, *p.shape(rank)))
        if target in (aten.any.default, aten.all.default):
            return Call(target, (flags,))
        one = target in (aten.any.dim, aten.all.dim)
        return Call(target, (flags, p.dim(rank) if one else p.one(p.dims(rank), None), p.one(False, True)))

    return example


def var(target: Any) -> Example:
    def example(p: Pick) -> Call:
        shape = [p.size(4, 6, 2) for _ in range(p.one(3, 2))]
        options = p.one({}, {"correction": 0, "keepdim": True}, {"keepdim": True}, {"correction": 0.5})
        return Call(target, (p.tensor(*shape), p.one(p.dims(len(shape)), None)), options)

    return example


def vector_norm(p: Pick) -> Call:
    rank = p.one(3, 2, 1)
    x = p.tensor(*p.shape(rank))
    if p.one(False, False, True):
        x = (x * (torch.arange(x.shape[0]) > 0).view(-1, *(1,) * (rank - 1))).detach().requires_grad_()
    order = p.one(2, 2, 1, 3, float("inf"))
    return Call(aten.linalg_vector_norm.default, (x, order, p.one(p.dims(rank), None, []), p.one(False, True)))


def kthvalue(p: Pick) -> Call:
    rank = p.one(3, 2)
    return Call(aten.kthvalue.default, (p.tensor(*p.shape(rank)), 1, *p.one((p.dim(rank), p.one(False, True)), ())))


def along_last(target: Any) -> Example:
    """Ops of (x, dim, option), most with the last dim by default."""

    def example(p: Pick) -> Call:
        rank = p.one(3, 2)
        options = p.one((p.dim(rank), p.one(False, True)), (p.dim(rank),), ())
        return Call(target, (p.tensor(*p.shape(rank)), *(options or ((0,) if target is aten.median.dim else ()))))

    return example


def stable_sort(p: Pick) -> Call:
    rank = p.one(3, 2)
    options: dict[str, Any] = p.one({"dim": p.dim(rank)}, {"dim": p.dim(rank), "descending": True}, {})
    return Call(aten.sort.stable, (tied(p, *p.shape(rank)),), {"stable": True, **options})


def product_along(p: Pick) -> Call:
    rank = p.one(3, 2)
    return Call(aten.prod.dim_int, (p.tensor(*p.shape(rank)), p.dim(rank), p.one(False, True)))


EXAMPLES: Examples = {
    aten.sum.default: all_of(aten.sum.default),
    aten.sum.dim_IntList: reduction(aten.sum.dim_IntList),
    aten.mean.default: all_of(aten.mean.default),
    aten.mean.dim: reduction(aten.mean.dim),
    aten.amax.default: extremum(aten.amax.default),
    aten.amin.default: extremum(aten.amin.default),
    aten.max.default: extremum_of_all(aten.max.default),
    aten.min.default: extremum_of_all(aten.min.default),
    aten.max.dim: extremum_along(aten.max.dim),
    aten.min.dim: extremum_along(aten.min.dim),
    aten.argmax.default: extremum_along(aten.argmax.default, of_all=True),
    aten.argmin.default: extremum_along(aten.argmin.default, of_all=True),
    aten.any.default: truth(aten.any.default),
    aten.any.dim: truth(aten.any.dim),
    aten.any.dims: truth(aten.any.dims),
    aten.all.default: truth(aten.all.default),
    aten.all.dim: truth(aten.all.dim),
    aten.all.dims: truth(aten.all.dims),
    aten.var.correction: var(aten.var.correction),
    aten.var_mean.correction: var(aten.var_mean.correction),
    aten.linalg_vector_norm.default: vector_norm,
    aten.prod.default: all_of(aten.prod.default),
    aten.prod.dim_int: product_along,
    aten.median.default: all_of(aten.median.default),
    aten.median.dim: along_last(aten.median.dim),
    aten.mode.default: along_last(aten.mode.default),
    aten.kthvalue.default: kthvalue,
    aten.cumsum.default: along_one(aten.cumsum.default),
    aten.cumprod.default: along_one(aten.cumprod.default),
    aten.logcumsumexp.default: along_one(aten.logcumsumexp.default),
    aten.cummax.default: along_one(aten.cummax.default),
    aten.cummin.default: along_one(aten.cummin.default),
    aten.sort.default: along_last(aten.sort.default),
    aten.sort.stable: stable_sort,
    aten.histc.default: lambda p: Call(aten.histc.default, (p.tensor(*p.shape(2), grad=False), 4)),
}
