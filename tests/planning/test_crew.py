"""Tasks in processes: each is done once, a group stays where it is, and a process that dies loses its own task only."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field

from autopar.planning.crew import Lost, Worker, hand_out, next_for

Task = tuple[str, int]


@dataclass
class Remembers:
    """What a process did so far."""

    done: list[Task] = field(default_factory=list)

    def __call__(self, task: Task) -> tuple[int, list[Task]]:
        if task[1] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.done.append(task)
        return os.getpid(), list(self.done)


def group_of(task: Task) -> str:
    return task[0]


def handed(tasks: list[Task], jobs: int) -> dict[Task, tuple[int, list[Task]] | Lost]:
    found = {}
    make: Callable[[], Callable[[Task], tuple[int, list[Task]]]] = Remembers
    for task, result in hand_out(tasks, make, jobs=jobs, group=group_of):
        assert task not in found
        found[task] = result
    return found


def test_each_task_once_and_groups_stay_together() -> None:
    tasks = [(name, number) for name in "ab" for number in range(3)]
    found = handed(tasks, jobs=2)
    assert set(found) == set(tasks)
    pids = {task: result[0] for task, result in found.items() if not isinstance(result, Lost)}
    assert len(set(pids.values())) == 2
    assert os.getpid() not in pids.values()
    (first, last) = (found["a", 0], found["a", 2])
    assert not isinstance(first, Lost)
    assert not isinstance(last, Lost)
    assert (first[0], first[1]) == (pids["a", 0], [("a", 0)])
    gone = [pid for pid in set(pids.values()) if not os.path.exists(f"/proc/{pid}")]
    assert len(gone) == 2, "all have ended with the iteration"


def test_a_process_that_is_killed_loses_its_task_only() -> None:
    found = handed([("a", 0), ("a", -1), ("a", 2)], jobs=1)
    assert found["a", -1] == Lost(reason="the process that planned it was killed by SIGKILL", killed=True)
    before, after = found["a", 0], found["a", 2]
    assert not isinstance(before, Lost)
    assert not isinstance(after, Lost)
    assert (before[1], after[1]) == ([("a", 0)], [("a", 2)])


def test_more_processes_than_groups_share_the_largest() -> None:
    waiting = [("a", 1), ("b", 1), ("b", 2), ("c", 1)]

    def next_of(group: str | None, *others: str) -> Task:
        worker, *more = [Worker[Task](process=None, connection=None, group=g) for g in (group, *others)]  # type: ignore[arg-type]
        return next_for(worker, [worker, *more], waiting, group_of)

    assert next_of("b", "a") == ("b", 1), "its own first"
    assert next_of(None, "a") == ("b", 1), "one that nobody has"
    assert next_of("x", "a", "b") == ("c", 1)
    assert next_of(None, "a", "b", "c") == ("b", 2), "the end of the largest"
