"""The benchmark of speed against memory on tiny models: it runs on the CPU, and its lines add up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from autopar.torch_private import AllocationTracker, cpu_peak_bytes

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_checkpointing.py"


@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["", pytest.param("0.5", marks=pytest.mark.exhaustive)], ids=["eager", "compiled"])
def test_every_family_runs_within_what_it_says(compiled: str) -> None:
    command = [sys.executable, "-W", "ignore", str(SCRIPT), "--device", "cpu", "--size", "tiny", "--models", "gpt2-medium"]
    command += ["--hardware", "cpu", "--rounds", "3", "--warmup", "1", "--threads", "1", "--compile-budgets", compiled]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    ways = {line["way"]: line for line in lines if "way" in line}
    levels = [line for line in lines if "level_bytes" in line]
    assert {line["family"] for line in ways.values()} == {"ours", "by hand"} | ({"torch.compile"} if compiled else set())
    assert ways["full"]["peak_bytes"] < ways["selective"]["peak_bytes"] < ways["no checkpoints"]["peak_bytes"]
    if compiled:
        assert ways["compile, budget 0.5"]["peak_bytes"] < ways["compile"]["peak_bytes"]
    mine = [line for line in ways.values() if line["family"] == "ours"]
    assert all(line["peak_bytes"] <= line["counted_peak_bytes"] <= line["budget_bytes"] for line in mine)
    assert {line["level_bytes"] for line in levels} == {w["peak_bytes"] for w in ways.values() if w["family"] != "ours"}
    assert levels[-1]["ours"]
    assert levels[-1]["speed_ratio"] > 0
    assert f"of {len(levels)} memory levels" in done.stderr


def test_the_allocator_says_what_the_tracker_counts() -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.GELU(), torch.nn.Linear(64, 16))
    x = torch.randn(32, 16)

    def step() -> None:
        layers(x).square().sum().backward()
        layers.zero_grad()

    with AllocationTracker() as tracker:
        step()
    assert cpu_peak_bytes(step) == tracker.peak_bytes > 32 * 64 * 4
