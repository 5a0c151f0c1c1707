"""Timing ops on one device: matmuls by dtype and size, streaming ops, and an op that does next to nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from autopar.hardware.fit import OpSample

Run = Callable[[], object]
Stopwatch = Callable[[Run, int], float]
Progress = Callable[[str], None]
Agree = Callable[[float], float]

BATCHES = 5
MOST_REPEATS = 2000
TF32 = "tf32"


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What is measured, and for how long: seconds per op, and per collective on all axes together, in each of some passes.

    No matmul is run that is expected to take longer than `longest_s`.
    """

    passes: int
    point_s: float
    message_s: float
    longest_s: float
    matmul_sizes: tuple[int, ...]
    stream_bytes: tuple[int, ...]
    message_bytes: tuple[int, ...]


KIB, MIB = 2**10, 2**20
EFFORTS = {
    ("cpu", False): Effort(
        passes=3,
        point_s=0.1,
        message_s=0.1,
        longest_s=0.3,
        matmul_sizes=(128, 256, 512, 1024, 2048),
        stream_bytes=(8 * MIB, 16 * MIB, 32 * MIB),
        message_bytes=(KIB, 16 * KIB, 128 * KIB, MIB, 4 * MIB, 16 * MIB),
    ),
    ("cpu", True): Effort(
        passes=2,
        point_s=0.04,
        message_s=0.04,
        longest_s=0.15,
        matmul_sizes=(256, 512, 1024),
        stream_bytes=(8 * MIB, 16 * MIB),
        message_bytes=(KIB, 128 * KIB, 4 * MIB),
    ),
    ("cuda", False): Effort(
        passes=3,
        point_s=0.1,
        message_s=0.2,
        longest_s=0.5,
        matmul_sizes=(1024, 2048, 4096, 8192),
        stream_bytes=(256 * MIB, 512 * MIB, 1024 * MIB),
        message_bytes=(4 * KIB, 64 * KIB, MIB, 16 * MIB, 64 * MIB, 256 * MIB),
    ),
    ("cuda", True): Effort(
        passes=2,
        point_s=0.03,
        message_s=0.05,
        longest_s=0.2,
        matmul_sizes=(2048, 4096, 8192),
        stream_bytes=(256 * MIB, 512 * MIB),
        message_bytes=(4 * KIB, 256 * KIB, 4 * MIB, 64 * MIB),
    ),
}
"""By device type and whether it shall be quick."""

KEPT = 8
"""Results that are there while another is made."""

DTYPES = {
    "cpu": ("float32", "float64", "bfloat16", "float16"),
    "cuda": ("float32", TF32, "float64", "bfloat16", "float16"),
}


def wall_clock(run: Run, repeats: int) -> float:
    """Seconds per call, of calls that return when they are done."""
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def cuda_events(run: Run, repeats: int) -> float:
    """Seconds per call on the device, of calls that return at once: events around a run of them."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / repeats


STOPWATCHES: dict[str, Stopwatch] = {"cpu": wall_clock, "cuda": cuda_events}


def seconds_per_call(
    run: Run, stopwatch: Stopwatch, point_s: float, agree: Agree = float, of: Callable[[list[float]], float] = min
) -> float:
    """The mean of the fastest of some batches of calls, which take about `point_s` together, after warming up.

    The fastest, because what else a machine does only ever makes a batch slower; `of` takes another one. `agree` makes one
    number of those of all processes, where calls wait for each other: each must repeat as often.
    """
    stopwatch(run, 1)
    once = max(agree(stopwatch(run, 1)), 1e-9)
    batches = min(int(point_s / once), BATCHES)
    repeats = min(max(int(point_s / BATCHES / once), 1), MOST_REPEATS)
    return agree(of([stopwatch(run, repeats) for _ in range(batches)])) if batches else once


def measure_ops(
    device: torch.device, effort: Effort, progress: Progress, dtypes: Sequence[str] | None = None
) -> list[OpSample]:
    """Samples of all three kinds, for `fit_roofline`."""
    stopwatch = STOPWATCHES[device.type]
    found = [launch_sample(device, stopwatch, effort, progress), *stream_samples(device, stopwatch, effort, progress)]
    for dtype in dtypes or DTYPES[device.type]:
        found += matmul_samples(device, stopwatch, effort, progress, dtype)
    return found


def launch_sample(device: torch.device, stopwatch: Stopwatch, effort: Effort, progress: Progress) -> OpSample:
    """An addition of four numbers: all of it is what every op costs."""
    progress("launch overhead")
    a = torch.ones(4, device=device)
    return OpSample(flops=0, bytes=48, dtype="float32", seconds=seconds_per_call(lambda: a + a, stopwatch, effort.point_s))


def keeping(run: Callable[[], torch.Tensor]) -> Run:
    """Runs it, with the results of some calls before still there.

    Processors hand out memory page by page when it is first touched: into memory that is there they write two to three times
    as fast as activations are written.
    """
    kept: list[torch.Tensor] = []

    def run_and_keep() -> None:
        if len(kept) == KEPT:
            kept.clear()
        kept.append(run())

    return run_and_keep


def stream_samples(device: torch.device, stopwatch: Stopwatch, effort: Effort, progress: Progress) -> Iterator[OpSample]:
    """Copies and additions, larger than caches, each into memory of its own as in emitted programs; bytes read and written."""
    for size in effort.stream_bytes:
        progress(f"memory bandwidth, {size // MIB} MiB")
        a, b = (torch.ones(size // 4, device=device) for _ in range(2))
        for passes, run in ((2, a.clone), (3, partial(torch.add, a, b))):
            seconds = seconds_per_call(keeping(run), stopwatch, effort.point_s)
            yield OpSample(flops=0, bytes=passes * size, dtype="float32", seconds=seconds)


def update_sample(device: torch.device, effort: Effort, progress: Progress) -> OpSample:
    """A step of AdamW, which reads a parameter, its gradient and two moments and writes three of them, all there before."""
    progress("an optimizer's step")
    size = effort.stream_bytes[-1]
    parameter = torch.nn.Parameter(torch.ones(size // 4, device=device))
    parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.AdamW([parameter], fused=True)
    seconds = seconds_per_call(optimizer.step, STOPWATCHES[device.type], effort.point_s)
    return OpSample(flops=0, bytes=7 * size, dtype="float32", seconds=seconds)


def matmul_samples(
    device: torch.device, stopwatch: Stopwatch, effort: Effort, progress: Progress, dtype: str
) -> Iterator[OpSample]:
    """Square matmuls of growing size, until the next would take too long; a multiply-add is two FLOPs."""
    with precision("high" if dtype == TF32 else "highest"):
        stored = torch.float32 if dtype == TF32 else getattr(torch, dtype)
        per_flop_s = 0.0
        for size in effort.matmul_sizes:
            if per_flop_s * 2 * size**3 > effort.longest_s:
                return
            progress(f"matmul {dtype}, {size} x {size}")
            a, b = (torch.rand(size, size, device=device).to(stored) for _ in range(2))
            seconds = seconds_per_call(partial(torch.matmul, a, b), stopwatch, effort.point_s)
            yield OpSample(flops=2 * size**3, bytes=3 * size**2 * a.element_size(), dtype=dtype, seconds=seconds)
            per_flop_s = seconds / (2 * size**3)


@contextmanager
def precision(of_float32: str) -> Iterator[None]:
    """Whether float32 matmuls may use TF32 ("high"), as it was before afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(of_float32)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
