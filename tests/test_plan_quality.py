"""The quality benchmark on a tiny model: it measures, continues where it stopped, and notices what should not be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TINY = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_layer": 3,
    "n_embd": 64,
    "n_head": 4,
    "n_positions": 64,
    "vocab_size": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


@pytest.fixture(scope="module")
def quality() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import quality_rows

        return quality_rows
    finally:
        sys.path.remove(str(BENCHMARKS))


def run(tmp_path: Path, *options: str) -> list[dict[str, Any]]:
    config, output = tmp_path / "tiny.json", tmp_path / "quality.jsonl"
    config.write_text(json.dumps(TINY))
    command = [
        sys.executable,
        "-W",
        "ignore",
        BENCHMARKS / "plan_quality.py",
        "--models",
        config,
        "-o",
        output,
        "--time-limit",
        "10",
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=True)
    assert "measured in" in done.stderr
    assert "| tiny |" in done.stdout
    return [json.loads(line) for line in output.read_text().splitlines()]


@pytest.mark.slow
def test_rows_and_batches_of_a_tiny_model(tmp_path: Path) -> None:
    lines = run(tmp_path, "--meshes", "2", "--budgets", "loose,tight")
    assert [x["what"] for x in lines] == ["frame", "row", "row"]
    assert not any("failure" in x for x in lines)
    for row in lines[1:]:
        assert set(row["failed"]) <= {"gap not proven"}, "which is a matter of time"
        assert row["gain_baseline"] is None or row["gain_baseline"] >= 1 - 1e-9
        assert {b["name"] for b in row["baselines"]} >= {"ddp", "zero1", "zero2", "fsdp", "tp"}
    again = run(tmp_path, "--meshes", "2", "--budgets", "loose,tight")
    assert again == lines, "what is there is not measured again"
    more = run(tmp_path, "--meshes", "2", "--what", "batches", "--memory", "0.002")
    (batch,) = [x for x in more if x["what"] == "batch"]
    assert batch["largest"]["ours"] >= batch["largest"]["baseline"] > 0


@pytest.mark.parametrize("most", [0, 1, 3, 8, 16, 24, 63, 64, 100, 1000])
def test_largest_batch_is_found_within_an_eighth(quality: Any, most: int) -> None:
    found = quality.largest(lambda batch: batch <= most, 8)
    assert found <= most
    assert most - found <= max(8 if most >= 8 else 1, most // 8)


def found(ours_s: float | None, baseline_s: float, staged_s: float | None, bound_s: float = 0.0) -> dict[str, Any]:
    ours = {"cost_s": ours_s} if ours_s is None else {"cost_s": ours_s, "bound_s": bound_s, "status": "optimal"}
    baseline = {"name": "ddp", "checkpoint": "none", "cost_s": baseline_s, "fits": True}
    return {
        "ours": ours,
        "baselines": [baseline, baseline | {"name": "tp", "cost_s": 0.1, "fits": False}],
        "two_stage": {"cost_s": staged_s},
        "two_stage_best_share": {"cost_s": staged_s},
    }


def test_checks_can_fail(quality: Any) -> None:
    def failed(*arguments: Any) -> list[str]:
        return list(quality.judge(found(*arguments), 1e-3)["failed"])

    assert failed(1.0, 1.0, 1.2) == []
    assert failed(1.0, 0.99, None) == ["ours above ddp none"]
    assert "ours above two_stage" in failed(1.0, 1.0, 0.9)
    assert "ours above ddp none" in failed(None, 1.0, None)
    assert "ddp none below the bound of ours" in failed(1.0, 1.0, None, 1.1)
    assert quality.judge(found(1.0, 1.5, None), 1e-3)["gain_baseline"] == 1.5
