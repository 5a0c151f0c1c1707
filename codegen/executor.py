"""Runs emitted graphs on local tensors: all forwards in order, then all backwards in reverse.

No autograd here: the executor is called by an `autograd.Function` on real devices, and directly where one process plays
all ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from autopar.codegen.backend import Runs
from autopar.codegen.emit import Emitted, bind
from autopar.codegen.flight import Air, flights
from autopar.codegen.randomness import Keys
from autopar.ir.autocast import no_autocast

RunBackward = Callable[[int, list[Tensor]], "list[Tensor | None]"]
"""(index of the call, its boxed arguments) -> the results of its backward graph, None where there are none yet."""
RunGraph = Callable[[int, Runs, list[Tensor]], Sequence[Tensor]]
"""(index of the call, one of its graphs, its boxed arguments) -> the graph's results."""


@dataclass
class Tape:
    """What one forward leaves for its backward: the saved values of each call, and the `keys` that random numbers were drawn
    by. Used up by `Executor.backward`."""

    saved: list[list[Tensor]] = field(default_factory=list)
    keys: Keys = ()
    shapes: list[list[tuple[tuple[int, ...], torch.dtype]]] = field(default_factory=list)


def run_graph(i: int, graph: Runs, boxed: list[Tensor]) -> Sequence[Tensor]:
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
        self.run_graph: RunGraph = run_graph
        self.air = Air()
        made: dict[int, Runs] = {}

        def build(graph: torch.fx.Graph, name: str, read: int) -> Runs:
            if id(graph) not in made:
                made[id(graph)] = emitted.build(bind(graph, groups), name, read)
            return made[id(graph)]

        self.steps = []
        self.names: list[str] = []
        for call, (region, halves), flight in zip(self.program.calls, emitted.halves(), self.flights, strict=True):
            name = "".join(part.capitalize() for part in call.region.replace("*", "").split("."))
            backward = halves.backward if flight.flying is None else flight.flying.graph
            read = sum(k < len(call.inputs) for k in halves.gradients)
            forward = build(halves.forward, f"{name}Forward", len(call.outputs))
            self.steps.append((call, region, halves, forward, build(backward, f"{name}Backward", read)))
            self.names.append(name)

    @no_autocast()
    def forward(self, values: dict[str, Tensor], state: Mapping[str, Tensor], *, keep: bool = True, keys: Keys = ()) -> Tape:
        """Run all calls. `values` holds the local inputs by name and is left with what the program returns.

        The tape is for one `backward`; `keep=False` saves nothing (inference). `keys`: per call those of its random draws,
        from `Randomness.keys`; none for a program that draws nothing.
        """
        tape = Tape(keys=keys)
        for i, (call, region, _, forward, _) in enumerate(self.steps):
            boxed = [values[v] for v in call.inputs] + [state[s] for s in call.state] + self.given(keys, i)
            results = list(self.run_graph(i, forward, boxed))
            count = len(region.joint.outputs)
            values.update(zip(call.outputs, results[:count], strict=True))
            tape.saved.append(results[count:] if keep else [])
            tape.shapes.append([(tuple(t.shape), t.dtype) for t in results[:count]])
            del results
            for value in {*call.inputs, *call.outputs} - self.results:
                if self.last_reader.get(value, -1) <= i:
                    values.pop(value, None)
        return tape

    def given(self, keys: Keys, i: int) -> list[Tensor]:
        """What a call gets beside values and state: coordinates, and the keys of its draws."""
        return [*self.coordinates, *(keys[i] if keys else ())]

    @no_autocast()
    def backward(
        self, tape: Tape, tangents: dict[str, Tensor], state: Mapping[str, Tensor], run: RunBackward | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Gradients of the inputs and of the state, by name. `tangents` are gradients of outputs by value name.

        Empties the tape as it goes. `run` runs other graphs in the place of the calls' own.
        """
        gradients: dict[str, Tensor] = {}
        air = self.air
        air.land()  # what a backward that failed left: waiting there, for peers that may be gone, would keep its error back
        for i, (call, region, halves, _, backward) in reversed(list(enumerate(self.steps))):
            given = self.given(tape.keys, i)
            saved, shapes = tape.saved.pop(), tape.shapes.pop()
            again = [*call.inputs, *call.state]
            boxed = [state[again[k]] if k < len(again) else given[k - len(again)] for k in halves.backward_inputs]
            boxed += saved
            del saved
            for value, shape, flows in zip(call.outputs, shapes, region.local.differentiated, strict=True):
                if flows:
                    tangent = tangents.pop(value, None)
                    boxed.append(
                        torch.zeros(shape[0], dtype=shape[1], device=self.coordinates[0].device) if tangent is None else tangent
                    )
                    del tangent
            air.land(self.flights[i].room_bytes)
            results: list[Tensor | None]
            if run is None:
                found = self.run_graph(i, backward, boxed)
                if flying := self.flights[i].flying:
                    air.take_off([(found[k], size) for k, size in flying.bytes.items()])
                results = list(found)
                del found
            else:
                results = run(i, boxed)
            for k in reversed(halves.gradients):
                gradient = results.pop()
                if gradient is None:
                    continue
                into, name = (tangents, call.inputs[k]) if k < len(call.inputs) else (gradients, again[k])
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
