"""What the device waits for on the clock of a plan's graphs, which the plan's own step time may count as hidden."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from autopar.codegen.emit import Emitted
from autopar.ir.timeline import COMPUTE, WAITS, Event, Timeline
from autopar.planning.question import Question

Carries = Literal["parameters", "gradients", "activations"]
"""What a collective carries: of a parameter in forward, its gradient, or anything else."""


@dataclass(frozen=True, kw_only=True)
class Wait:
    """For how long a step waits for one kind of collective on one mesh axis. `queued_s` of it passes before the collective can
    begin, since its link carries something else."""

    axis: str
    kind: str
    carries: Carries
    seconds: float
    queued_s: float


def waits(question: Question) -> list[Wait]:
    """All micro-batches together, the longest first; their sum is what the clock's step waits for."""
    return of_timeline(question.timeline, state_of(question.emitted), question.plan.micro_batches)


def of_timeline(timeline: Timeline, state: Mapping[str, frozenset[str]], times: int) -> list[Wait]:
    """`state`: by call, which tensors are parameters. A step has `times` such timelines."""
    found: defaultdict[tuple[str, str, Carries], list[tuple[float, float]]] = defaultdict(list)
    for wait, sent in waited_for(timeline):
        key = (sent.track, str(sent.about["collective"]), carries(sent.about, state[sent.call]))
        queued_s = max(0.0, min(sent.start_s, wait.end_s) - wait.start_s)
        found[key].append((wait.end_s - wait.start_s, queued_s))
    rows = (
        Wait(
            axis=axis,
            kind=kind,
            carries=what,
            seconds=times * sum(s for s, _ in both),
            queued_s=times * sum(q for _, q in both),
        )
        for (axis, kind, what), both in found.items()
    )
    return sorted(rows, key=lambda row: -row.seconds)


def waited_for(timeline: Timeline) -> Iterator[tuple[Event, Event]]:
    """Each wait with the collective that ends it, which has its name."""
    sent = {(e.call, e.name): e for e in timeline.events if e.track not in (COMPUTE, WAITS)}
    return ((wait, sent[wait.call, wait.name]) for wait in timeline.events if wait.track == WAITS)


def state_of(emitted: Emitted) -> dict[str, frozenset[str]]:
    """By the names of calls in timelines, those of the parameters and buffers that they take."""
    found: dict[str, frozenset[str]] = {}
    for call in emitted.program.calls:
        own = frozenset(emitted.program.regions[call.region].state)
        found |= dict.fromkeys((f"{call.path or call.region} {phase}" for phase in ("forward", "backward")), own)
    return found


def carries(about: Mapping[str, Any], state: frozenset[str]) -> Carries:
    if about.get("tensor") not in state:
        return "activations"
    return "gradients" if about["backward"] else "parameters"
