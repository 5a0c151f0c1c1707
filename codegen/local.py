"""The local forward graph of a region: the program on one device's shapes, with every conversion an explicit call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from autopar.codegen.accept import Accepted, Position
from autopar.ir.conversion import Conversion
from autopar.ir.placement import Placement
from autopar.ir.plan import Plan
from autopar.ir.program import Program, Region, State
from autopar.ops.casts import computed_in
from autopar.ops.collectives import FUNCTIONS, arguments
from autopar.ops.draws import KEY
from autopar.ops.joint import TensorLike
from autopar.ops.lowering.draws import keys_like
from autopar.ops.lowering.emit import emit_unit
from autopar.ops.units import Unit, needs_grad


@dataclass(frozen=True, kw_only=True)
class LocalRegion:
    """`graph` has placeholders for inputs, state, the coordinates on each mesh axis and, where random numbers are drawn, the
    keys of the draws (`KEY`), in this order, and nodes whose meta says which "unit" (and node of the program, "origin"), which
    "conversion" (tensor, before, after) or the "cast" of which parameter they are; of conversions and casts also the
    "gradient_dtype", if gradients pass them in another one than values.

    `inputs` describes the placeholders; `values` says which node holds a tensor at a placement; `differentiated` whether a
    gradient flows into each output; `resident` are inputs that are the user's batch, and so in memory anyway.
    """

    region: Region
    units: tuple[Unit, ...]
    graph: torch.fx.Graph
    inputs: tuple[TensorLike, ...]
    values: Mapping[Position, str]
    differentiated: tuple[bool, ...]
    resident: frozenset[str]

    @cached_property
    def module(self) -> torch.fx.GraphModule:
        return torch.fx.GraphModule(torch.nn.Module(), self.graph)


class Emitter:
    """Writes one local forward graph; conversions appear where their result is first needed."""

    def __init__(self, program: Program, accepted: Accepted, plan: Plan, device: str) -> None:
        self.program, self.region, self.plan, self.device = program, accepted.region, plan, device
        self.planned, self.mesh = plan.regions[self.region.name], plan.mesh
        self.units, self.strategies = accepted.units, accepted.strategies
        self.graph = torch.fx.Graph()
        self.env: dict[torch.fx.Node, torch.fx.Node] = {}
        self.at: dict[Position, torch.fx.Node] = {}
        self.inputs: list[TensorLike] = []
        self.resting: dict[Position, tuple[torch.fx.Node, torch.dtype | None]] = {}
        self.into = {(c.tensor, c.after): Conversion(c.before, c.after) for c in self.planned.converted}

    def local_region(self) -> LocalRegion:
        call = self.program.calls[self.program.calls_of(self.region.name)[0]]
        for slot, value in zip(self.region.inputs, call.inputs, strict=True):
            self.placeholder(slot, self.plan.boundaries[value])
        for slot, name in zip(self.region.state, call.state, strict=True):
            self.state(slot, self.program.state[name], self.plan.state[name].placement)
        self.coordinates = {name: self.graph.placeholder(f"coordinate_{name}") for name in self.mesh.names}
        self.inputs += [TensorLike(shape=(), dtype=torch.int64, needs_grad=False)] * len(self.coordinates)
        if sites := sum(len(unit.sites) for unit in self.units):
            self.coordinates[KEY] = self.graph.placeholder(KEY)
            self.inputs.append(keys_like(sites))
        for unit in self.units:
            self.unit(unit)
        outputs = tuple(
            self.get(node.name, self.plan.boundaries[value])
            for node, value in zip(self.region.outputs, call.outputs, strict=True)
        )
        self.graph.output(outputs)
        return LocalRegion(
            region=self.region,
            units=self.units,
            graph=self.graph,
            inputs=tuple(self.inputs),
            values={position: node.name for position, node in self.at.items()},
            differentiated=tuple(
                needs_grad(n) and flows_back(self.program, v) for n, v in zip(self.region.outputs, call.outputs, strict=True)
            ),
            resident=frozenset(s for s, v in zip(self.region.inputs, call.inputs, strict=True) if v in self.program.inputs),
        )

    def placeholder(self, slot: str, placement: Placement) -> None:
        node = self.region.nodes[slot]
        value = node.meta["val"]
        shape = placement.local_shape(tuple(int(n) for n in value.shape), self.mesh.sizes)
        new = self.graph.placeholder(slot)
        self.inputs.append(TensorLike(shape=shape, dtype=value.dtype, needs_grad=needs_grad(node)))
        self.at[slot, placement] = new

    def state(self, slot: str, state: State, placement: Placement) -> None:
        """A placeholder of the dtype in which it rests; before anything else is done with it, it is cast if it has to be."""
        self.placeholder(slot, placement)
        self.inputs[-1] = replace(self.inputs[-1], dtype=state.spec.dtype)
        if self.program.cast_to(state.name) or state.gradient_dtype:
            self.resting[slot, placement] = self.at.pop((slot, placement)), state.gradient_dtype

    def cast(self, slot: str, placement: Placement) -> torch.fx.Node:
        """What is computed with, of a parameter where it rests."""
        resting, gradient_dtype = self.resting[slot, placement]
        dtype = self.region.nodes[slot].meta["val"].dtype
        given = (resting, dtype, gradient_dtype or dtype)
        node = self.graph.create_node("call_function", computed_in, given, name=f"{slot}_computed")
        node.meta = {"cast": slot, "gradient_dtype": gradient_dtype}
        return node

    def unit(self, unit: Unit) -> None:
        chosen = self.strategies[unit.name]
        env = {node: self.get(node.name, pl) for node, pl in zip(unit.operands, chosen.operands, strict=True)}
        emit_unit(unit, chosen, self.mesh, self.graph, env, self.coordinates.__getitem__, self.device)
        for node, placement in zip(unit.results, chosen.results, strict=True):
            self.at[node.name, placement] = env[node]

    def get(self, tensor: str, placement: Placement) -> torch.fx.Node:
        """The node that holds the tensor at this placement, made by the plan's conversions."""
        if (tensor, placement) in self.at:
            return self.at[tensor, placement]
        if (tensor, placement) in self.resting:
            self.at[tensor, placement] = self.cast(tensor, placement)
            return self.at[tensor, placement]
        conversion = self.into[tensor, placement]
        source = self.get(tensor, conversion.before)
        axis = self.mesh.names[conversion.axis]
        shape = tuple(int(n) for n in self.region.nodes[tensor].meta["val"].shape)
        length, _ = conversion.lengths(shape, self.mesh.sizes)
        size, place = self.mesh.sizes[conversion.axis], self.coordinates[axis]
        given = arguments(conversion.kind, conversion.dims, axis, size, place, length)
        name = f"{tensor}_{conversion.kind.name}_{axis}"
        node = self.graph.create_node("call_function", FUNCTIONS[conversion.kind.name], (source, *given), name=name)
        node.meta = {
            "conversion": (tensor, conversion.before, conversion.after),
            "gradient_dtype": source.meta.get("gradient_dtype"),
        }
        self.at[tensor, placement] = node
        return node


def flows_back(program: Program, value: str) -> bool:
    """Whether a gradient comes back for a region's output: it is the loss, or something that later regions read.

    Without a loss every differentiable output of the program may get one.
    """
    read = any(value in call.inputs for call in program.calls)
    return value == program.loss or read or (program.loss is None and value in program.outputs)
