"""Runs emitted graphs on local tensors: all forwards in order, then all backwards in reverse.

No autograd here: the executor is called by an `autograd.Function` on real devices, and directly where one process plays
all ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from autopar.codegen.backend import Runs, eager
from autopar.codegen.emit import Emitted, bind
from autopar.codegen.flight import Air, flights
from autopar.codegen.prefetch import Leg, legs
from autopar.codegen.randomness import Keys
from autopar.ir.autocast import no_autocast

RunBackward = Callable[[int, list[Tensor]], "list[Tensor | None]"]
"""(index of the call, its boxed arguments) -> the results of its backward graph, None where there are none yet."""
Pass = Literal["forward", "backward"]
RunGraph = Callable[[int, Pass, Runs, list[Tensor]], Sequence[Tensor]]
"""(index of the call, the pass, one of its graphs, its boxed arguments) -> the graph's results."""


@dataclass
class Tape:
    """What one forward leaves for its backward: the saved values of each call, and the `keys` that random numbers were drawn
    by. Used up by `Executor.backward`."""

    saved: list[list[Tensor]] = field(default_factory=list)
    keys: Keys = ()
    shapes: list[list[tuple[tuple[int, ...], torch.dtype]]] = field(default_factory=list)


def run_graph(i: int, phase: Pass, graph: Runs, boxed: list[Tensor]) -> Sequence[Tensor]:
    return graph.forward(boxed)


class Executor:
    """Graphs are run by their `forward`: as modules they would be taken for parts of the model by hooks on all modules.

    `groups` maps mesh axis names to names of process groups; `coordinates` this device's place on each axis (0-dim).
    `run_graph` is what runs each graph: something else in its place may watch."""

    def __init__(self, emitted: Emitted, groups: Mapping[str, str], coordinates: Sequence[Tensor]) -> None:
        self.emitted, self.program = emitted, emitted.program
        self.groups, self.coordinates = groups, list(coordinates)
        self.last_reader = {v: i for i, call in enumerate(self.program.calls) for v in call.inputs}
        self.results = {*filter(None, self.program.outputs), *self.program.mutations.values()}
        self.flights = flights(emitted)
        self.legs = legs(emitted, self.flights)
        self.run_graph: RunGraph = run_graph
        self.air = Air()
        made: dict[int, Runs] = {}

        def build(graph: torch.fx.Graph, name: str, read: int) -> Runs:
            if id(graph) not in made:
                made[id(graph)] = emitted.build(bind(graph, groups), name, read)
            return made[id(graph)]

        self.steps = []
        self.names: list[str] = []
        for i, (call, (region, halves)) in enumerate(zip(self.program.calls, emitted.halves(), strict=True)):
            name = "".join(part.capitalize() for part in call.region.replace("*", "").split("."))
            read = sum(k < len(call.inputs) for k in halves.gradients)
            forward = build(self.legs.forward[i].graph, f"{name}Forward", len(call.outputs))
            self.steps.append((call, region, halves, forward, build(self.legs.backward[i].graph, f"{name}Backward", read)))
            self.names.append(name)
        leads = {leg.lead for leg in (*self.legs.forward, *self.legs.backward) if leg.lead}
        self.leads = {lead: eager(bind(lead.graph, groups), "Lead") for lead in leads}

    @no_autocast()
    def forward(self, values: dict[str, Tensor], state: Mapping[str, Tensor], *, keep: bool = True, keys: Keys = ()) -> Tape:
        """Run all calls. `values` holds the local inputs by name and is left with what the program returns.

        The tape is for one `backward`; `keep=False` saves nothing (inference). `keys`: per call those of its random draws,
        from `Randomness.keys`; none for a program that draws nothing.
        """
        tape = Tape(keys=keys)
        ahead = Ahead(self, "forward", state, keys)
        for i, (call, region, _, forward, _) in enumerate(self.steps):
            results = ahead.run(i, forward, [values[v] for v in call.inputs] + self.resting("forward", i, state, keys))
            count = len(region.joint.outputs)
            values.update(zip(call.outputs, results[:count], strict=True))
            tape.saved.append(results[count:] if keep else [])
            tape.shapes.append([(tuple(t.shape), t.dtype) for t in results[:count]])
            del results
            for value in {*call.inputs, *call.outputs} - self.results:
                if self.last_reader.get(value, -1) <= i:
                    values.pop(value, None)
        return tape

    def legs_of(self, phase: Pass) -> tuple[Leg, ...]:
        return self.legs.forward if phase == "forward" else self.legs.backward

    def towards(self, phase: Pass) -> int:
        """The way from one call to the next."""
        return 1 if phase == "forward" else -1

    def resting(self, phase: Pass, i: int, state: Mapping[str, Tensor], keys: Keys) -> list[Tensor]:
        """What a call gets in a pass that is there all the time: parameters, buffers, coordinates, and keys of its draws."""
        call, _, halves, _, _ = self.steps[i]
        given = [*(state[s] for s in call.state), *self.coordinates, *(keys[i] if keys else ())]
        return given if phase == "forward" else [given[k - len(call.inputs)] for k in halves.backward_inputs]

    @no_autocast()
    def backward(
        self, tape: Tape, tangents: dict[str, Tensor], state: Mapping[str, Tensor], run: RunBackward | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Gradients of the inputs and of the state, by name. `tangents` are gradients of outputs by value name.

        Empties the tape as it goes. `run` runs other graphs in the place of the calls' own.
        """
        gradients: dict[str, Tensor] = {}
        air, ahead = self.air, Ahead(self, "backward", state, tape.keys)
        air.land()  # what a backward that failed left: waiting there, for peers that may be gone, would keep its error back
        for i, (call, region, halves, _, backward) in reversed(list(enumerate(self.steps))):
            saved, shapes = tape.saved.pop(), tape.shapes.pop()
            boxed = self.resting("backward", i, state, tape.keys) + saved
            del saved
            for value, shape, flows in zip(call.outputs, shapes, region.local.differentiated, strict=True):
                if flows:
                    tangent = tangents.pop(value, None)
                    boxed.append(
                        torch.zeros(shape[0], dtype=shape[1], device=self.coordinates[0].device) if tangent is None else tangent
                    )
                    del tangent
            results: list[Tensor | None]
            if run is None:
                air.land(self.flights[i].room_bytes - self.legs.backward[i].extra_bytes)
                found = ahead.run(i, backward, boxed)
                if flying := self.flights[i].flying:
                    air.take_off([(found[k], size) for k, size in flying.bytes.items()])
                results = [*found]
                del found
            else:
                air.land(self.flights[i].room_bytes)
                results = run(i, boxed)
            for k in reversed(halves.gradients):
                gradient = results.pop()
                if gradient is None:
                    continue
                names = (*call.inputs, *call.state)
                into, name = tangents if k < len(call.inputs) else gradients, names[k]
                if name in into:
                    air.land()
                into[name] = into[name] + gradient if name in into else gradient
                del gradient
        air.land()
        inputs = {name: g for name, g in tangents.items() if name in self.program.inputs}
        return inputs, gradients

    def describe(self) -> Counter[str]:
        """How many calls run each pair of graphs."""
        return Counter(f"{name}Forward" for name in self.names)


class Ahead:
    """One pass over the calls: what one has started for the next travels from graph to graph."""

    def __init__(self, executor: Executor, phase: Pass, state: Mapping[str, Tensor], keys: Keys) -> None:
        self.executor, self.phase, self.state, self.keys = executor, phase, state, keys
        self.legs, self.towards = executor.legs_of(phase), executor.towards(phase)
        self.started: list[Tensor] = []

    def run(self, i: int, graph: Runs, boxed: list[Tensor]) -> list[Tensor]:
        """The results of a call's own graph, for its own inputs; empties their list."""
        leg, run, started = self.legs[i], self.executor.run_graph, self.started
        self.started = []
        if leg.lead is not None and not started:
            resting = self.executor.resting(self.phase, i, self.state, self.keys)
            started = [*run(i, self.phase, self.executor.leads[leg.lead], [resting[k] for k in leg.lead.reads])]
        if leg.ahead is not None:
            resting = self.executor.resting(self.phase, i + self.towards, self.state, self.keys)
            boxed += [resting[k] for k in leg.ahead.reads]
        count = len(boxed)
        boxed += started
        del started
        try:
            results = [*run(i, self.phase, graph, boxed)]
        except BaseException:
            self.executor.air.take_off([(gathered, 0) for gathered in boxed[count:]])
            raise
        if leg.ahead is not None:
            own = len(results) - len(leg.ahead.starts)
            results, self.started = results[:own], results[own:]
        return results
