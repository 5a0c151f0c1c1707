"""One training step of emitted graphs on a clock: what computes when, what travels when, and who waits for whom.

Two kinds of resources: the device computes one kernel after the other, and each mesh axis carries one collective after the
other beside it; for those inside an op the device waits. Seconds are those that plans are made with: kernels by the roofline of
the hardware, collectives by its links, and the share of a collective's time that the device is kept from computing by its
`overlap`. What a collective brings arrives `skew_s` later than its link needs, since other devices are not there yet. The order
is that of the graphs, with reductions that outlive their graph (`codegen/flight.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch.fx import Graph, Node

from autopar.codegen.emit import Emitted, EmittedRegion
from autopar.codegen.flight import flights
from autopar.codegen.listing import about
from autopar.codegen.prefetch import Leg, legs
from autopar.codegen.schedule import WAIT, started
from autopar.codegen.split import results_of
from autopar.hardware import Hardware
from autopar.ir.timeline import COMPUTE, WAITS, Event, Timeline
from autopar.ops.flops import Collective, collective_of, collectives_inside
from autopar.ops.joint import owner
from autopar.profiler.unit_cost import node_figures, skipped


class Called(NamedTuple):
    """A call in one pass, by the name that it has in timelines."""

    region: EmittedRegion
    name: str


@dataclass
class Clock:
    """The state of a simulation: when each track is free again, and when what was started arrives."""

    emitted: Emitted
    hardware: Hardware
    free_s: dict[str, float] = field(default_factory=dict)
    waited_s: float = 0.0
    events: list[Event] = field(default_factory=list)
    known: dict[Node, Mapping[str, Any]] = field(default_factory=dict)
    started_s: list[float] = field(default_factory=list)
    """When that arrives which a graph has started for the next."""

    def __post_init__(self) -> None:
        mesh = self.emitted.plan.mesh
        self.links = dict(zip(mesh.names, self.hardware.axis_links(mesh), strict=True))
        self.sizes = dict(zip(mesh.names, mesh.sizes, strict=True))
        self.free_s = dict.fromkeys((COMPUTE, *mesh.names), 0.0)

    def leg(self, leg: Leg, call: Called, after: Called | None) -> dict[Node, float]:
        """What one call runs in one pass, before the next one; when what its collectives bring arrives."""
        if leg.lead is not None and not self.started_s:
            found = self.run(leg.lead.graph, call, None)
            self.started_s = [found[n] for n in results_of(leg.lead.graph)]
        arrives, results = self.run(leg.graph, call, after), results_of(leg.graph)
        ahead = 0 if leg.ahead is None else len(leg.ahead.starts)
        self.started_s = [arrives[n] for n in results[len(results) - ahead :]]
        return arrives

    def run(self, graph: Graph, call: Called, after: Called | None) -> dict[Node, float]:
        """One graph, which takes what has been started."""
        travelling = [n for n in graph.nodes if n.op == "placeholder" and started(n)]
        arrives = dict(zip(travelling, self.started_s, strict=True))
        for node in graph.nodes:
            if node.op != "call_function":
                continue
            region, name = after if after and "of_next" in node.meta else call
            if node.target is WAIT:
                result = owner(node)
                self.wait((started(result) or result).name, name, arrives.get(result, 0.0))
            elif (sent := collective_of(node)) is not None:
                seconds = self.travels_s(sent)
                start = max(self.free_s[COMPUTE], self.free_s[sent.axis])
                whose = node.meta.get("of_next", node.name)
                self.occupy(sent.axis, whose, name, start, seconds, self.about(node, region, sent))
                arrives |= dict.fromkeys((node, *node.users), start + seconds + self.hardware.skew_s)
                self.free_s[COMPUTE] += (1 - self.hardware.overlap) * seconds
            elif not skipped(node):
                flops, moved, dtype = node_figures(node)
                within_s = sum(self.travels_s(sent) + self.hardware.skew_s for sent in collectives_inside(node))
                seconds = self.hardware.time_s(flops, sum(moved), dtype) + within_s
                self.occupy(COMPUTE, node.name, name, self.free_s[COMPUTE], seconds, self.about(node, region))
        return arrives

    def travels_s(self, sent: Collective) -> float:
        return self.links[sent.axis].collective_s(sent.kind, sent.bytes, self.sizes[sent.axis])

    def about(self, node: Node, region: EmittedRegion, sent: Collective | None = None) -> Mapping[str, Any]:
        """Once per node: calls share their graphs."""
        if node not in self.known:
            self.known[node] = about(node, region, sent)
        return self.known[node]

    def occupy(self, track: str, name: str, call: str, start: float, seconds: float, about: Mapping[str, Any]) -> None:
        end = start + seconds
        self.events.append(Event(track=track, name=name, call=call, start_s=start, end_s=end, about=about))
        self.free_s[track] = end

    def wait(self, name: str, call: str, until: float) -> None:
        now = self.free_s[COMPUTE]
        if until > now:
            self.events.append(Event(track=WAITS, name=name, call=call, start_s=now, end_s=until))
            self.waited_s += until - now
            self.free_s[COMPUTE] = until

    def land(self, air: deque[tuple[float, int, str, str]]) -> None:
        arrival, _, name, call = air.popleft()
        self.wait(name, call, arrival)


def simulate(emitted: Emitted, hardware: Hardware) -> Timeline:
    """One forward and backward of the emitted graphs, without the optimizer's step, as one of the devices sees it."""
    clock, flown = Clock(emitted, hardware), flights(emitted)
    found, regions = legs(emitted, flown), [region for region, _ in emitted.halves()]
    names = [call.path or call.region for call in emitted.program.calls]
    calls = [Called(region, f"{name} forward") for region, name in zip(regions, names, strict=True)]
    for leg, call, after in zip(found.forward, calls, (*calls[1:], None), strict=True):
        clock.leg(leg, call, after)
    air: deque[tuple[float, int, str, str]] = deque()
    calls = [Called(region, f"{name} backward") for region, name in zip(regions, names, strict=True)]
    for leg, flight, call, after in reversed(list(zip(found.backward, flown, calls, (None, *calls[:-1]), strict=True))):
        while air and sum(size for _, size, _, _ in air) > flight.room_bytes - leg.extra_bytes:
            clock.land(air)
        arrives, results = clock.leg(leg, call, after), results_of(leg.graph)
        for k, size in flight.flying.bytes.items() if flight.flying else ():
            air.append((arrives[results[k]], size, (started(results[k]) or results[k]).name, call.name))
    while air:
        clock.land(air)
    return Timeline(
        tracks=(COMPUTE, WAITS, *emitted.plan.mesh.names),
        events=tuple(clock.events),
        step_s=clock.free_s[COMPUTE],
        waited_s=clock.waited_s,
    )


__all__ = ["COMPUTE", "WAITS", "Event", "Timeline", "simulate"]
