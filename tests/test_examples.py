"""The examples run, and do what their docstrings say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import autopar

ROOT = Path(__file__).parents[1]
SECONDS = 300


def run(*arguments: str) -> str:
    """Output of a Python process in the root of the repository; fails with all that it said."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_custom_op_is_cut_and_equal_to_one_device() -> None:
    out = run("examples/custom_op.py")
    assert re.search(r"example +pointwise +cut over \{'node': '[bh]0?', 'gpu': '[bh]0?'\}", out), out
    assert "equal to one device: True" in out


@pytest.mark.slow
def test_code_with_rules_is_proved_cut_and_equal_to_one_device() -> None:
    out = run("examples/own_rule.py")
    assert "autopar_user.grouped.default is what its rule says" in out
    assert re.search(r"without its own implementation:\n.* is not what its rule says\. result 0 has", out), out
    assert re.search(r"grouped +matmul +cut over \{'node': '\w+', 'gpu': 'e'\}", out), out
    assert "equal to one device: True" in out


@pytest.mark.slow
def test_plan_offline_saves_a_plan_within_its_budget(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    out = run("examples/plan_offline.py", "--memory", "4GiB", "--out", str(path))
    plan = autopar.Plan.load(path)
    assert plan.budget_bytes == 4 * 2**30
    assert plan.peak_bytes <= plan.budget_bytes
    assert f"{plan.step_time_s * 1e3:.1f} ms" in out


@pytest.mark.slow
def test_train_learns_on_two_processes() -> None:
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    out = run(*launch, "examples/train.py", "--mesh", "2", "--memory", "24MiB", "--steps", "4")
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", out)]
    assert len(losses) == 4
    assert losses[-1] < losses[0] - 0.2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["huggingface_trainer", "fabric"])
def test_other_loops_train_the_compiled_model_as_the_plain_one(name: str) -> None:
    """transformers' Trainer and Lightning's Fabric, unmodified: the same losses and gradient norms at every step."""
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    steps = [
        re.findall(r"^step (\d+)  loss ([\d.]+)  norm ([\d.]+)$", out, re.MULTILINE)
        for out in (run(*launch, f"examples/{name}.py"), run(f"examples/{name}.py", "--plain"))
    ]
    assert len(steps[0]) == len(steps[1]) == 5
    for ours, theirs in zip(*steps, strict=True):
        assert [float(x) for x in ours] == pytest.approx([float(x) for x in theirs], rel=1e-3)
    assert len({norm for _, _, norm in steps[1]}) == 5, "a comparison of five steps that differ"
