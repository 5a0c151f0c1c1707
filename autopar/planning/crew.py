"""Tasks handed out to processes that remember what they did: a process is given more of the same group while there is some.

Processes begin anew (nothing is forked), end with the one that started them however it ends, and leave interrupts to it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

PATIENCE_S = 5.0
"""For a process to end by itself."""


@dataclass(frozen=True, kw_only=True)
class Lost:
    """The process that had the task has ended, and why, as far as that can be seen. `killed`: from outside, as a system that
    is short of memory does."""

    reason: str
    killed: bool = False


@dataclass(kw_only=True)
class Worker(Generic[T]):
    """A process with the end of the pipe to it; `group`: of the last task."""

    process: BaseProcess
    connection: Connection
    group: Hashable = None
    task: T | None = None

    def give(self, task: T, group: Hashable) -> None:
        self.task, self.group = task, group
        try:
            self.connection.send(task)
        except OSError:
            return  # it has ended: what `answer` reads says so

    def answer(self) -> object:
        """What became of the task: waits for it."""
        self.task = None
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode or 0
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            return Lost(reason=f"the process that planned it {how}", killed=code == -signal.SIGKILL)

    def end(self) -> None:
        """It ends by itself where it waits for a task; its task is of no use any more."""
        self.connection.close()
        if self.task is None:
            self.process.join(PATIENCE_S)
        self.process.kill()
        self.process.join()


def hand_out(
    tasks: Sequence[T],
    make: Callable[[], Callable[[T], R]],
    *,
    jobs: int,
    group: Callable[[T], Hashable],
    began: Callable[[T], None] = lambda task: None,
) -> Iterator[tuple[T, R | Lost]]:
    """Each task with its result, as they are finished. `make` is called once per process, and what it makes with each task;
    both must be importable. Leaving the iteration ends all processes."""
    waiting, workers = list(tasks), list[Worker[T]]()
    try:
        while waiting or any(worker.task is not None for worker in workers):
            idle = [worker for worker in workers if worker.task is None]
            while waiting and (idle or len(workers) < jobs):
                worker = idle.pop() if idle else start(make)
                if worker not in workers:
                    workers.append(worker)
                task = next_for(worker, workers, waiting, group)
                waiting.remove(task)
                began(task)
                worker.give(task, group(task))
            for ready in wait([worker.connection for worker in workers if worker.task is not None]):
                worker = next(each for each in workers if each.connection is ready)
                done, result = worker.task, worker.answer()
                if isinstance(result, Lost):
                    workers.remove(worker)
                    worker.end()
                yield done, result  # type: ignore[misc]
    finally:
        for worker in workers:
            worker.end()


def next_for(worker: Worker[T], workers: Sequence[Worker[T]], waiting: Sequence[T], group: Callable[[T], Hashable]) -> T:
    """The next of its own group; else the first of a group that nobody has; else the last of the largest one."""
    groups = [group(task) for task in waiting]
    if worker.group in groups:
        return waiting[groups.index(worker.group)]
    taken = {each.group for each in workers}
    if free := [at for at, of in enumerate(groups) if of not in taken]:
        return waiting[free[0]]
    largest = Counter(groups).most_common(1)[0][0]
    return waiting[max(at for at, of in enumerate(groups) if of == largest)]


def start(make: Callable[[], Callable[[T], R]]) -> Worker[T]:
    context = multiprocessing.get_context("spawn")
    own, other = context.Pipe()
    process = context.Process(target=serve, args=(other, make), daemon=True)
    with uninterrupted():
        process.start()
    other.close()
    return Worker(process=process, connection=own)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits; processes that are started meanwhile never see it."""
    resource_tracker.ensure_running()  # which lets interrupts through again when it is started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve(connection: Connection, make: Callable[[], Callable[[T], R]]) -> None:
    """What a process does: one task after the other, until nobody hands out any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    multiprocessing.set_start_method(None, force=True)  # what a model's code does with processes, it does as anywhere else
    work = make()
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        connection.send(work(task))


def end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "only processes that were started here come here"
    wait([parent.sentinel])
    os._exit(1)
