"""Work that may crash, in processes of its own: kernels need not check that their operands belong together.

A forked process knows all ops that this one has registered, wherever that was. It does forward work on the CPU only: autograd
and other devices do not survive a fork.
"""

from __future__ import annotations

import faulthandler
import json
import os
import select
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch

SILENCE_S = 300.0
"""A process of which nothing is heard for so long hangs (a lock that another thread held when it was forked)."""

Task = Callable[[], Any]
"""Makes something that JSON can say."""


def apart(tasks: Sequence[Task]) -> list[Any] | None:
    """What the tasks make, one after the other in a process of their own; None if one crashed: what it did to memory may show
    in a later one. Tasks raise nothing. In this process where a forked one cannot be relied on: macOS's own libraries do not
    work in one, Windows has none."""
    if sys.platform != "linux":
        return [task() for task in tasks]
    found = forked(tasks)
    return found if len(found) == len(tasks) else None


def forked(tasks: Sequence[Task]) -> list[Any]:
    """What the tasks make, in a child; of those before it died."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        work(tasks, reading, writing)
    os.close(writing)
    try:
        lines = lines_of(reading)
    finally:
        os.close(reading)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    made = [json.loads(line) for line in lines]
    if wrong := [m["raised"] for m in made if "raised" in m]:
        raise AssertionError(f"a task that was run apart raised {wrong[0]}")
    return [m["made"] for m in made]


def work(tasks: Sequence[Task], reading: int, writing: int) -> None:
    """The child: a line per task; it ends without cleaning up what is its parent's, and without a word on a crash."""
    try:
        os.close(reading)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        faulthandler.disable()
        torch.set_num_threads(1)
        with os.fdopen(writing, "w") as pipe, torch.no_grad():
            for task in tasks:
                try:
                    line = json.dumps({"made": task()})
                except Exception as error:
                    line = json.dumps({"raised": repr(error)})
                pipe.write(f"{line}\n")
                pipe.flush()
    finally:
        os._exit(0)


def lines_of(reading: int) -> list[str]:
    """Whole lines, until the other end is closed, or silent."""
    read = b""
    while select.select([reading], [], [], SILENCE_S)[0] and (more := os.read(reading, 2**16)):
        read += more
    return read.decode().split("\n")[:-1]
