"""One training step of emitted graphs on a clock: what computes when, what travels when, and who waits for whom.

Two kinds of resources: the device computes one kernel after the other, and each mesh axis carries one collective after the
other beside it. Seconds are those that plans are made with: kernels by the roofline of the hardware, collectives by its links,
and the share of a collective's time that the device is kept from computing by its `overlap`. The order is that of the graphs,
with reductions that outlive their graph (`codegen/flight.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch.fx import Graph, Node

from autopar.codegen.emit import Emitted
from autopar.codegen.flight import flights
from autopar.codegen.schedule import WAIT
from autopar.codegen.split import results_of
from autopar.hardware import Hardware
from autopar.ops.flops import collective_of
from autopar.ops.joint import owner
from autopar.profiler.unit_cost import node_figures, skipped

COMPUTE = "compute"


@dataclass(frozen=True, kw_only=True)
class Event:
    """What keeps a track (COMPUTE, or a mesh axis) busy, in seconds since the step began; `call` is where it belongs."""

    track: str
    name: str
    call: str
    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """`events` in the order in which they begin on their track; `waited_s`: how long the device waits for collectives."""

    events: tuple[Event, ...]
    step_s: float
    waited_s: float

    def busy_s(self, track: str) -> float:
        return sum(e.end_s - e.start_s for e in self.events if e.track == track)


@dataclass
class Clock:
    """The state of a simulation: when each track is free again, and when what was started arrives."""

    emitted: Emitted
    hardware: Hardware
    free_s: dict[str, float] = field(default_factory=dict)
    waited_s: float = 0.0
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        mesh = self.emitted.plan.mesh
        self.links = dict(zip(mesh.names, self.hardware.axis_links(mesh), strict=True))
        self.sizes = dict(zip(mesh.names, mesh.sizes, strict=True))
        self.free_s = dict.fromkeys((COMPUTE, *mesh.names), 0.0)

    def run(self, graph: Graph, call: str) -> dict[Node, float]:
        """One graph; when what its collectives bring arrives."""
        arrives: dict[Node, float] = {}
        for node in graph.nodes:
            if node.op != "call_function":
                continue
            if node.target is WAIT:
                self.wait(arrives.get(owner(node), 0.0))
            elif (sent := collective_of(node)) is not None:
                seconds = self.links[sent.axis].collective_s(sent.kind, sent.bytes, self.sizes[sent.axis])
                start = max(self.free_s[COMPUTE], self.free_s[sent.axis])
                self.occupy(sent.axis, node.name, call, start, seconds)
                arrives[node] = start + seconds
                self.free_s[COMPUTE] += (1 - self.hardware.overlap) * seconds
            elif not skipped(node):
                flops, moved, dtype = node_figures(node)
                self.occupy(COMPUTE, node.name, call, self.free_s[COMPUTE], self.hardware.time_s(flops, sum(moved), dtype))
        return arrives

    def occupy(self, track: str, name: str, call: str, start: float, seconds: float) -> None:
        self.events.append(Event(track=track, name=name, call=call, start_s=start, end_s=start + seconds))
        self.free_s[track] = start + seconds

    def wait(self, until: float) -> None:
        self.waited_s += max(0.0, until - self.free_s[COMPUTE])
        self.free_s[COMPUTE] = max(self.free_s[COMPUTE], until)


def simulate(emitted: Emitted, hardware: Hardware) -> Timeline:
    """One forward and backward of the emitted graphs, without the optimizer's step, as one of the devices sees it."""
    clock, steps = Clock(emitted, hardware), emitted.halves()
    names = [call.path or call.region for call in emitted.program.calls]
    for (_, halves), name in zip(steps, names, strict=True):
        clock.run(halves.forward, f"{name} forward")
    air: deque[tuple[float, int]] = deque()
    for (_, halves), flight, name in reversed(list(zip(steps, flights(emitted), names, strict=True))):
        while air and sum(size for _, size in air) > flight.room_bytes:
            clock.wait(air.popleft()[0])
        graph = halves.backward if flight.flying is None else flight.flying.graph
        arrives = clock.run(graph, f"{name} backward")
        if flight.flying is not None:
            results = results_of(graph)
            air += [(arrives[results[k]], size) for k, size in flight.flying.bytes.items()]
    for arrival, _ in air:
        clock.wait(arrival)
    return Timeline(events=tuple(clock.events), step_s=clock.free_s[COMPUTE], waited_s=clock.waited_s)


def chrome_trace(timeline: Timeline, tracks: Sequence[str], process: str = "predicted") -> list[dict[str, object]]:
    """Complete events of the Trace Event Format (chrome://tracing, Perfetto): times in microseconds, one thread per track."""
    named: Iterable[dict[str, object]] = (
        {"ph": "M", "name": "thread_name", "pid": process, "tid": i, "args": {"name": track}} for i, track in enumerate(tracks)
    )
    place = {track: i for i, track in enumerate(tracks)}
    return [
        *named,
        *(
            {
                "ph": "X",
                "name": e.name,
                "cat": e.track,
                "pid": process,
                "tid": place[e.track],
                "ts": e.start_s * 1e6,
                "dur": (e.end_s - e.start_s) * 1e6,
                "args": {"call": e.call},
            }
            for e in timeline.events
        ),
    ]


__all__ = ["COMPUTE", "Event", "Timeline", "chrome_trace", "simulate"]
