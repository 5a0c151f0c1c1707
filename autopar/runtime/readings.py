"""From what torch's profiler wrote to a timeline: marks become events, collectives get the times at which they really ran."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from autopar.ir.timeline import COMPUTE, WAITS, Event, Timeline
from autopar.runtime.recording import KNOWN, MARK, Mark, Recorder

SENDING = re.compile(r"(?:gloo|nccl):.*?(all_?reduce|all_?gather|reduce_?scatter|all_?to_?all)")
"""What process groups report of themselves."""
WAITING = "_c10d_functional::wait_tensor"
HOST, DEVICE = "user_annotation", "gpu_user_annotation"
"""Where the profiler has marks: when the host was there, and when the kernels ran that it launched there."""

Span = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """`begins_s`: when each of the recorder's steps began."""

    timeline: Timeline
    begins_s: tuple[float, ...]


@dataclass(frozen=True)
class Readings:
    """`profiled`: the events of the profiler's Chrome trace, times in microseconds."""

    recorder: Recorder
    profiled: Sequence[Mapping[str, Any]]

    def measured(self, tracks: Sequence[str]) -> Measured:
        """Seconds since the first mark. On a GPU there are no waits: they are the gaps between kernels."""
        marks = self.recorder.marks
        waits = [] if self.on_device else [*self.waits_in_graphs(), *self.landings()]
        events = [*self.computing(), *self.sending(waits), *waits]
        zero = self.host[0][0] if marks else 0.0
        events = sorted((e.later(-zero) for e in events), key=lambda e: e.start_s)
        timeline = Timeline(
            tracks=tuple(tracks),
            events=tuple(events),
            step_s=max((e.end_s for e in events), default=0.0),
            waited_s=sum(e.end_s - e.start_s for e in events if e.track == WAITS),
        )
        return Measured(timeline=timeline, begins_s=tuple(self.host[s.forward][0] - zero for s in self.recorder.steps))

    @cached_property
    def host(self) -> dict[int, Span]:
        return self.marked(HOST)

    @cached_property
    def device(self) -> dict[int, Span]:
        return self.marked(DEVICE)

    @property
    def on_device(self) -> bool:
        return bool(self.device)

    def marked(self, category: str) -> dict[int, Span]:
        """The time of each mark; of several kernels from the first to the last."""
        found: dict[int, Span] = {}
        for e in self.of(category):
            if e["name"].startswith(MARK):
                k, (start, end) = int(e["name"].removeprefix(MARK)), span(e)
                before = found.get(k, (start, end))
                found[k] = min(start, before[0]), max(end, before[1])
        return found

    def of(self, category: str) -> Iterable[Mapping[str, Any]]:
        return (e for e in self.profiled if e.get("ph") == "X" and e.get("cat") == category)

    def computing(self) -> list[Event]:
        spans = self.device if self.on_device else self.host
        return [event(m, spans[k]) for k, m in enumerate(self.recorder.marks) if m.track == COMPUTE and k in spans]

    def waits_in_graphs(self) -> list[Event]:
        return [event(m, self.host[k]) for k, m in enumerate(self.recorder.marks) if m.track == WAITS]

    def landings(self) -> list[Event]:
        """The executor waits outside of graphs, in the order in which it left collectives flying; others wait after it."""
        inside = sorted(self.host.values())
        waits = sorted(span(e) for e in self.of("cpu_op") if e["name"] == WAITING)
        free, found = outside(waits, inside), []
        for step in self.recorder.steps:
            if step.landing and step.backward is not None:
                began = self.host[step.backward][0]
                own = [s for s in free if s[0] >= began][: len(step.landing)]
                found += [event(m, s) for m, s in zip(step.landing, own, strict=False) if m.track == WAITS]
        return found

    def sending(self, waits: Sequence[Event]) -> list[Event]:
        """When collectives travelled: each is the first of its kind that ran after it was started. One that no process group
        reported lasts until it was waited for. A track carries one after the other: of two that ran side by side, the one that
        ended later begins where the other one ended."""
        category = DEVICE if self.on_device else HOST
        reported = [(span(e), said[1]) for e in self.of(category) if (said := SENDING.match(e["name"]))]
        reported.sort()
        until = {(e.call, e.name, e.start_s): e.end_s for e in waits}
        found, free = list[tuple[float, float, float, Mark]](), dict[str, float]()
        for k, mark in enumerate(self.recorder.marks):
            if mark.track in (COMPUTE, WAITS, KNOWN) or k not in self.host:
                continue
            began = self.host[k][0]
            one = next((r for r in reported if r[0][0] >= began and is_kind(mark.about["collective"], r[1])), None)
            if one is not None:
                reported.remove(one)
                start, end = one[0]
            else:
                start = began
                end = min(
                    (t for (c, n, s), t in until.items() if (c, n) == (mark.call, mark.name) and s >= began), default=began
                )
            found.append((max(start, end), start, began, mark))
        events = []
        for end, start, began, mark in sorted(found, key=lambda one: one[0]):
            start = max(start, free.get(mark.track, start))
            free[mark.track] = end
            events.append(event(mark, (start, end), queued_s=start - began))
        return events


def span(event: Mapping[str, Any]) -> Span:
    """In seconds."""
    start = float(event["ts"])
    return start * 1e-6, (start + float(event["dur"])) * 1e-6


def event(mark: Mark, when: Span, **more: Any) -> Event:
    return Event(track=mark.track, name=mark.name, call=mark.call, start_s=when[0], end_s=when[1], about={**mark.about, **more})


def outside(spans: Sequence[Span], inside: Sequence[Span]) -> list[Span]:
    """Of sorted spans those that begin in none of the others, which are sorted and disjoint."""
    found, k = [], 0
    for s in spans:
        while k < len(inside) and inside[k][1] < s[0]:
            k += 1
        if k == len(inside) or s[0] < inside[k][0]:
            found.append(s)
    return found


def is_kind(planned: str, reported: str) -> bool:
    """Some process groups make reduce-scatters of all-reduces."""
    kinds = (planned.replace("_", ""), reported.replace("_", ""))
    return kinds[0] == kinds[1] or kinds == ("reducescatter", "allreduce")
