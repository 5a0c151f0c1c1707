"""What the emitted graphs of a plan and their clock say of its units and conversions, beyond what the plan says.

Everything here is plain values: a page is made of them after the graphs are gone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from autopar.codegen.emit import Emitted, EmittedRegion
from autopar.ir.placement import Placement
from autopar.ir.timeline import COMPUTE, Event, Timeline
from autopar.report.told import Told


@dataclass(frozen=True, kw_only=True)
class UnitFacts:
    """`path`: of its module, within the region; `source`: its line in the model's code. `seconds` of computation in a step,
    `again_s` of them for what backward makes again; all calls together."""

    path: str
    source: str
    op: str
    seconds: float = 0.0
    again_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class EdgeFacts:
    """A conversion: the units that read what it makes, the bytes that its collectives carry and their seconds, in a step."""

    readers: tuple[str, ...] = ()
    bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RegionFacts:
    """`results`: the placement in which a unit makes a tensor. `edges` by tensor and the placement that they lead to. `owners`:
    the unit that reads a parameter or buffer first."""

    path: str
    units: Mapping[str, UnitFacts] = field(default_factory=dict)
    results: Mapping[str, Placement] = field(default_factory=dict)
    edges: Mapping[tuple[str, Placement], EdgeFacts] = field(default_factory=dict)
    owners: Mapping[str, str] = field(default_factory=dict)


def anatomy(emitted: Emitted, timeline: Timeline) -> dict[str, RegionFacts]:
    """By region type. The timeline is one of the plan's micro-batches, and a step is so many times that."""
    told = {name: Told(region) for name, region in emitted.regions.items()}
    calls = {f"{c.path or c.region} {phase}": c.region for c in emitted.program.calls for phase in ("forward", "backward")}
    events: defaultdict[str, list[Event]] = defaultdict(list)
    for event in timeline.events:
        if event.call in calls:
            events[calls[event.call]].append(event)
    paths = {call.region: call.path for call in emitted.program.calls}
    return {
        name: region_facts(region, told[name], events[name], paths.get(name, ""), emitted.plan.micro_batches)
        for name, region in emitted.regions.items()
    }


def region_facts(region: EmittedRegion, told: Told, events: list[Event], path: str, times: int) -> RegionFacts:
    """Of a step, in which the events happen `times` times."""
    seconds, again = unit_seconds(told, events)
    results: dict[str, Placement] = {}
    for tensor, placement in region.local.values:
        if tensor not in region.local.region.inputs and tensor not in region.local.region.state:
            results.setdefault(tensor, placement)
    return RegionFacts(
        path=path,
        units={u.name: unit_facts(region, u.name, times * seconds[u.name], times * again[u.name]) for u in region.local.units},
        results=results,
        edges=edges(region, events, times),
        owners=owners(region),
    )


def unit_facts(region: EmittedRegion, unit: str, seconds: float, again_s: float) -> UnitFacts:
    node = region.local.region.nodes[unit]
    packet = getattr(node.target, "overloadpacket", node.target)
    return UnitFacts(
        path=str(node.meta.get("path") or ""),
        source=str(node.meta.get("source") or ""),
        op=str(getattr(packet, "__name__", packet)),
        seconds=seconds,
        again_s=again_s,
    )


def unit_seconds(told: Told, events: list[Event]) -> tuple[dict[str, float], dict[str, float]]:
    """Of computation, by unit: all, and what runs again."""
    seconds: defaultdict[str, float] = defaultdict(float)
    again: defaultdict[str, float] = defaultdict(float)
    for event in events:
        node = told.joint.get(event.name) if event.track == COMPUTE else None
        step = None if node is None else told.step(node)
        if step is not None and (unit := step.meta.get("unit")) is not None:
            took_s = event.end_s - event.start_s
            seconds[unit] += took_s
            again[unit] += took_s if event.about.get("again") else 0.0
    return seconds, again


def edges(region: EmittedRegion, events: list[Event], times: int) -> dict[tuple[str, Placement], EdgeFacts]:
    sent: Counter[tuple[str, str]] = Counter()
    took: defaultdict[tuple[str, str], float] = defaultdict(float)
    for event in events:
        if event.track != COMPUTE and "tensor" in event.about:
            key = (event.about["tensor"], event.about["placements"])
            sent[key] += event.about.get("bytes", 0)
            took[key] += event.end_s - event.start_s
    found = {}
    for node in region.local.graph.nodes:
        if "conversion" in node.meta:
            tensor, before, after = node.meta["conversion"]
            readers = (user.meta.get("unit") for user in node.users)
            key = (tensor, f"[{before}] -> [{after}]")
            found[tensor, after] = EdgeFacts(
                readers=tuple(dict.fromkeys(unit for unit in readers if unit)),
                bytes=times * sent[key],
                seconds=times * took[key],
            )
    return found


def owners(region: EmittedRegion) -> dict[str, str]:
    """By state of the region, the first unit that reads it, at whatever placement."""
    made_of = {node: node.name for node in region.local.graph.nodes if node.name in region.local.region.state}
    found: dict[str, str] = {}
    for node in region.local.graph.nodes:
        sources = [made_of[source] for source in node.all_input_nodes if source in made_of]
        if sources and ("conversion" in node.meta or "cast" in node.meta):
            made_of[node] = sources[0]
        elif "unit" in node.meta:
            for slot in sources:
                found.setdefault(slot, node.meta["unit"])
    return found
