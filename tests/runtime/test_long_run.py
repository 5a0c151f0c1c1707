"""Hundreds of steps in real processes leave memory, threads and file handles as they were; numbers that are none show."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

import autopar
from autopar.torch_private import AllocationTracker
from tests.hardware_toy import toy_hardware
from tests.models import mlp
from tests.processes import run_processes

STEPS, WARM = 750, 250
SLACK_BYTES = 2**20
"""What the allocator's own bookkeeping may move by: a leak of one activation (16 KiB) per step would be 8 MiB."""


@pytest.mark.slow
def test_nothing_grows_and_nothing_is_hidden() -> None:
    run_processes(2, run_long)


def run_long(rank: int) -> None:
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("gpu",))
    model, batch = mlp(batch=64)
    parallel = autopar.compile(model, mesh, kwargs=batch, hardware=toy_hardware(), gap=0.05, time_limit_s=5)
    optimizer = torch.optim.AdamW(parallel.parameters())
    before: dict[str, int] = {}
    for step in range(STEPS):
        if step == WARM:
            before = figures()
        loss = parallel(**batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
    after = figures()
    assert after["resident"] - before["resident"] < SLACK_BYTES, (before, after)
    assert (after["threads"], after["handles"]) == (before["threads"], before["handles"])
    with AllocationTracker() as tracker:
        for _ in range(3):
            parallel(**batch)["loss"].backward()
            optimizer.zero_grad()
        gc.collect()
    assert tracker.bytes == 0
    shows(parallel, batch)


def figures() -> dict[str, int]:
    """Of this process: resident bytes, threads (the kernel's count), open files."""
    gc.collect()
    return {
        "resident": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
        "threads": len(os.listdir("/proc/self/task")) + 1000 * (threading.active_count() - 1),
        "handles": len(os.listdir("/proc/self/fd")),
    }


def shows(parallel: nn.Module, batch: dict[str, torch.Tensor]) -> None:
    """A NaN in one sample is in the loss and in the norm on every rank; so is an overflow."""
    for bad, seen in ((torch.nan, torch.isnan), (3e38, lambda loss: ~loss.isfinite())):
        spoiled = {**batch, "x": batch["x"].clone()}
        spoiled["x"][0, 0] = bad
        loss = parallel(**spoiled)["loss"]
        assert seen(loss)
        loss.backward()
        with pytest.raises(RuntimeError, match="non-finite"):
            torch.nn.utils.clip_grad_norm_(parallel.parameters(), 1.0, error_if_nonfinite=True)
        parallel.zero_grad()
    assert parallel(**batch)["loss"].isfinite()
