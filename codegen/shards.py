"""Pieces of whole tensors by placement, and whole tensors from pieces.

Where a dim is cut unevenly, the last piece is shorter than the others; graphs see it with padding behind it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement as DTensorPlacement

from autopar.ir.placement import Placement


def piece(whole: Tensor, placement: Placement, coordinate: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """The piece of a whole tensor that the device at `coordinate` holds (a view where possible)."""
    for axis in placement.order:
        dim = placement.states[axis]
        assert isinstance(dim, int)
        whole = whole.chunk(sizes[axis], dim)[coordinate[axis]]
    return whole


def held(
    shape: Sequence[int], placement: Placement, coordinate: Sequence[int], sizes: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Which part of a whole tensor the device at `coordinate` holds: (start, end) of each dim."""
    ranges = [(0, n) for n in shape]
    for axis in placement.order:
        dim = placement.states[axis]
        assert isinstance(dim, int)
        start, end = ranges[dim]
        length = -(-(end - start) // sizes[axis])
        ranges[dim] = (start + coordinate[axis] * length, min(start + (coordinate[axis] + 1) * length, end))
    return tuple(ranges)


def with_padding(piece: Tensor, shape: Sequence[int]) -> Tensor:
    """A copy of a piece, with zeros behind it up to `shape`."""
    padded = piece.new_zeros(tuple(shape))
    without_padding(padded, piece.shape).copy_(piece)
    return padded


def without_padding(padded: Tensor, shape: Sequence[int]) -> Tensor:
    """The piece in the padded one, a view; itself if there is no padding."""
    for dim, (n, length) in enumerate(zip(padded.shape, shape, strict=True)):
        padded = padded if n == length else padded.narrow(dim, 0, length)
    return padded


def in_its_room(local: Tensor, shape: Sequence[int]) -> Tensor:
    """A contiguous piece with its padding: a view, where its memory is just that of `shape` (as `with_padding` made it), else a
    copy. Nothing reads what is in the padding, which must be numbers."""
    if tuple(local.shape) == tuple(shape):
        return local
    room = local.storage_offset() == 0 and local.untyped_storage().nbytes() == math.prod(shape) * local.itemsize
    if room and local.is_contiguous() and local.shape[1:] == torch.Size(shape[1:]):
        return local.as_strided(tuple(shape), local.stride())
    return with_padding(local, shape)


def coordinate_of(rank: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """Place on each axis of a rank in a row-major mesh."""
    found = []
    for size in reversed(sizes):
        rank, place = divmod(rank, size)
        found.append(place)
    return tuple(reversed(found))


def whole(pieces: Mapping[int, Tensor], placement: Placement, sizes: Sequence[int]) -> Tensor:
    """Put the pieces of all ranks together (each replica is taken from the lowest rank that has it)."""
    at = {coordinate_of(rank, sizes): piece for rank, piece in pieces.items()}
    for axis in reversed(placement.order):
        dim = placement.states[axis]
        assert isinstance(dim, int)
        merged = {}
        for place in {(*c[:axis], 0, *c[axis + 1 :]) for c in at}:
            merged[place] = torch.cat([at[(*place[:axis], i, *place[axis + 1 :])] for i in range(sizes[axis])], dim)
        at = merged
    return at[(0,) * len(sizes)]


def replicas_differ(pieces: Mapping[int, Tensor], placement: Placement, sizes: Sequence[int]) -> float:
    """The largest difference between devices that should hold the same piece."""
    largest = 0.0
    sharding = [axis for axis, state in enumerate(placement.states) if isinstance(state, int)]
    groups: dict[tuple[int, ...], Tensor] = {}
    for rank, local in sorted(pieces.items()):
        place = coordinate_of(rank, sizes)
        first = groups.setdefault(tuple(place[a] for a in sharding), local)
        if local.numel() and local is not first:
            largest = max(largest, float((local.double() - first.double()).abs().max()))
    return largest


def as_dtensor(placement: Placement) -> list[DTensorPlacement]:
    """The same placement in DTensor's words; axes that share a dim nest in mesh order there too."""
    assert all(list(placement.axes_of(d)) == sorted(placement.axes_of(d)) for d in placement.sharded_dims())
    return [Shard(state) if isinstance(state, int) else Replicate() for state in placement.states]


def local_part(tensor: Tensor) -> Tensor:
    """What this device holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def as_global(local: Tensor, placement: Placement, shape: tuple[int, ...], mesh: DeviceMesh) -> DTensor:
    """A local piece as the DTensor that it is a piece of."""
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(local, mesh, as_dtensor(placement), run_check=False, shape=torch.Size(shape), stride=stride)
