"""Processes end when gloo's threads have let go of tensors, which takes the interpreter's lock."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autopar.runtime import ending

SCRIPT = """
import sys, torch, torch.distributed as dist
import autopar
from autopar.runtime import ending
from torch.distributed.device_mesh import init_device_mesh

dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,), mesh_dim_names=("gpu",))
settle = ending.settle
ending.settle = lambda: print("settled", settle())
for _ in range(2):
    parallel = autopar.compile(torch.nn.Linear(4, 4), mesh, (torch.ones(2, 4),))
parallel(torch.ones(2, 4)).sum().backward()
dist.barrier()
print("threads", len(list(ending.gloo_states())))
"""


def rounds(*states: str) -> tuple[list[str], Callable[[], Iterator[str]]]:
    """States of threads, a letter for each, by the time at which they are asked for; the last ones stay. And what was asked."""
    asked: list[str] = []

    def next_states() -> Iterator[str]:
        asked.append(states[min(len(asked), len(states) - 1)])
        return iter(asked[-1])

    return asked, next_states


def test_threads_must_be_asleep_several_times_in_a_row() -> None:
    """A thread that waits for the interpreter's lock is asleep as well, until the next pause."""
    asked, states = rounds("RS", "SS", "SR", "SS", "DI", "SS", "SI", "SS")
    assert ending.settle(states)
    assert asked == ["RS", "SS", "SR", "SS", "DI", "SS", "SI", "SS"]


def test_a_thread_that_never_rests_is_left_alone(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(ending, "PATIENCE_S", 0.05)
    with caplog.at_level(logging.WARNING, "autopar"):
        assert not ending.settle(rounds("R")[1])
    assert "still under way" in caplog.text


def test_a_process_that_compiled_settles_once_at_its_end(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "store")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["threads 2", "settled True"]
