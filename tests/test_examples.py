"""The examples run, and do what their docstrings say."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from peft import set_peft_model_state_dict
from safetensors.torch import load_file

import autopar
from examples import finetune_lora

ROOT = Path(__file__).parents[1]
SECONDS = 300
LAUNCH = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def run(*arguments: str) -> str:
    """Output of a Python process in the root of the repository; fails with all that it said."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def losses(out: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"^step \d+  loss ([\d.]+)", out, re.MULTILINE)]


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
    out = run(*LAUNCH, "examples/train.py", "--mesh", "2", "--memory", "24MiB", "--steps", "4")
    assert len(losses(out)) == 4
    assert losses(out)[-1] < losses(out)[0] - 0.2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["huggingface_trainer", "fabric"])
def test_other_loops_train_the_compiled_model_as_the_plain_one(name: str) -> None:
    """transformers' Trainer and Lightning's Fabric, unmodified: the same losses and gradient norms at every step."""
    steps = [
        re.findall(r"^step (\d+)  loss ([\d.]+)  norm ([\d.]+)$", out, re.MULTILINE)
        for out in (run(*LAUNCH, f"examples/{name}.py"), run(f"examples/{name}.py", "--plain"))
    ]
    assert len(steps[0]) == len(steps[1]) == 5
    for ours, theirs in zip(*steps, strict=True):
        assert [float(x) for x in ours] == pytest.approx([float(x) for x in theirs], rel=1e-3)
    assert len({norm for _, _, norm in steps[1]}) == 5, "a comparison of five steps that differ"


@pytest.mark.slow
def test_gpt2_learns_text_and_is_scored_on_other_text() -> None:
    out = run(*LAUNCH, "examples/pretrain_gpt2.py", "--steps", "21", "--batch", "4")
    first, *_, last = losses(out)
    assert last < first - 1
    score = re.search(r"([\d.]+) bits per byte", out)
    assert score
    assert last / math.log(2) - 1 < float(score[1]) < first / math.log(2), "worse than what was trained on, better than nothing"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_adapters_learn_alone_and_are_what_peft_reads(tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.safetensors"
    out = run(*LAUNCH, "examples/finetune_lora.py", "--steps", "12", "--memory", "40MiB", "--out", str(path))
    assert "102,400 of 2,595,072 numbers are trained" in out
    first, *_, last = losses(out)
    assert last < first - 0.2
    plain, adapters = finetune_lora.build_model(), load_file(path)
    assert sum(value.numel() for value in adapters.values()) == 102_400
    assert not set_peft_model_state_dict(plain, adapters).unexpected_keys
    assert plain(**finetune_lora.batch_of(12)).loss < last


@pytest.mark.slow
def test_vision_transformer_tells_directions() -> None:
    out = run(*LAUNCH, "examples/vit.py", "--steps", "31")
    assert losses(out)[-1] < losses(out)[0] - 1
    assert int(re.findall(r"right (\d+)%", out)[-1]) > 60


@pytest.mark.slow
def test_recommender_learns_with_tables_that_are_cut() -> None:
    out = run(*LAUNCH, "examples/dlrm.py", "--steps", "31")
    assert re.search(r"tables\.0\.weight  \[60000, 32\]  S\([01]\)", out), out
    assert losses(out)[-1] < losses(out)[0] - 0.2


@pytest.mark.slow
def test_search_for_a_large_model_tries_meshes_and_saves_the_best(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    size = ("--devices", "8", "--layers", "2", "--batch", "8", "--seq", "2048")
    out = run("examples/search_70b.py", *size, "--memory", "40GiB", "--out", str(path))
    plan = autopar.Plan.load(path)
    assert plan.peak_bytes <= 40 * 2**30
    assert [line.split()[0] for line in out.splitlines() if line.endswith("chosen")] == [str(plan.mesh)]
    assert {str(tried.mesh) for tried in plan.tried} == {"8", "2x4", "4x2", "2x2x2"}
