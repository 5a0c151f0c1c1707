"""Sharded implementations, what a device runs on its pieces where the local op is not the op itself: how they are made, and
what they share.

All are differentiable functions of local tensors. `axes` are the mesh axes that cut the factor in question, each as (group
name, size), outermost first, and `coordinates` the device's places on them (0-dim int64 tensors). Bases are written as
placements on those axes: S, R, I, P as in `autopar.ir.placement`. Where a factor may be cut unevenly, its true size is given
if it is (None: pieces are equal): what lies behind it on the last device is padding.

Where a plain op gives the right gradient it is used. Where collectives are inside, an `autograd.Function` says what is saved
and what is communicated, forward and backward. Backward passes may write into buffers that they made themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from autopar.ops.collectives import all_gather, all_reduce

Axes = Sequence[tuple[str, int]]


def parts(axes: Axes) -> int:
    """Into how many pieces the axes cut."""
    return math.prod(size for _, size in axes)


def reduce_over(x: Tensor, axes: Axes, op: str = "sum") -> Tensor:
    """The sum (or elementwise "max", "min") over all the axes; no gradient of its own."""
    for axis, _ in axes:
        x = all_reduce(x, axis, op)
    return x


def piece_of(axes: Axes, coordinates: Sequence[Tensor], device: torch.device) -> Tensor:
    """Which of the pieces that the axes cut, outermost first, this device has, as a 0-dim int64 tensor."""
    piece = torch.zeros((), dtype=torch.int64, device=device)
    for (_, size), coordinate in zip(axes, coordinates, strict=True):
        piece = piece * size + coordinate
    return piece


def rows_of(
    rows: int, axes: Axes, coordinates: Sequence[Tensor], device: torch.device, size: int | None
) -> tuple[Tensor, Tensor | int]:
    """Where this device's `rows` rows of a sharded dim begin, and how many of them are no padding."""
    if size is None:
        return piece_of(axes, coordinates, device) * rows, rows
    outer = axes[:-1]  # only the innermost axis cuts unevenly
    inside, before = size // parts(outer), coordinates[-1] * rows
    return piece_of(outer, coordinates[:-1], device) * inside + before, (inside - before).clamp(max=rows)


def local_index(
    index: Tensor, rows: int, axes: Axes, coordinates: Sequence[Tensor], size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Positions among this device's `rows` rows of a sharded dim (0 where another device has the row), and who has it here."""
    first, held = rows_of(rows, axes, coordinates, index.device, size)
    local = index - first
    here = (local >= 0) & (local < held)
    return local.masked_fill(~here, 0), here


def padding_of(rows: int, axes: Axes, coordinates: Sequence[Tensor], device: torch.device, size: int | None) -> Tensor | None:
    """Which of this device's rows are padding, [rows] bool; None if the dim is cut evenly."""
    if size is None:
        return None
    return torch.arange(rows, device=device) >= rows_of(rows, axes, coordinates, device, size)[1]


def precise(dtype: torch.dtype) -> torch.dtype:
    """What sums over many elements are computed in: float32 for half precisions, else the dtype itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def mean_and_variance(x: Tensor, dims: tuple[int, ...], axes: Axes) -> tuple[Tensor, Tensor]:
    """Mean and variance (of all, uncorrected) over the dims and all devices.

    Each device's own moments are gathered and merged (Chan, Golub, LeVeque 1983): one collective per axis, and none of the
    cancellation of E[x^2] - E[x]^2.
    """
    variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    for axis, size in axes:
        means, variances = all_gather(torch.stack([mean, variance]).unsqueeze(0), 0, axis, size).unbind(1)
        between, mean = torch.var_mean(means, 0, correction=0)
        variance = variances.mean(0) + between
    return mean, variance


def once(x: Tensor, coordinates: Sequence[Tensor]) -> Tensor:
    """The summand of a reduced loop that does not have this loop: x on the first device along all the axes, 0 on the others;
    x itself if there are no axes."""
    return x.masked_fill(torch.stack(list(coordinates)).any(), 0) if coordinates else x


def added_once(bias: Tensor | None, summed: Sequence[Tensor]) -> Tensor | None:
    """The bias on the first device along axes over which the result is summed, 0 on the others."""
    return None if bias is None else once(bias, summed)
