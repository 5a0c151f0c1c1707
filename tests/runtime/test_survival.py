"""Real jobs under torchrun whose processes are killed, and that go on with fewer and more of them: losses of a run without."""

from __future__ import annotations

import json
import os
import random
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = "examples/train_resilient.py"
STEPS, SECONDS = 12, 300
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""The last: torchrun else keeps one store over restarts, and gloo waits at addresses of processes that are gone."""


def job(processes: int, steps: int, every: int, folder: Path, *deaths: dict[str, Any] | None) -> str:
    """Output of a job that ends well, after as many restarts as there are deaths."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    script = ["tests/runtime/mortal.py", json.dumps(deaths), SCRIPT, "--folder", str(folder / "run")]
    done = subprocess.run(
        [sys.executable, *launch, f"--max-restarts={len(deaths)}", *script, f"--steps={steps}", f"--every={every}"],
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT, "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("rank 0 is process") == 1 + len(deaths), done.stdout
    (folder / f"said-{processes}").write_text(done.stderr)
    return done.stdout


def losses_of(output: str) -> list[tuple[int, float]]:
    return [(int(step), float(loss)) for step, loss in re.findall(r"step (\d+)  loss ([\d.]+)", output)]


def uninterrupted() -> list[float]:
    """The plain model on one device."""
    script = runpy.run_path(str(ROOT / SCRIPT))
    torch.manual_seed(0)
    model = script["Classifier"]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=script["WARMUP"])
    losses = []
    for step in range(STEPS):
        loss = model(**script["batch_of"](step))["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
def test_killed_processes_and_other_numbers_of_them_do_not_show_in_the_losses(tmp_path: Path) -> None:
    somewhere = {"rank": 1, "step": 3, "later_s": random.uniform(0, 0.05)}
    while_saving = {"rank": 0, "save": 2}
    first = losses_of(job(4, 4, 2, tmp_path))
    output = job(2, 9, 1, tmp_path, somewhere, while_saving)
    last = losses_of(job(4, STEPS, 5, tmp_path))
    expected = uninterrupted()

    starts = [losses_of(part)[0][0] for part in re.split("rank 0 is process", output)[1:]]
    assert starts[0] == 4 <= starts[1] < starts[2], (
        "a start goes on from the latest checkpoint, whose save may have been cut off"
    )
    assert [step for step, _ in first] == [0, 1, 2, 3]
    assert [step for step, _ in last] == [9, 10, 11]
    done = [*first, *losses_of(output), *last]
    assert {step for step, _ in done} == set(range(STEPS))
    for step, loss in done:
        assert loss == pytest.approx(expected[step], rel=1e-5), (step, somewhere)
