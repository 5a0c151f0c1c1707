"""The main job, end to end: plan a small GPT-2, train it on local processes, compare with the serial run."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PROCESSES = 4
MESH = "2x2"


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="autopar demo", description="Train a small GPT-2 on 4 local processes under a plan.")
    parser.add_argument("--steps", type=int, default=60, help="training steps, serial ones afterwards too (default: 60)")
    parser.add_argument("--memory", default="52MiB", help="byte budget per process (default: 52MiB)")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for plan.json, loss.png, sample.txt")
    parser.add_argument(
        "--trace", type=Path, metavar="FILE.json", help="a step's timeline, predicted and measured, for Perfetto"
    )
    found = parser.parse_args(argv)
    if found.steps < 1:
        parser.error("--steps must be at least 1")
    return found


def main(argv: Sequence[str] = ()) -> int:
    """Start the processes; their exit code (1 if the losses differ from the serial run's)."""
    options = arguments(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={PROCESSES}",
        "-m",
        "autopar.demo.job",
    ]
    command += [f"--steps={options.steps}", f"--memory={options.memory}", f"--out={options.out}"]
    command += [] if options.trace is None else [f"--trace={options.trace}"]
    return subprocess.run(command, check=False).returncode
