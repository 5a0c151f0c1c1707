from __future__ import annotations

from typing import Any

import torch

from autopar.ops.proof import Call
from tests.ops.examples.common import Example, Examples, all_of, along_one, along_some
from tests.ops.pick import Pick

aten = torch.ops.aten


def transposed(p: Pick) -> Call:
    return Call(aten.t.default, (p.tensor(*p.shape(p.one(2, 1))),))


def reshape(target: Any) -> Example:
    def example(p: Pick) -> Call:
        before, after = p.one(
            ([4, 6, 12], [24, 12]), ([24, 12], [4, 6, 12]), ([4, 12], [4, 2, -1]), ([4, 6], [6, 4]), ([2, 1, 6], [2, 6]),
            ([4, 6], [1, 4, 6, 1]), ([12], [2, 6]), ([4, 6, 2], [48]), ([2, 12, 2], [2, 4, 6]), ([6, 2, 2], [-1, 1, 4]),
            ([1], []), ([4, 9], [6, 6]),
        )  # fmt: skip
        return Call(target, (p.tensor(*before), after))

    return example


def permute(p: Pick) -> Call:
    return Call(aten.permute.default, (p.tensor(4, 6, *p.shape(2)), p.one([0, 2, 1, 3], [3, 1, 0, 2], [-1, 0, -2, 1])))


def transpose(p: Pick) -> Call:
    rank = p.one(3, 2)
    return Call(aten.transpose.int, (p.tensor(*p.shape(rank)), p.one(*range(rank)), p.dim(rank)))


def unsqueeze(p: Pick) -> Call:
    rank = p.one(2, 1, 0, 3)
    return Call(aten.unsqueeze.default, (p.tensor(*p.shape(rank)), p.one(0, -1, rank)))


def squeeze(target: Any) -> Example:
    def example(p: Pick) -> Call:
        shape = p.one([4, 1, 6], [2, 1, 3], [2, 3], [1, 1, 4], [4, 2, 1])
        dims: tuple[Any, ...] = (p.dims(len(shape)),) if target is aten.squeeze.dims else (p.dim(len(shape)),)
        return Call(target, (p.tensor(*shape), *(() if target is aten.squeeze.default else dims)))

    return example


def expand(p: Pick) -> Call:
    before, after = p.one(
        ([4, 1, 6], [4, 2, 6]), ([6], [4, 6]), ([1, 4], [2, 6, 4]), ([4, 1], [-1, 6]),
        ([2, 4], [2, 4]), ([], [4, 2]), ([1], [1]),
    )  # fmt: skip
    return Call(aten.expand.default, (p.tensor(*before), after))


def slice_(p: Pick) -> Call:
    shape = [p.size(4, 6, 12) for _ in range(p.one(3, 2, 1))]
    bounds = p.one((1, 3), (0, 2**63 - 1), (None, -1), (0, 4, 2), (2,))
    return Call(aten.slice.Tensor, (p.tensor(*shape), p.dim(len(shape)), *bounds))


def select(p: Pick) -> Call:
    rank = p.one(3, 2, 1)
    return Call(aten.select.int, (p.tensor(*p.shape(rank)), p.dim(rank), p.one(0, -1)))


def split(target: Any) -> Example:
    def example(p: Pick) -> Call:
        rank = p.one(3, 2, 1)
        dim = p.dim(rank)
        shape = p.shape(rank)
        shape[dim] = 6
        pieces = {aten.split.Tensor: (2, 4), aten.chunk.default: (3, 2), aten.split_with_sizes.default: ([4, 2], [1, 3, 2])}
        return Call(target, (p.tensor(*shape), p.one(*pieces[target]), dim))

    return example


def cat(p: Pick) -> Call:
    rank = p.one(3, 2, 1)
    dim, shape = p.dim(rank), p.shape(rank)
    parts = []
    for _ in range(p.one(2, 3, 1)):
        shape[dim] = p.size()
        parts.append(p.tensor(*shape, grad=p.one(True, True, False)))
    return Call(aten.cat.default, (p.one(parts, [*parts, parts[0]]), dim))


def pad(p: Pick) -> Call:
    shape = [p.size(4, 6, 12) for _ in range(p.one(3, 2, 1))]
    return Call(aten.constant_pad_nd.default, (p.tensor(*shape), p.one([0, 1], [1, -1], [0, 0, 2, 1][: 2 * len(shape)]), 0.5))


def roll(p: Pick) -> Call:
    rank = p.one(3, 2, 1)
    dims = p.one(p.dims(rank), p.dims(rank), [])
    return Call(aten.roll.default, (p.tensor(*p.shape(rank)), [p.one(1, -1, 2) for _ in dims or [0]], dims))


def repeat(p: Pick) -> Call:
    shape = p.shape(p.one(3, 2, 1, 0))
    counts = [p.one(1, 2, 4, 3) if n == 1 else p.one(1, 2) for n in shape]
    return Call(aten.repeat.default, (p.tensor(*shape), [*(p.one(4, 1) for _ in range(p.one(1, 0, 2))), *counts]))


def copy(p: Pick) -> Call:
    shape = p.shape(3)
    return Call(aten.copy.default, (p.tensor(*shape, grad=False), p.tensor(*p.against(shape), grad=False)))


def diagonal(p: Pick) -> Call:
    rank = p.one(3, 2, 4)
    dims = p.one([-2, -1], [0, 1], [1, 0], [0, -1])
    return Call(aten.diagonal.default, (p.tensor(*p.shape(rank)), p.one(0, 1 if rank == 3 else 0), *dims))


def diagonal_scatter(p: Pick) -> Call:
    call = diagonal(p)
    x, offset, *dims = call.args
    return Call(aten.diagonal_scatter.default, (x, p.tensor(*x.diagonal(offset, *dims).shape), offset, *dims))


def windows(p: Pick) -> Call:
    shape = [p.size(4, 6, 12) for _ in range(p.one(3, 2, 1))]
    return Call(aten.unfold.default, (p.tensor(*shape), p.dim(len(shape)), p.one(2, 4, 1), p.one(2, 1)))


def as_strided(p: Pick) -> Call:
    return Call(aten.as_strided.default, (p.tensor(4, 6), [3, 4], [6, 1], 1))


def repeated_rows(p: Pick) -> Call:
    return Call(aten.repeat_interleave.Tensor, (torch.tensor([2, 0, 1, 3]),), {"output_size": 6})


EXAMPLES: Examples = {
    aten.flip.default: along_some(aten.flip.default),
    aten.reshape.default: reshape(aten.reshape.default),
    aten.view.default: reshape(aten.view.default),
    aten.permute.default: permute,
    aten.transpose.int: transpose,
    aten.t.default: transposed,
    aten.unsqueeze.default: unsqueeze,
    aten.squeeze.default: squeeze(aten.squeeze.default),
    aten.squeeze.dim: squeeze(aten.squeeze.dim),
    aten.squeeze.dims: squeeze(aten.squeeze.dims),
    aten.contiguous.default: all_of(aten.contiguous.default),
    aten.alias.default: all_of(aten.alias.default),
    aten.clone.default: all_of(aten.clone.default),
    aten.detach.default: all_of(aten.detach.default),
    aten.expand.default: expand,
    aten.slice.Tensor: slice_,
    aten.select.int: select,
    aten.split_with_sizes.default: split(aten.split_with_sizes.default),
    aten.split.Tensor: split(aten.split.Tensor),
    aten.chunk.default: split(aten.chunk.default),
    aten.unbind.int: along_one(aten.unbind.int),
    aten.cat.default: cat,
    aten.roll.default: roll,
    aten.repeat.default: repeat,
    aten.copy.default: copy,
    aten.diagonal.default: diagonal,
    aten.diagonal_scatter.default: diagonal_scatter,
    aten.unfold.default: windows,
    aten.as_strided.default: as_strided,
    aten.repeat_interleave.Tensor: repeated_rows,
    aten.constant_pad_nd.default: pad,
}
