"""What is in memory over one step, by what it is for, and what the peak is made of.

The same walk over the emitted graphs as that of `codegen.measure.levels`: the highest sample is the plan's peak. Where samples
stand in time says the clock (`planning.simulate`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch.fx import Graph, Node

from autopar.codegen.emit import Emitted
from autopar.codegen.liveness import changes
from autopar.codegen.measure import Held, dying_inputs, input_bytes, is_trained, state_part_bytes
from autopar.codegen.split import Halves, results_of
from autopar.ir.optimizer import STATE_COPIES
from autopar.ir.region_view import pattern
from autopar.ir.timeline import COMPUTE, Timeline
from autopar.ops.joint import owner
from autopar.report.told import Told

PURPOSES: Mapping[str, str] = {
    "parameters": "parameters and buffers, as they rest",
    "optimizer": "optimizer state",
    "gradients": "gradients of parameters",
    "inputs": "the batch",
    "gathered": "parameters gathered or cast",
    "kept": "activations kept for backward",
    "working": "working values",
}
"""In the order in which they are stacked, and as people read them."""

PLACE = {purpose: i for i, purpose in enumerate(PURPOSES)}
Split = Counter[str]
Key = tuple[object, ...]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The bytes alive from `at_s` on, per purpose in the order of PURPOSES, while `what` runs in `where`."""

    at_s: float
    where: str
    what: str
    bytes: tuple[int, ...]

    @property
    def total(self) -> int:
        return sum(self.bytes)


@dataclass(frozen=True, kw_only=True)
class Living:
    """Something that is there at the peak; `count` equal ones of repeated layers together."""

    what: str
    purpose: str
    count: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """`samples` in order of time, one per op; `living` at the highest of them, the largest first. Up to `step_s`."""

    samples: tuple[Sample, ...]
    living: tuple[Living, ...]
    step_s: float

    @property
    def peak(self) -> Sample:
        """The first of the highest."""
        return max(self.samples, key=lambda sample: sample.total)

    def thinned(self, points: int) -> tuple[Sample, ...]:
        """About so many samples, in equal slices of time the highest of each: what is left out is lower."""
        highest: dict[int, Sample] = {}
        for sample in self.samples:
            slot = int(points * sample.at_s / self.step_s) if self.step_s else 0
            if slot not in highest or sample.total > highest[slot].total:
                highest[slot] = sample
        return tuple(highest.values())


@dataclass(frozen=True, kw_only=True)
class Level:
    """What one graph holds while a node runs, beyond its inputs, by purpose."""

    node: Node
    split: Split


def memory_of_step(emitted: Emitted, timeline: Timeline) -> StepMemory:
    """All forwards, all backwards, and the optimizer's step, of one micro-batch."""
    walk = _Walk(emitted, timeline)
    samples = tuple(walk.samples())
    return StepMemory(samples=samples, living=tuple(grouped(walk.living())), step_s=samples[-1].at_s + walk.optimizer_s)


@dataclass(frozen=True, kw_only=True)
class Moment:
    """While a node of a call's graph runs: which, and what is held between graphs then."""

    call: int
    phase: str
    lasting: frozenset[str]
    node: Node
    held: list[tuple[Key, int]]


class _Walk:
    def __init__(self, emitted: Emitted, timeline: Timeline) -> None:
        self.emitted, self.held = emitted, Held(emitted)
        known = {id(region): Told(region) for region in emitted.regions.values()}
        self.steps = [(known[id(region)], halves) for region, halves in emitted.halves()]
        self.names = [call.path or call.region for call in emitted.program.calls]
        self.starts = {(e.call, e.name): e.start_s for e in timeline.events if e.track == COMPUTE}
        self.end_s = timeline.step_s
        self.optimizer_s = emitted.plan.figures.time_s.get("optimizer", 0.0)
        self.kept: dict[Key, str] = {}
        self.known: dict[tuple[int, str, frozenset[str]], list[Level]] = {}
        self.highest = -1
        self.moment: Moment | None = None

    def samples(self) -> Iterator[Sample]:
        now_s = 0.0
        always = resting(self.emitted)
        for phase, order in (("forward", range(len(self.steps))), ("backward", reversed(range(len(self.steps))))):
            for i in order:
                where = f"{self.names[i]} {phase}"
                there = list(self.there())
                held = always + self.between(there)
                lasting = self.held.lasting(i) if phase == "backward" else frozenset()
                for level in self.levels(i, phase, lasting):
                    now_s = max(now_s, self.starts.get((where, level.node.name), now_s))
                    found = sample(now_s, where, level.node.name, held, level.split)
                    if found.total > self.highest:
                        self.highest = found.total
                        self.moment = Moment(call=i, phase=phase, lasting=lasting, node=level.node, held=there)
                    yield found
                self.after(i, phase)
        found = sample(max(now_s, self.end_s), "optimizer step", "", always, optimizer_step(self.emitted))
        if found.total > self.highest:
            self.moment = None
        yield found

    def after(self, i: int, phase: str) -> None:
        if phase == "backward":
            self.held.after_backward(i)
            return
        self.held.after_forward(i)
        told, halves = self.steps[i]
        for name, key in zip(halves.saved, self.held.by_call[i], strict=True):
            self.kept.setdefault(key, told.saved_purpose(name))

    def between(self, there: Iterable[tuple[Key, int]]) -> Split:
        """What is held between graphs."""
        found: Split = Counter()
        for key, size in there:
            found[self.purpose(key)] += size
        return found

    def there(self) -> Iterable[tuple[Key, int]]:
        return ((key, size) for key, size in self.held.owners.items() if self.held.reference[key] > 0)

    def purpose(self, key: Key) -> str:
        return "gradients" if key[0] == "gradient of" else self.kept.get(key, "working")

    def levels(self, i: int, phase: str, lasting: frozenset[str]) -> list[Level]:
        """Calls share their graphs, and graphs their levels."""
        told, halves = self.steps[i]
        key = (id(halves), phase, lasting)
        if key not in self.known:
            self.known[key] = list(levels(told, halves, phase, lasting))
        return self.known[key]

    def living(self) -> list[Living]:
        """Everything that is there at the highest sample so far."""
        always = [one(PURPOSES[purpose], purpose, size) for purpose, size in resting(self.emitted).items()]
        if self.moment is None:
            return [*always, *(one(PURPOSES[p], p, size) for p, size in optimizer_step(self.emitted).items())]
        return [*always, *map(self.held_thing, self.moment.held), *self.inside(self.moment)]

    def held_thing(self, entry: tuple[Key, int]) -> Living:
        key, size = entry
        source, name = key
        if isinstance(source, int):
            return one(f"{pattern(self.names[source])}: {self.steps[source][0].said(str(name))}", self.purpose(key), size)
        return one(f"{source} {pattern(str(name))}", self.purpose(key), size)

    def inside(self, moment: Moment) -> Iterator[Living]:
        """What the graph that runs has made; less than nothing is what it has freed of what was held."""
        told, halves = self.steps[moment.call]
        purposes, call = Purposes(told, halves, moment.phase), pattern(self.names[moment.call])
        owners: Counter[Node] = Counter()
        for change in changes(*graph_of(halves, moment.phase, moment.lasting)):
            if change.node is moment.node:
                owners.update({} if change.in_place else change.made)
                if change.scratch:
                    yield one(f"{call}: while {told.said(change.node.name)} runs", "working", change.scratch)
                break
            owners.update(change.made)
            owners.subtract(change.freed)
        for node, size in owners.items():
            yield one(f"{call}: {told.said(node.name)}", purposes.of(node), size)


class Purposes:
    """What the nodes of one graph are for."""

    def __init__(self, told: Told, halves: Halves, phase: str) -> None:
        self.told = told
        results = results_of(halves.forward if phase == "forward" else halves.backward)
        if phase == "forward":
            saved = results[len(results) - len(halves.saved) :] if halves.saved else ()
            self.known = {owner(node): "kept" for node in saved}
            return
        given = len(told.region.local.region.inputs)
        trained = [node for k, node in zip(halves.gradients, results, strict=False) if k >= given]
        self.known = {owner(node): "gradients" for node in trained}
        self.known |= {node: told.saved_purpose(node.name) for node in dying_inputs(halves)[: len(halves.saved)]}

    def of(self, node: Node) -> str:
        if node.op == "call_function" and self.told.is_gathered(node):
            return "gathered"
        return self.known.get(node, "working")


def levels(told: Told, halves: Halves, phase: str, lasting: frozenset[str]) -> Iterator[Level]:
    """What a graph holds at each of its nodes."""
    purposes, alive = Purposes(told, halves, phase), Counter[str]()
    for change in changes(*graph_of(halves, phase, lasting)):
        made = by_purpose(purposes, change.made)
        level = Counter(alive)
        level["working"] += change.scratch
        if not change.in_place:
            level.update(made)
        yield Level(node=change.node, split=level)
        alive.update(made)
        alive.subtract(by_purpose(purposes, change.freed))


def graph_of(halves: Halves, phase: str, lasting: frozenset[str]) -> tuple[Graph, set[Node]]:
    if phase == "forward":
        return halves.forward, set()
    return halves.backward, {node for node in dying_inputs(halves) if node.name not in lasting}


def by_purpose(purposes: Purposes, owners: Mapping[Node, int]) -> Split:
    found: Split = Counter()
    for node, size in owners.items():
        found[purposes.of(node)] += size
    return found


def resting(emitted: Emitted) -> Split:
    """What is there all the time, by purpose; its sum is that of `state_bytes` and `input_bytes`."""
    found: Split = Counter(inputs=input_bytes(emitted))
    for name in emitted.program.state:
        size = state_part_bytes(emitted, name)
        found["parameters"] += size
        if is_trained(emitted, name):
            found["optimizer"] += size * STATE_COPIES[emitted.plan.optimizer]
            found["gradients"] += size * (emitted.plan.micro_batches > 1)
    return found


def optimizer_step(emitted: Emitted) -> Split:
    """What the optimizer's step has beside that: gradients, and a copy of the parameters."""
    trained = sum(state_part_bytes(emitted, name) for name in emitted.program.state if is_trained(emitted, name))
    return Counter(gradients=trained * (emitted.plan.micro_batches == 1), working=trained)


def sample(at_s: float, where: str, what: str, *splits: Split) -> Sample:
    return Sample(at_s=at_s, where=where, what=what, bytes=tuple(sum(s[purpose] for s in splits) for purpose in PURPOSES))


def one(what: str, purpose: str, size: int) -> Living:
    return Living(what=what, purpose=purpose, count=1, bytes=size)


def grouped(things: Iterable[Living]) -> list[Living]:
    """Equal ones together, the largest first; a value that dies in a graph is taken off where it is held."""
    found: dict[tuple[str, str], list[Living]] = {}
    for thing in (thing for thing in things if thing.bytes):
        found.setdefault((thing.what, thing.purpose), []).append(thing)
    whole = [
        Living(
            what=what, purpose=purpose, count=sum(1 if t.bytes > 0 else -1 for t in group), bytes=sum(t.bytes for t in group)
        )
        for (what, purpose), group in found.items()
    ]
    return sorted((thing for thing in whole if thing.bytes), key=lambda thing: (-thing.bytes, thing.what))


__all__ = ["PURPOSES", "Living", "Sample", "StepMemory", "memory_of_step"]
