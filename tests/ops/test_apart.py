"""Tasks in processes of their own: what they make comes back, and a crash stays there."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable

import pytest
import torch

from autopar.ops.apart import apart


def crash() -> None:
    ctypes.string_at(0)


def number(n: int) -> Callable[[], list[int]]:
    return lambda: [n, os.getpid()]


def test_what_tasks_make_comes_back_in_order() -> None:
    found = apart([number(n) for n in range(5)])
    assert found is not None
    assert [made[0] for made in found] == list(range(5))
    assert {made[1] for made in found}.isdisjoint({os.getpid()})
    assert len({made[1] for made in found}) == 1


def test_a_crash_leaves_this_process_alone() -> None:
    assert apart([number(0), crash, number(2)]) is None
    assert apart([number(0)]) is not None


def test_what_a_task_raises_is_raised() -> None:
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        apart([lambda: 1 // 0])


def test_much_may_come_back() -> None:
    assert apart([lambda: list(range(100_000))]) == [list(range(100_000))]


def test_ops_that_use_threads_do_not_hang() -> None:
    """A pool of threads is not there in a forked process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        x = torch.randn(512, 512)
        expected = float((x @ x).sum())
        assert apart([lambda: float((x @ x).sum())]) == pytest.approx([expected], rel=1e-3)
    finally:
        torch.set_num_threads(threads)


def test_without_fork_tasks_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert apart([number(3)]) == [[3, os.getpid()]]
