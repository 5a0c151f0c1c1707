"""The benchmark of planning time on a tiny model: it runs, and its lines add up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "plan_time.py"
STAGES = {"building", "tracing", "profiling", "pricing", "solving", "emitting"}


@pytest.mark.slow
def test_smoke() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--smoke"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [(line["layers"], line["mesh"]) for line in lines] == [(2, "2"), (2, "2x2")]
    for line in lines:
        assert set(line["seconds"]) == STAGES
        assert line["total_s"] == pytest.approx(sum(line["seconds"].values()))
        assert line["nodes"] > line["units"] > 10
        assert line["ilp"]["variables"] > line["ilp"]["integer"] > 0
        assert 0 < line["counted_peak_bytes"] < 2**30
        assert 0 <= line["gap"] < 1
    assert lines[1]["strategies"] > 2 * lines[0]["strategies"]
    assert lines[1]["imports_s"] < 0.1 * lines[0]["imports_s"], "the first line bears the imports"


def test_a_depth_is_written_into_the_config() -> None:
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        from plan_time import Stopwatch, with_layers
    finally:
        sys.path.remove(str(SCRIPT.parent))
    assert with_layers({"num_hidden_layers": 2, "hidden_size": 8}, 7) == {"num_hidden_layers": 7, "hidden_size": 8}
    assert with_layers({"n_layer": 2}, 7) == {"n_layer": 7}
    watch = Stopwatch()
    for said in ("tracing", "tracing model.layers.0", "solving", ""):
        watch(said)
    assert set(watch.seconds) == {"tracing", "solving"}
