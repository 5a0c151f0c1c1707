"""What the emitted graphs really do, counted on their fake tensors: FLOPs, collectives, and the liveness peak.

This is held against the plan: FLOPs and bytes must be equal, the peak must not exceed the budget.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from autopar.codegen.emit import Emitted
from autopar.codegen.liveness import peak
from autopar.codegen.split import Halves
from autopar.ir.optimizer import STATE_COPIES
from autopar.ir.placement import Placement
from autopar.ir.plan import PlannedCollective
from autopar.ops.flops import collectives_of, node_flops
from autopar.ops.joint import bytes_of, owner


@dataclass(frozen=True, kw_only=True)
class GraphFigures:
    """`peak_bytes`: what the graph has allocated beyond its inputs at its worst node. `collectives`: kind, axis, bytes.
    `redone_flops`: those of forward nodes that run again in a backward graph; the others are in `flops`."""

    flops: int
    redone_flops: int
    collectives: tuple[tuple[str, str, int], ...]
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Per device and step. FLOPs as in `Figures`: `backward_flops` has none of those that are redone."""

    forward_flops: int
    backward_flops: int
    redone_flops: int
    collectives: tuple[PlannedCollective, ...]
    peak_bytes: int
    peak_where: str
    state_bytes: int


def count(graph: torch.fx.Graph, dying: Iterable[torch.fx.Node] = ()) -> GraphFigures:
    """Figures of one graph; inputs in `dying` are released at their last use (and were counted by the caller)."""
    calls = [n for n in graph.nodes if n.op == "call_function"]
    return GraphFigures(
        flops=sum(node_flops(n) for n in calls if not n.meta.get("again")),
        redone_flops=sum(node_flops(n) for n in calls if n.meta.get("again")),
        collectives=tuple((c.kind, c.axis, c.bytes) for c in collectives_of(calls)),
        peak_bytes=peak(graph, set(dying)),
    )


def state_bytes(emitted: Emitted) -> int:
    """Parameters at rest with optimizer state, and buffers: there all the time (over micro-batches, gradients are too)."""
    total = 0
    for name in emitted.program.state:
        local = state_part_bytes(emitted, name)
        trained = is_trained(emitted, name)
        copies = 1 + STATE_COPIES[emitted.plan.optimizer] + (emitted.plan.micro_batches > 1) if trained else 1
        total += local * copies
    return total


def state_part_bytes(emitted: Emitted, name: str) -> int:
    """What one device holds of a parameter or buffer."""
    planned = emitted.plan.state[name]
    size = emitted.program.state[name].spec.dtype.itemsize
    return numel(planned.placement, planned.shape, emitted.plan.mesh.sizes) * size


def step_bytes(emitted: Emitted) -> int:
    """Gradients (over micro-batches their sums are state) and the scratch of an optimizer step, a copy of the parameters."""
    trained = sum(state_part_bytes(emitted, name) for name in emitted.program.state if is_trained(emitted, name))
    return trained * (2 if emitted.plan.micro_batches == 1 else 1)


def is_trained(emitted: Emitted, name: str) -> bool:
    state = emitted.program.state[name]
    return state.kind == "parameter" and state.spec.needs_grad


def numel(placement: Placement, shape: Sequence[int], sizes: Sequence[int]) -> int:
    total = 1
    for n in placement.local_shape(shape, sizes):
        total *= n
    return total


@dataclass(frozen=True, kw_only=True)
class Levels:
    """The most bytes alive at once, by what is running: (where, bytes) for each call in order, and for the optimizer's step.
    `lasting`: for each call, the saved values that its backward does not release."""

    forward: tuple[tuple[str, int], ...]
    backward: tuple[tuple[str, int], ...]
    optimizer: tuple[str, int]
    lasting: tuple[frozenset[str], ...]

    @property
    def highest(self) -> tuple[str, int]:
        """The first of the highest, in the order of the step."""
        return max((*self.forward, *reversed(self.backward), self.optimizer), key=lambda level: level[1])


class Counts:
    """Figures of each graph of a program, counted once; of saved values, those named in `lasting` do not die in backward."""

    def __init__(self) -> None:
        self.known: dict[tuple[int, str, frozenset[str]], GraphFigures] = {}

    def __call__(self, halves: Halves, phase: str, lasting: frozenset[str] = frozenset()) -> GraphFigures:
        key = (id(halves), phase, lasting)
        if key not in self.known:
            dying = [n for n in dying_inputs(halves) if n.name not in lasting] if phase == "backward" else ()
            self.known[key] = count(halves.forward if phase == "forward" else halves.backward, dying)
        return self.known[key]


def levels(emitted: Emitted, counts: Counts | None = None) -> Levels:
    """Walk one training step: all forwards, then all backwards, with what is alive between them."""
    figures, held, steps = counts or Counts(), Held(emitted), emitted.halves()
    always = state_bytes(emitted) + input_bytes(emitted)
    names = [call.path or call.region for call in emitted.program.calls]
    forward, backward, lasting = [], [], []
    for i, (_, halves) in enumerate(steps):
        forward.append((f"{names[i]} forward", always + held.bytes + figures(halves, "forward").peak_bytes))
        held.after_forward(i)
    for i, (_, halves) in reversed(list(enumerate(steps))):
        lasting.append(held.lasting(i))
        backward.append((f"{names[i]} backward", always + held.bytes + figures(halves, "backward", lasting[-1]).peak_bytes))
        held.after_backward(i)
    optimizer = ("optimizer step", always + step_bytes(emitted))
    return Levels(
        forward=tuple(forward), backward=tuple(reversed(backward)), optimizer=optimizer, lasting=tuple(reversed(lasting))
    )


def measure(emitted: Emitted) -> Counted:
    """The figures of one training step."""
    flops = {"forward": 0, "backward": 0, "redone": 0}
    counts: Counter[tuple[str, str, str]] = Counter()
    sent: Counter[tuple[str, str, str]] = Counter()
    figures = Counts()
    for _, halves in emitted.halves():
        for phase in ("forward", "backward"):
            found = figures(halves, phase)
            flops[phase] += found.flops
            flops["redone"] += found.redone_flops
            for kind, axis, size in found.collectives:
                counts[kind, axis, phase] += 1
                sent[kind, axis, phase] += size
    where, highest = levels(emitted, figures).highest
    return Counted(
        forward_flops=flops["forward"],
        backward_flops=flops["backward"],
        redone_flops=flops["redone"],
        collectives=tuple(
            PlannedCollective(kind=k, axis=a, phase=ph, count=counts[k, a, ph], bytes=sent[k, a, ph])  # type: ignore[arg-type]
            for k, a, ph in sorted(counts)
        ),
        peak_bytes=highest,
        peak_where=where,
        state_bytes=state_bytes(emitted),
    )


def dying_inputs(halves: Halves) -> list[torch.fx.Node]:
    """Saved values and tangents of a backward graph: they die at their last use."""
    placeholders = [n for n in halves.backward.nodes if n.op == "placeholder"]
    return placeholders[len(halves.backward_inputs) :]


def input_bytes(emitted: Emitted) -> int:
    """The local batch, which is there all the time."""
    total = 0
    for name in filter(None, emitted.program.inputs):
        planned = emitted.plan.inputs[name]
        total += numel(planned.placement, planned.shape, emitted.plan.mesh.sizes) * emitted.program.values[name].dtype.itemsize
    return total


class Held:
    """Bytes alive between graphs: values passing between calls, saved values, gradients on their way, and those of parameters
    from the backward that makes them until the optimizer has run."""

    def __init__(self, emitted: Emitted) -> None:
        self.emitted, self.program = emitted, emitted.program
        self.steps = emitted.halves()
        self.owners: dict[tuple[object, ...], int] = {}
        self.reference: Counter[tuple[object, ...]] = Counter()
        self.by_call: dict[int, list[tuple[object, ...]]] = {}
        self.last_reader = {v: i for i, call in enumerate(self.program.calls) for v in call.inputs}
        self.storage: dict[str, tuple[object, ...]] = {name: ("input", name) for name in self.program.inputs if name}
        self.gradients: dict[str, int] = {}

    @property
    def bytes(self) -> int:
        return sum(size for key, size in self.owners.items() if self.reference[key] > 0)

    def hold(self, key: tuple[object, ...], size: int) -> None:
        if key[0] != "input" and key[0] != "state":
            self.owners[key] = size
            self.reference[key] += 1

    def after_forward(self, i: int) -> None:
        region, halves = self.steps[i]
        call = self.program.calls[i]
        place = {n: k for k, n in enumerate(region.joint.inputs)}

        def key_of(node: torch.fx.Node) -> tuple[object, ...]:
            base = owner(node)
            if base in place:
                k = place[base]
                return self.storage[call.inputs[k]] if k < len(call.inputs) else ("state", k)
            return (i, base.name)

        nodes = {n.name: n for n in region.joint.graph.nodes}
        self.by_call[i] = []
        for node, value in zip(region.joint.outputs, call.outputs, strict=True):
            self.storage[value] = key_of(node)
            if value in self.last_reader or value in self.program.outputs:
                self.hold(self.storage[value], bytes_of(owner(node)))
        for name in halves.saved:
            key = key_of(nodes[name])
            self.hold(key, bytes_of(nodes[name]))
            self.by_call[i].append(key)
        for value in set(call.inputs):
            if self.last_reader.get(value) == i and value not in self.program.outputs:
                self.reference[self.storage[value]] -= 1

    def lasting(self, i: int) -> frozenset[str]:
        """Saved values that outlive the call's backward: outputs, which the caller has, what an earlier call saved too, and the
        batch."""
        saved = self.steps[i][1].saved
        return frozenset(name for name, key in zip(saved, self.by_call[i], strict=True) if self.reference[key] != 1)

    def after_backward(self, i: int) -> None:
        region, halves = self.steps[i]
        call = self.program.calls[i]
        for key in self.by_call.pop(i):
            self.reference[key] -= 1
        for value in call.outputs:
            if value in self.gradients:
                self.owners.pop(("gradient", value), None)
                del self.gradients[value]
        for k in halves.gradients:
            if k < len(call.inputs):
                value = call.inputs[k]
                gradient = region.joint.gradients[k]
                assert gradient is not None
                self.gradients[value] = bytes_of(gradient)
                self.owners["gradient", value] = bytes_of(gradient)
                self.reference["gradient", value] = 1
        for name in call.state:
            if is_trained(self.emitted, name):
                self.owners["gradient of", name] = state_part_bytes(self.emitted, name)
                self.reference["gradient of", name] = 1
