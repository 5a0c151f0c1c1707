"""Dropout by place beside torch's own, forward and backward, in one run.

    python benchmarks/dropout_speed.py --shapes 16x256x768,8x12x256x256 --dtype float32 --device cpu

Prints the machine, then a JSON line per shape: medians of paired runs, in ms. On a CPU one thread runs, and its own time is
counted, so that other work on the machine disturbs less; on a GPU it is time on the device.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch

from autopar.ops.counters import keys_of_step
from autopar.ops.draws import dropout

PROBABILITY = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="64x64,4x64x128,8x128x256,16x256x768,8x12x256x256")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=21)
    options = parser.parse_args()
    torch.set_num_threads(1)
    name = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    print(json.dumps({"device": name, "torch": torch.__version__, "python": platform.python_version()}))
    for text in options.shapes.split(","):
        shape = tuple(map(int, text.split("x")))
        theirs_ms, ours_ms = measure(shape, getattr(torch, options.dtype), options.device, options.repeats)
        line = {"shape": text, "torch_ms": round(theirs_ms, 3), "ours_ms": round(ours_ms, 3)}
        print(json.dumps({**line, "ratio": round(ours_ms / theirs_ms, 2)}), flush=True)


def measure(shape: tuple[int, ...], dtype: torch.dtype, device: str, repeats: int) -> list[float]:
    """Medians of torch's and of ours, in ms."""
    x = torch.randn(shape, dtype=dtype, device=device, requires_grad=True)
    upstream = torch.randn(shape, dtype=dtype, device=device)
    key = keys_of_step(0, 0, 1).to(device)

    def theirs() -> None:
        torch.autograd.grad(torch.nn.functional.dropout(x, PROBABILITY), x, upstream)

    def ours() -> None:
        torch.autograd.grad(dropout(x, key, 0, PROBABILITY, shape, (), ()), x, upstream)

    took: list[list[float]] = [[], []]
    for _ in range(repeats + 3):
        for times, step in zip(took, (theirs, ours), strict=True):
            times.append(milliseconds(step, device))
    return [statistics.median(times[3:]) for times in took]


def milliseconds(step: Callable[[], None], device: str) -> float:
    if device == "cpu":
        began_s = time.thread_time()
        step()
        return 1e3 * (time.thread_time() - began_s)
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    before.record()
    step()
    after.record()
    torch.cuda.synchronize()
    return float(before.elapsed_time(after))


if __name__ == "__main__":
    main()
