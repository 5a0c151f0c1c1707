"""How much of a collective's time a device can compute something else.

Matmuls that take as long as an all-reduce run while it travels. If nothing is in each other's way, both together take as long
as one of them; processors that do the sending themselves take as long as for one after the other.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import TYPE_CHECKING

import torch

from autopar.hardware.measure import STOPWATCHES, Effort, Progress, seconds_per_call
from autopar.hardware.measure_links import slowest

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

MATMUL = 512
MOST_MATMULS = 256
ROUNDS = 5


def share_hidden(sent_s: float, computed_s: float, together_s: float) -> float:
    """Of the shorter of both, the part that took no time of its own; from 0 to 1.

    >>> share_hidden(2.0, 2.0, 2.0), share_hidden(2.0, 2.0, 3.0), share_hidden(2.0, 1.0, 3.1)
    (1.0, 0.5, 0.0)
    """
    saved = sent_s + computed_s - together_s
    return min(max(saved / min(sent_s, computed_s), 0.0), 1.0)


def measure_overlap(mesh: DeviceMesh, axis: str, device: torch.device, effort: Effort, progress: Progress) -> float:
    """Along one axis, with the largest message of this effort; the same on all processes. Of several rounds the one in the
    middle: the share is a small difference of three times."""
    progress(f"computing beside communication along {axis}")
    ops, group = torch.ops._c10d_functional, mesh.get_group(axis).group_name
    agree, stopwatch = slowest(device), STOPWATCHES[device.type]
    message = torch.ones(max(effort.message_bytes) // 4, device=device)
    factor = torch.rand(MATMUL, MATMUL, device=device)
    product = torch.empty_like(factor)

    def send() -> torch.Tensor:
        return ops.all_reduce(message, "sum", group)  # type: ignore[no-any-return]

    def compute(times: int) -> None:
        for _ in range(times):
            torch.matmul(factor, factor, out=product)

    def both(times: int) -> None:
        sent = send()
        compute(times)
        ops.wait_tensor(sent)

    seconds = partial(seconds_per_call, stopwatch=stopwatch, point_s=effort.message_s, agree=agree, of=statistics.median)
    sent_s = seconds(lambda: ops.wait_tensor(send()))
    times = min(max(round(sent_s / seconds(partial(compute, 1))), 1), MOST_MATMULS)

    def share() -> float:
        sent_s = seconds(lambda: ops.wait_tensor(send()))
        return share_hidden(sent_s, seconds(partial(compute, times)), seconds(partial(both, times)))

    return statistics.median(share() for _ in range(ROUNDS))
