"""Pieces of whole tensors by placement, and whole tensors from pieces."""

from __future__ import annotations

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
