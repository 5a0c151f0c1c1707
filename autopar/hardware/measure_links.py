"""Timing collectives along each axis of a mesh of processes.

All groups of an axis run at once, as they do in a plan, so that links which they share are seen shared. The ops are those of
emitted programs, their outputs allocated as there.

A batch in the middle counts, and not the fastest as for ops of one device: a collective waits for the last of all processes,
so that what else each of their machines does is what it takes.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from autopar.hardware.fit import CollectiveSample
from autopar.hardware.measure import STOPWATCHES, Agree, Effort, Progress, Run, seconds_per_call
from autopar.ir.conversion import ALL_GATHER, ALL_REDUCE, ALL_TO_ALL, COLLECTIVES, REDUCE_SCATTER

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

BACKENDS = {"cpu": "gloo", "cuda": "nccl"}


def slowest(device: torch.device) -> Agree:
    """The largest of all processes' numbers."""

    def agree(seconds: float) -> float:
        box = torch.tensor([seconds], dtype=torch.float64, device=device)
        dist.all_reduce(box, op=dist.ReduceOp.MAX)
        return float(box.item())

    return agree


def collective(kind: str, bytes: int, size: int, group: str, device: torch.device) -> tuple[int, Run]:
    """A call of the collective, and the bytes that it counts as: near `bytes`, divisible by `size` devices of four bytes."""
    ops = torch.ops._c10d_functional
    piece = max(bytes // (4 * size), 1)
    part, whole = (torch.ones(n, device=device) for n in (piece, piece * size))
    calls: dict[str, Run] = {
        ALL_GATHER: lambda: ops.wait_tensor(ops.all_gather_into_tensor(part, size, group)),
        REDUCE_SCATTER: lambda: ops.wait_tensor(ops.reduce_scatter_tensor(whole, "sum", size, group)),
        ALL_REDUCE: lambda: ops.wait_tensor(ops.all_reduce(whole, "sum", group)),
        ALL_TO_ALL: lambda: ops.wait_tensor(ops.all_to_all_single(whole, [piece] * size, [piece] * size, group)),
    }
    return whole.numel() * whole.element_size(), calls[kind]


def measure_axis(
    mesh: DeviceMesh, axis: str, device: torch.device, effort: Effort, progress: Progress
) -> Iterator[CollectiveSample]:
    """Samples of every collective and message size along one axis; the same on all processes."""
    point_s = effort.message_s / max(sum(n > 1 for n in mesh.shape), 1)
    size, group = mesh.size(mesh.mesh_dim_names.index(axis)), mesh.get_group(axis).group_name  # type: ignore[union-attr]
    agree, stopwatch = slowest(device), STOPWATCHES[device.type]
    for kind in COLLECTIVES:
        for asked in effort.message_bytes:
            bytes, run = collective(kind, asked, size, group, device)
            progress(f"{kind} along {axis}, {bytes} bytes")
            seconds = seconds_per_call(run, stopwatch, point_s, agree, statistics.median)
            yield CollectiveSample(kind=kind, bytes=bytes, size=size, seconds=seconds)
