"""The same input gives the same bytes of plan: whatever the order of sets, and with any number of solver threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLAN = """
import sys
from autopar.solver import adapter
adapter.THREADS = int(sys.argv[1])
import autopar
from tests.hardware_toy import toy_hardware
from tests.models import MODELS
model, kwargs = MODELS["llama"]()
loose = autopar.plan(model, "2x2", kwargs=kwargs, hardware=toy_hardware())
tight = autopar.plan(model, "2x2", kwargs=kwargs, hardware=toy_hardware(), memory=int(0.8 * loose.peak_bytes), gap=0.01)
sys.stdout.write(loose.to_json() + tight.to_json())
"""


def start(seed: str, threads: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", PLAN, threads]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_plans_are_equal_byte_by_byte() -> None:
    running = [start("1", "1"), start("2", "2")]
    (one, errors), (other, _) = (process.communicate() for process in running)
    assert [process.returncode for process in running] == [0, 0], errors
    assert len(one) > 1000
    assert one == other
