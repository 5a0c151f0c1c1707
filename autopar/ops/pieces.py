"""Cut a full tensor into what each rank holds under a placement, and join such pieces again, checking that they agree.

Where a dim does not divide, the last piece is padded: with anything in values, with zeros in gradients, whose padding must
stay zero.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from autopar.ir.placement import Placement
from autopar.torch_private import by_rank, rank_map

Coordinates = tuple[int, ...]
ANYTHING = -1.7
"""What padding of values holds in proofs. (What ops make of it must be finite, no more.)"""


def coordinates_of_ranks(sizes: Sequence[int]) -> list[Coordinates]:
    return list(itertools.product(*map(range, sizes)))


def cut(full: Tensor, placement: Placement, sizes: Sequence[int], seed: int = 0, padding: float = 0.0) -> list[Tensor]:
    """What each rank holds: slices for S, equal copies for R and I, for P random summands of the value."""
    return [
        piece(full, placement, sizes, at, torch.Generator().manual_seed(seed), padding) for at in coordinates_of_ranks(sizes)
    ]


def piece(
    value: Tensor,
    placement: Placement,
    sizes: Sequence[int],
    at: Coordinates,
    generator: torch.Generator,
    padding: float = 0.0,
) -> Tensor:
    partial = [axis for axis, state in enumerate(placement.states) if state == "P"]
    if partial:
        numbers = torch.randn(math.prod(sizes[a] for a in partial), *value.shape, dtype=value.dtype, generator=generator)
        numbers[-1] = value - numbers[:-1].sum(0)
        index = 0
        for axis in partial:
            index = index * sizes[axis] + at[axis]
        value = numbers[index]
    local = placement.local_shape(value.shape, sizes)
    for axis in placement.order:
        value = value.chunk(sizes[axis], int(placement.states[axis]))[at[axis]]
    found = value.new_full(local, padding) if value.is_floating_point() else value.new_zeros(local)
    found[tuple(slice(n) for n in value.shape)] = value
    return found


def join(
    pieces: Sequence[Tensor],
    placement: Placement,
    sizes: Sequence[int],
    *,
    tolerance: float = 0.0,
    shape: Sequence[int] | None = None,
    zeros: bool = False,
) -> Tensor:
    """The full value: S side by side, P summed; R and I must agree between ranks (to `tolerance`), else AssertionError. Of a
    tensor of `shape`, without padding, which must be zero if `zeros` says so."""
    values = dict(zip(coordinates_of_ranks(sizes), pieces, strict=True))
    plain = [axis for axis, state in enumerate(placement.states) if not isinstance(state, int)]
    left = list(range(len(sizes)))
    for axis in [*reversed(placement.order), *plain]:
        position = left.index(axis)
        left.remove(axis)
        groups: dict[Coordinates, list[Tensor]] = {}
        for at, value in values.items():
            groups.setdefault(at[:position] + at[position + 1 :], []).append(value)
        values = {at: unite(group, placement.states[axis], tolerance) for at, group in groups.items()}
        if shape is not None and isinstance(dim := placement.states[axis], int):
            placement = placement.replace(axis, "I")
            length = placement.local_shape(shape, sizes)[dim]
            values = {at: without_padding(value, dim, length, zeros) for at, value in values.items()}
    return values[()]


def without_padding(value: Tensor, dim: int, length: int, zeros: bool) -> Tensor:
    kept = value.narrow(dim, 0, length)
    assert not zeros or value.count_nonzero() == kept.count_nonzero(), "the padding of a gradient is not zero"
    return kept


def unite(group: list[Tensor], state: int | str, tolerance: float) -> Tensor:
    if isinstance(state, int):
        return torch.cat(group, state)
    if state == "P":
        return torch.stack(group).sum(0)
    for rank, other in enumerate(group[1:], 1):
        if told := difference(other, group[0], tolerance):
            raise AssertionError(f"ranks differ on {state}, which says that all have the same: number {rank} {told}")
    return group[0]


def difference(found: Tensor, wanted: Tensor, tolerance: float) -> str:
    """ "has ... at [...] where ... is wanted", at the element that is furthest off; "" if all are within the tolerance."""
    if found.shape != wanted.shape:
        return f"has shape {list(found.shape)} where {list(wanted.shape)} is wanted"
    if found.dtype != wanted.dtype:
        return f"is {found.dtype} where {wanted.dtype} is wanted"
    a, b = (x.to(torch.float64 if not x.is_complex() else torch.complex128) for x in (found, wanted))
    off = (a - b).abs()
    off = off.masked_fill((a == b) | (a.isnan() & b.isnan()), 0).nan_to_num(math.inf, math.inf)
    wrong = off > tolerance * (1 + b.abs().nan_to_num(0, 0))
    if not bool(wrong.any()):
        return ""
    place = int(off.argmax())
    at = list(indices_of(place, wanted.shape))
    ours, theirs = found.reshape(-1)[place].item(), wanted.reshape(-1)[place].item()
    many = f"{int(wrong.sum())} of {wrong.numel()} elements are off, by {float(off.max()):.3g} at most"
    return f"has {ours:.6g} at {at} where {theirs:.6g} is wanted ({many})"


def indices_of(place: int, shape: Sequence[int]) -> Coordinates:
    """The indices of an element, from its position among all."""
    found: list[int] = []
    for size in reversed(shape):
        place, index = divmod(place, size)
        found.append(index)
    return tuple(reversed(found))


def distribute(full: Tensor, placement: Placement, sizes: Sequence[int], seed: int = 0, padding: float = 0.0) -> Tensor:
    """Inside `local_ranks`: `cut`, as one tensor of all ranks. `full` must have been made outside."""
    pieces = cut(full, placement, sizes, seed, padding)
    return rank_map(lambda rank: pieces[rank])


def collect(
    x: Tensor,
    placement: Placement,
    sizes: Sequence[int],
    *,
    tolerance: float = 0.0,
    shape: Sequence[int] | None = None,
    zeros: bool = False,
) -> Tensor:
    """`join` of a tensor of all ranks; a plain tensor is one that all ranks share."""
    values = by_rank(x) if hasattr(x, "_local_tensors") else dict.fromkeys(range(math.prod(sizes)), x)
    pieces = [values[rank].detach() for rank in sorted(values)]
    return join(pieces, placement, sizes, tolerance=tolerance, shape=shape, zeros=zeros)
