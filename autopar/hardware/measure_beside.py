"""What computing and communication do to each other.

How much of a collective's time a device can compute something else: matmuls that take as long as an all-reduce run while it
travels. If nothing is in each other's way, both together take as long as one of them; processors that do the sending themselves
take as long as for one after the other.

And how long devices wait for each other: a collective of next to nothing takes longer behind matmuls than behind another one,
since devices that compute the same are not through at the same moment.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from autopar.hardware.measure import STOPWATCHES, Effort, Progress, seconds_per_call
from autopar.hardware.measure_links import slowest

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

MATMUL = 512
MOST_MATMULS = 256
ROUNDS = 3
"""For each pass of an effort."""
STRETCH_S = 0.02
"""Of matmuls between two collectives: about that of a few layers."""
STRETCHES = 10
"""Timed together: what makes one device late is rare, and may be long."""


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What was measured along one axis, or is taken for all of them; see `Hardware`."""

    overlap: float = 1.0
    skew_s: float = 0.0


def share_hidden(sent_s: float, computed_s: float, together_s: float) -> float:
    """Of the shorter of both, the part that took no time of its own; from 0 to 1.

    >>> share_hidden(2.0, 2.0, 2.0), share_hidden(2.0, 2.0, 3.0), share_hidden(2.0, 1.0, 3.1)
    (1.0, 0.5, 0.0)
    """
    saved = sent_s + computed_s - together_s
    return min(max(saved / min(sent_s, computed_s), 0.0), 1.0)


def measure_beside(mesh: DeviceMesh, axis: str, device: torch.device, effort: Effort, progress: Progress) -> Beside:
    """Along one axis; the same on all processes. Small differences of times, each of which is that in the middle of several
    rounds.

    What is hidden is that of the largest message of this effort.
    """
    progress(f"computing beside communication along {axis}")
    ops, group = torch.ops._c10d_functional, mesh.get_group(axis).group_name
    agree, stopwatch = slowest(device), STOPWATCHES[device.type]
    large, empty = (torch.ones(bytes // 4, device=device) for bytes in (max(effort.message_bytes), 4))
    factor = torch.rand(MATMUL, MATMUL, device=device)
    product = torch.empty_like(factor)

    def sent(message: torch.Tensor) -> None:
        ops.wait_tensor(ops.all_reduce(message, "sum", group))

    def compute(times: int) -> None:
        for _ in range(times):
            torch.matmul(factor, factor, out=product)

    def both(times: int) -> None:
        arriving = ops.all_reduce(large, "sum", group)
        compute(times)
        ops.wait_tensor(arriving)

    def one_after_the_other(times: int) -> None:
        compute(times)
        sent(empty)

    def seconds(run: Callable[[], object]) -> float:
        return seconds_per_call(run, stopwatch, effort.message_s, agree, statistics.median)

    def many_seconds(run: Callable[[], object]) -> float:
        return agree(stopwatch(run, STRETCHES))

    once_s = seconds(partial(compute, 1))
    lengths_s = (seconds(partial(sent, large)), STRETCH_S)
    as_long, stretch = (min(max(round(length_s / once_s), 1), MOST_MATMULS) for length_s in lengths_s)

    def times_s() -> tuple[float, ...]:
        return (
            seconds(partial(sent, large)),
            seconds(partial(compute, as_long)),
            seconds(partial(both, as_long)),
            seconds(partial(sent, empty)),
            many_seconds(partial(compute, stretch)),
            many_seconds(partial(one_after_the_other, stretch)),
        )

    rounds = zip(*(times_s() for _ in range(ROUNDS * effort.passes)), strict=True)
    large_s, computed_s, together_s, empty_s, stretch_s, after_s = map(statistics.median, rounds)
    return Beside(overlap=share_hidden(large_s, computed_s, together_s), skew_s=max(after_s - stretch_s - empty_s, 0.0))
