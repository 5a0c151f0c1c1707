"""Seconds of a training step: autopar beside DDP, FSDP2 (with and without checkpoints) and tensor parallel of torch.

    python benchmarks/step_time.py --models gpt2,llama,bert,vit --ranks 2,4 --rounds 9

Processes over gloo on this machine, cores divided among them; all ways in the same processes, one step of each in turn, so
that what else the machine does falls on all alike. A step: forward, backward, fused AdamW. A JSON line per model and number of
ranks: medians in seconds; `ratio`, the median over the rounds of ours against the other way with the best median; `cpu_s`,
what one process and its threads computed, which other load changes less. Losses of the first three steps must agree with
ours, or `losses_apart` says by how much they do not.
"""

from __future__ import annotations

import argparse
import json
import operator
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

TOLERANCE = 1e-4
RIVALS = {"autopar": "eager", "autopar+inductor": "torch.compile"}
"""On one device: what each of ours is held against."""


def run_rank(options: argparse.Namespace) -> None:
    """What one process does; rank 0 prints the lines."""
    import torch
    import torch.distributed as dist

    sys.path.insert(0, str(Path(__file__).parent))
    torch.set_num_threads(options.threads)
    dist.init_process_group("gloo", init_method=f"file://{options.store}", rank=options.rank, world_size=options.world)
    for name in options.models.split(","):
        line = compare(name, options)
        if options.rank == 0:
            print(json.dumps(line), flush=True)
    dist.destroy_process_group()


def compare(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """All ways of one model."""
    import torch
    import torch.distributed as dist
    from step_models import case
    from step_ways import ALONE, WAYS, applies

    known = WAYS if options.world > 1 else ALONE
    ways = [w for w in known if (w in options.ways.split(",") or options.ways == "all") and applies(w, case(name))]
    ready, prepared_s = {}, {}
    for way in ways:
        since = time.perf_counter()
        module, batch = known[way](case(name), argparse.Namespace(**vars(options), model=name))
        ready[way] = (module, batch, optimizer_of(module))
        prepared_s[way] = time.perf_counter() - since
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    busy: dict[str, list[float]] = {way: [] for way in ways}
    losses: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(options.rounds + options.warmup):
        for way in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
            dist.barrier()
            since, busy_since = time.perf_counter(), time.process_time()
            losses[way].append(step(*ready[way]))
            dist.barrier()
            if turn >= options.warmup:
                seconds[way].append(time.perf_counter() - since)
                busy[way].append(time.process_time() - busy_since)
    median = {way: statistics.median(s) for way, s in seconds.items()}
    best = min((w for w in ways if w != "autopar"), key=median.__getitem__, default="autopar")
    module = ready["autopar"][0]
    pairs = {way: (seconds[way], seconds[other]) for way, other in RIVALS.items() if way in ways and other in ways}
    apart = {way: largest_apart(losses[way], losses["autopar"]) for way in ways}
    return {
        "model": name,
        "ranks": options.world,
        "ratio": round(statistics.median(a / b for a, b in zip(seconds["autopar"], seconds[best], strict=True)), 3),
        "best_other": best,
        "ratios": {way: round(statistics.median(map(operator.truediv, *pair)), 3) for way, pair in pairs.items()},
        "median_s": {way: round(s, 4) for way, s in median.items()},
        "fastest_s": {way: round(min(s), 4) for way, s in seconds.items()},
        "cpu_s": {way: round(statistics.median(s), 4) for way, s in busy.items()},
        "mesh": str(module.plan.mesh),
        "predicted_s": round(module.plan.step_time_s, 4),
        "prepared_s": {way: round(s, 1) for way, s in prepared_s.items()},
        "losses_apart": {way: d for way, d in apart.items() if d > TOLERANCE},
        "rounds": options.rounds,
        "threads": options.threads,
        "hardware": Path(options.hardware).stem,
        "torch": torch.__version__,
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
    }


def optimizer_of(module: Any) -> Any:
    """Fused AdamW; tensor parallel leaves some parameters plain, and one fused call takes tensors of one kind."""
    import torch
    from torch.distributed.tensor import DTensor

    kinds = [[p for p in module.parameters() if isinstance(p, DTensor) is kind] for kind in (True, False)]
    return torch.optim.AdamW([{"params": group} for group in kinds if group], lr=1e-3, fused=True)


def largest_apart(mine: list[float], others: list[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(mine[:3], others[:3], strict=True))


def step(module: Any, batch: Any, optimizer: Any) -> float:
    """One training step; the loss of the global batch."""
    import torch
    import torch.distributed as dist

    loss = module(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    mean = loss.detach().clone()
    dist.all_reduce(mean, op=dist.ReduceOp.SUM)
    assert isinstance(mean, torch.Tensor)
    return float(mean) / dist.get_world_size()


def calibrated(world: int, threads: int, folder: str) -> str:
    """A description of this machine as so many processes see it: some 10 seconds."""
    path = f"{folder}/measured.json"
    measure = ["-m", "autopar.cli", "hardware", "calibrate", "--quick", "-o", path]
    if world > 1:
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
        measure = [*start, *measure, "--mesh", str(world)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    subprocess.run([sys.executable, "-W", "ignore", *measure], check=True, env=environment, stdout=subprocess.DEVNULL)
    return path


def run_all(options: argparse.Namespace) -> int:
    """Start the processes of each number of ranks."""
    for world in map(int, options.ranks.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            threads = options.threads or max(1, (os.cpu_count() or 1) // world)
            hardware = calibrated(world, threads, folder) if options.hardware == "calibrate" else options.hardware
            common = [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--world", str(world), "--hardware", hardware]
            common += ["--store", f"{folder}/store", "--threads", str(threads)]
            environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
            processes = [subprocess.Popen([*common, "--rank", str(rank)], env=environment) for rank in range(world)]
            codes = [process.wait() for process in processes]
            if any(codes):
                return max(codes, key=abs)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="gpt2,llama,bert,vit")
    parser.add_argument("--ranks", default="2,4")
    parser.add_argument("--ways", default="all", help="names of ways with commas; autopar is one")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=0, help="per process; 0: the cores divided by the processes")
    parser.add_argument("--hardware", default="calibrate", help="calibrate: measured first; or a known name, or a file")
    parser.add_argument("--limit", type=float, default=60, help="seconds for the search of the plan")
    parser.add_argument("--plans", help="folder: plans are kept there, and taken from there")
    for internal, kind in (("world", int), ("rank", int), ("store", str)):
        parser.add_argument(f"--{internal}", type=kind, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse()
    if arguments.world is None or arguments.rank is None:
        raise SystemExit(run_all(arguments))
    warnings.simplefilter("ignore")
    run_rank(arguments)
