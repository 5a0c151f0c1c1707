"""What happens when on one device: what computes, what travels on each mesh axis, and what is waited for.

A timeline is predicted by a clock or measured by a profiler; both are written in Chrome's trace format, one process each, for
Perfetto (https://ui.perfetto.dev) or chrome://tracing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autopar.errors import InputError
from autopar.ir.document import write_atomically
from autopar.ir.plan import Plan

COMPUTE, WAITS = "compute", "waits"


@dataclass(frozen=True, kw_only=True)
class Event:
    """What keeps a track (COMPUTE, a mesh axis, or WAITS where the device idles) busy, in seconds since the timeline began.

    `name` is that of the node in the emitted graphs, `call` says in which call of the program; `about` has more, for people.
    """

    track: str
    name: str
    call: str
    start_s: float
    end_s: float
    about: Mapping[str, Any] = field(default_factory=dict)

    def later(self, seconds: float) -> Event:
        return replace(self, start_s=self.start_s + seconds, end_s=self.end_s + seconds)


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """`events` in the order in which they begin on their track; `waited_s`: how long the device waits for collectives."""

    tracks: tuple[str, ...]
    events: tuple[Event, ...]
    step_s: float
    waited_s: float

    def busy_s(self, track: str) -> float:
        return sum(e.end_s - e.start_s for e in self.events if e.track == track)

    def save(self, path: str | Path) -> None:
        """Write it as a Chrome trace; raises InputError if that cannot be."""
        save_trace(path, {"predicted": self})


def step_on_clock_s(plan: Plan, once_s: float) -> float:
    """Seconds of a whole step, where a forward and backward take `once_s` on the clock: all micro-batches, and the optimizer's
    step as the plan has it."""
    return plan.micro_batches * once_s + plan.figures.time_s.get("optimizer", 0.0)


def save_trace(path: str | Path, timelines: Mapping[str, Timeline], **about: object) -> None:
    """Timelines by the name of their process, in one file; raises InputError if it cannot be written."""
    try:
        write_atomically(Path(path), json.dumps(chrome_trace(timelines, **about)) + "\n")
    except OSError as error:
        raise InputError(f"cannot write the trace {path}: {error.strerror}: give another file") from error


def chrome_trace(timelines: Mapping[str, Timeline], **about: object) -> dict[str, Any]:
    """In the Trace Event Format: complete events with times in microseconds, one process per timeline, one thread per track."""
    events = [e for pid, (name, timeline) in enumerate(timelines.items(), 1) for e in process(pid, name, timeline)]
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {k: str(v) for k, v in about.items()}}


def process(pid: int, name: str, timeline: Timeline) -> Iterator[dict[str, Any]]:
    yield described("process", name, pid, 0)
    yield {"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": {"sort_index": pid}}
    for tid, track in enumerate(timeline.tracks):
        yield described("thread", track, pid, tid)
        yield {"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "args": {"sort_index": tid}}
    place = {track: tid for tid, track in enumerate(timeline.tracks)}
    for e in timeline.events:
        yield {
            "ph": "X",
            "name": e.name,
            "cat": e.track,
            "pid": pid,
            "tid": place[e.track],
            "ts": e.start_s * 1e6,
            "dur": (e.end_s - e.start_s) * 1e6,
            "args": {"call": e.call, **e.about},
        }


def described(what: str, name: str, pid: int, tid: int) -> dict[str, Any]:
    return {"ph": "M", "name": f"{what}_name", "pid": pid, "tid": tid, "args": {"name": name}}
