"""Tokens per second against peak memory on one device: our plans, torch's checkpoints, torch.compile with a memory budget.

    python benchmarks/gpu_checkpointing.py                                    # CUDA, bfloat16
    python benchmarks/gpu_checkpointing.py --device cpu --size small          # float32, smaller models

A step: forward, backward, fused AdamW. Peaks are what the allocator says (`torch.cuda.max_memory_allocated`; on the CPU its
reports to the profiler), with parameters and the optimizer's state. First the others are measured; their peaks are the memory
levels, and six of them are the budgets that plans are made for. Then one step of each way in turn, so that what else the
machine does falls on all alike. JSON lines: the device; each way of each model (medians); each level: the fastest of ours and
of the others within it, and the median ratio of their speeds over the rounds (above 1: ours is faster), also with the others
that are not compiled. A table follows on stderr. Losses must agree, or the run fails. Planning needs what autopar needs, torch
alone does not do (`pulp`, `highspy`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

BUDGETS = 6
"""How many plans of ours for a model."""

TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
SLACK = 1.001
"""Peaks may exceed a level by so much: allocators round up."""


def peak_of(way: Any, device: str) -> int:
    """What one step takes at worst, with what rests between steps."""
    import torch

    from autopar.torch_private import cpu_peak_bytes

    if device == "cpu":
        return way.resident_bytes + cpu_peak_bytes(way.step)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    way.step()
    torch.cuda.synchronize()
    return way.resident_bytes + torch.cuda.max_memory_allocated() - before


def seconds_of(step: Callable[[], Any], device: str) -> float:
    import torch

    if device == "cpu":
        since = time.perf_counter()
        step()
        return time.perf_counter() - since
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def spread(levels: Sequence[int], count: int) -> list[int]:
    """So many of them, smallest first, both ends among them."""
    distinct = sorted(set(levels))
    if len(distinct) <= count:
        return distinct
    return [distinct[round(i * (len(distinct) - 1) / (count - 1))] for i in range(count)]


def ready(way: Any, device: str, warmup: int) -> dict[str, Any]:
    """Run it a few times; its peak and its loss."""
    since = time.perf_counter()
    losses = [float(way.step()) for _ in range(warmup)]
    return {"loss": losses[0], "peak_bytes": peak_of(way, device), "prepared_s": round(time.perf_counter() - since, 1)}


def ways_of(name: str, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """All ways of a model by name, with what was seen when they ran first."""
    import torch
    from checkpoint_models import SIZES, build
    from checkpoint_ways import others, ours, plans

    model, batch = build(name, SIZES[options.size][name], options.device, getattr(torch, options.dtype))
    budgets = [float(b) for b in options.compile_budgets.split(",") if b]
    ways, seen = {}, {}
    for way in others(model, batch, budgets):
        try:
            seen[way.name] = ready(way, options.device, options.warmup)
        except torch.OutOfMemoryError:
            print(json.dumps({"model": name, "way": way.name, "out_of_memory": True}), flush=True)
            continue
        ways[way.name] = way
    levels = spread([entry["peak_bytes"] for entry in seen.values()], BUDGETS)
    for plan in plans(model, batch, options.hardware, levels):
        way = ours(model, batch, plan, options.device, options.backend)
        ways[way.name], seen[way.name] = way, ready(way, options.device, options.warmup)
    return ways, seen


def compare(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Print a line per way and per level; return those of the levels."""
    from checkpoint_models import SIZES
    from checkpoint_ways import OURS

    ways, seen = ways_of(name, options)
    names, seconds = list(ways), {way: [0.0] * options.rounds for way in ways}
    for turn in range(options.rounds):
        for way in names[turn % len(names) :] + names[: turn % len(names)]:
            seconds[way][turn] = seconds_of(ways[way].step, options.device)
    size = SIZES[options.size][name]
    first, wrong = next(iter(seen.values()))["loss"], []
    for way, entry in seen.items():
        median, plan = statistics.median(seconds[way]), ways[way].plan
        line = {"model": name, "way": way, "family": ways[way].family, **entry, "median_s": round(median, 5)}
        line |= {"tokens_per_s": round(size.batch * size.seq / median)}
        if plan is not None:
            counted = plan.peak_bytes
            line |= {
                "budget_bytes": plan.budget_bytes,
                "counted_peak_bytes": counted,
                "predicted_s": round(plan.step_time_s, 5),
            }
        print(json.dumps(line), flush=True)
        if abs(entry["loss"] - first) > TOLERANCE[options.dtype] * abs(first):
            wrong.append(f"{way}: loss {entry['loss']}, without checkpoints {first}")
    if wrong:
        raise SystemExit("\n".join([f"{name}: ways compute different things", *wrong]))
    peaks = {way: entry["peak_bytes"] for way, entry in seen.items()}
    families = {way: ways[way].family for way in ways}
    found = [level(x, peaks, seconds, families) for x in sorted({peaks[way] for way in ways if families[way] != OURS})]
    for line in found:
        print(json.dumps({"model": name, **line}), flush=True)
    return found


def level(most_bytes: int, peaks: dict[str, int], seconds: dict[str, list[float]], families: dict[str, str]) -> dict[str, Any]:
    """The fastest of ours, of all others, and of those by hand, with at most so much memory; None where none fits."""
    from checkpoint_ways import BY_HAND, COMPILED, OURS

    def fastest(*of: str) -> str | None:
        fit = [way for way, peak in peaks.items() if peak <= most_bytes * SLACK and families[way] in of]
        return min(fit, key=lambda way: statistics.median(seconds[way]), default=None)

    def ratio(other: str | None) -> float | None:
        if best is None or other is None:
            return None
        return round(statistics.median(b / a for a, b in zip(seconds[best], seconds[other], strict=True)), 3)

    best, other, by_hand = fastest(OURS), fastest(BY_HAND, COMPILED), fastest(BY_HAND)
    found = {"level_bytes": most_bytes, "ours": best, "other": other, "speed_ratio": ratio(other)}
    return found | {"by_hand": by_hand, "speed_ratio_by_hand": ratio(by_hand)}


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown, with a sentence per model."""
    from autopar.bytes import human

    lines = ["| model | at most | ours | fastest other | speed, ours / other | fastest by hand | speed, ours / by hand |"]
    lines.append("|---|---:|---|---|---:|---|---:|")
    for name, levels in found.items():
        for line in levels:
            texts = [
                line["ours"] or "does not fit",
                line["other"],
                line["speed_ratio"],
                line["by_hand"],
                line["speed_ratio_by_hand"],
            ]
            cells = [name, human(line["level_bytes"]), *("" if text is None else str(text) for text in texts)]
            lines.append(f"| {' | '.join(cells)} |")
    for name, levels in found.items():
        ahead, by_hand = (sum((line[key] or 0) >= 1 for line in levels) for key in ("speed_ratio", "speed_ratio_by_hand"))
        lines.append(
            f"{name}: ours is the fastest at {ahead} of {len(levels)} memory levels, and at {by_hand} where nothing is compiled"
        )
    return "\n".join(lines)


def calibrated(device: str) -> str:
    """A description of this machine, in a file of its own: some 10 seconds."""
    import subprocess
    import tempfile

    path = Path(tempfile.mkdtemp()) / "measured.json"
    command = [sys.executable, "-W", "ignore", "-m", "autopar.cli", "hardware", "calibrate", "--quick"]
    subprocess.run([*command, "--device", device, "-o", str(path)], check=True, stdout=subprocess.DEVNULL)
    return str(path)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="gpt2-medium,llama-1b")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--size", default="full", choices=("full", "small", "tiny"))
    parser.add_argument("--dtype", help="bfloat16 on CUDA, float32 on the CPU")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--compile-budgets", default="0.25,0.5,0.75", help="of activation memory; empty: no torch.compile")
    parser.add_argument("--hardware", help="a known name or a file; or `calibrate`. h100-sxm on CUDA, else calibrate")
    parser.add_argument("--backend", default="eager", help="of our plans: eager, or inductor")
    parser.add_argument("--threads", type=int, default=0, help="on the CPU; 0: all cores")
    return parser.parse_args()


def main() -> int:
    options = parse()
    import torch
    import torch.distributed as dist

    if options.device == "cuda" and not torch.cuda.is_available():
        print("this needs a CUDA device, and torch sees none: use --device cpu --size small", file=sys.stderr)
        return 2
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads or os.cpu_count() or 1)
    options.dtype = options.dtype or ("bfloat16" if options.device == "cuda" else "float32")
    options.hardware = options.hardware or ("h100-sxm" if options.device == "cuda" else "calibrate")
    if options.hardware == "calibrate":
        options.hardware = calibrated(options.device)
    machine = torch.cuda.get_device_name() if options.device == "cuda" else f"{platform.machine()}, {os.cpu_count()} cores"
    said = {"device": machine, "torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version()}
    print(
        json.dumps({**said, **{k: getattr(options, k) for k in ("size", "dtype", "backend", "rounds", "threads")}}), flush=True
    )
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if options.device == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1
    )
    try:
        found = {}
        for name in options.models.split(","):
            found[name] = compare(name, options)
            torch.compiler.reset()
    finally:
        dist.destroy_process_group()
    print(table(found), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
