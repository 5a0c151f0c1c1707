"""From a unit and its strategy to nodes on local shapes.

Most nodes are copied as they are: their dims shrink with their operands. Three things change: arguments that spell out a
shape, ops with a sharded implementation, and the device of factory ops.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from autopar.ir.mesh import MeshSpec
from autopar.ir.program import Size
from autopar.ops import tables
from autopar.ops.draws import KEY
from autopar.ops.factors import Factor, local_shape
from autopar.ops.fits import argument, dim_list
from autopar.ops.lowering import indexing, layers, norms, reductions
from autopar.ops.lowering.draws import emit_draw, loops_of
from autopar.ops.strategies import Strategy
from autopar.ops.units import Unit, is_getitem, rule_of, shapes_of
from autopar.torch_private import OpOverload

Axes = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Cut:
    """Which mesh axes cut a factor (outermost first), and the coordinate nodes on them; its size if they cut it unevenly."""

    axes: Axes
    coordinates: tuple[torch.fx.Node, ...]
    uneven: int | None = None


NOT_CUT = Cut((), ())
Cuts = Mapping[Factor, Cut]
"""By the factor names of the node's rule; "+e": on these of the axes that cut e, pieces of another factor travel to it."""


@dataclass(frozen=True)
class LocalCall:
    """A node of the program on its way into a local graph, for the unit that it belongs to: its arguments there."""

    graph: torch.fx.Graph
    unit: str
    node: torch.fx.Node
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def emit(self, target: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> torch.fx.Node:
        """Append a call under the node's own name."""
        new = self.graph.create_node("call_function", target, args, dict(kwargs or {}), name=self.node.name)
        new.meta = {"unit": self.unit, "origin": self.node.name}
        return new

    @property
    def target(self) -> Callable[..., Any]:
        assert callable(self.node.target)
        return self.node.target

    def again(self) -> torch.fx.Node:
        """Append the same op on the local arguments."""
        return self.emit(self.target, self.args, self.kwargs)

    def argument(self, position: int) -> Any:
        """None if it is left out."""
        return self.args[position] if position < len(self.args) else None

    def named(self, name: str) -> Any:
        """What the argument that the op's schema calls so is here, or its default; None if there is none of that name."""
        place = self.place(name)
        if place is not None and place < len(self.args):
            return self.args[place]
        return self.kwargs.get(name, argument(self.node, name))

    def with_arguments(self, **values: Any) -> LocalCall:
        """With other values for the arguments of these names."""
        args, kwargs = list(self.args), dict(self.kwargs)
        for name, value in values.items():
            if (place := self.place(name)) is not None and place < len(args):
                args[place] = value
            else:
                kwargs[name] = value
        return replace(self, args=tuple(args), kwargs=kwargs)

    def place(self, name: str) -> int | None:
        assert isinstance(self.node.target, OpOverload), f"{self.node.target} has no schema"
        names = [declared.name for declared in self.node.target._schema.arguments]
        return names.index(name) if name in names else None


Lowering = Callable[[LocalCall, Cuts], torch.fx.Node]
SQUEEZES = frozenset({torch.ops.aten.squeeze.default, torch.ops.aten.squeeze.dim, torch.ops.aten.squeeze.dims})


def emit_unit(
    unit: Unit,
    strategy: Strategy,
    mesh: MeshSpec,
    graph: torch.fx.Graph,
    env: dict[torch.fx.Node, torch.fx.Node],
    coordinate: Callable[[str], torch.fx.Node],
    device: str = "cpu",
) -> None:
    """Append the unit's nodes to `graph`. `env` maps nodes of the program to local ones: operands going in, all nodes of
    the unit coming out. `coordinate` gives the placeholder with this device's coordinate on an axis, and, where the unit
    draws random numbers, that with the keys (`KEY`)."""
    sizes = strategy.local_sizes(unit, mesh.sizes)
    cuts = cuts_of(unit, strategy, mesh, coordinate)
    for node in unit.nodes:
        # what draws numbers in the shape of a tensor does not read it
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), env.get if node in unit.sites else env.__getitem__)
        call = LocalCall(graph, unit.name, node, args, kwargs)
        counts = unit.counts.get(node, {})
        call = call.with_arguments(**{name: math.prod(sizes[f] for f in factors) for name, factors in counts.items()})
        if node in unit.sites:
            loops = loops_of(unit, node, strategy, mesh, coordinate)
            env[node] = emit_draw(call, unit.sites[node], coordinate(KEY), loops, local_shape(unit.dims[node], sizes))
        elif node in cuts:
            implementation, by_factor = cuts[node]
            lowering = IMPLEMENTATIONS.get(implementation)
            env[node] = lowering(call, by_factor) if lowering else _of_user(call, by_factor, implementation)
        else:
            env[node] = emit_same(call, local_shape(unit.dims[node], sizes), device)
    for node in unit.results:
        if node in unit.dense and env[node].target is not torch.ops.aten.contiguous.default:
            name = f"{node.name}_contiguous"
            env[node] = graph.create_node("call_function", torch.ops.aten.contiguous.default, (env[node],), name=name)
            env[node].meta = {"unit": unit.name, "origin": node.name}


def emit_same(call: LocalCall, shape: Sequence[Size], device: str) -> torch.fx.Node:
    """The op itself, on a device's pieces; its result has this shape there."""
    node = call.node
    if is_getitem(node):
        return call.again()
    if node.target in SQUEEZES:
        return call.emit(torch.ops.aten.squeeze.dims, (call.args[0], squeezed_dims(node)))
    args, kwargs = call.args, call.kwargs
    position = rule_of(node).shape_argument
    if position is not None:
        spelled = [int(n) for n in shape][len(shape) - len(args[position]) :]
        args = (*args[:position], spelled, *args[position + 1 :])
    if node.target is torch.ops.aten.repeat.default:
        args = (args[0], repeats(node, shape))
    if "device" in kwargs:
        kwargs = {**kwargs, "device": torch.device(device)}
    return replace(call, args=args, kwargs=kwargs).again()


def repeats(node: torch.fx.Node, shape: Sequence[Size]) -> list[int]:
    """How often each dim is repeated where the result has this shape: one element as often as there is room for it."""
    source, counts = node.args
    assert isinstance(source, torch.fx.Node)
    assert isinstance(counts, list | tuple)
    given = shapes_of(source)[0]
    sizes = (*[1] * (len(counts) - len(given)), *given)
    return [int(shape[d]) if size == 1 else count for d, (size, count) in enumerate(zip(sizes, counts, strict=True))]


def squeezed_dims(node: torch.fx.Node) -> list[int]:
    """Which dims a squeeze takes away; on a device further ones may have size one, which must stay."""
    (source,) = node.all_input_nodes
    (shape,) = shapes_of(source)
    return [d for d in dim_list(argument(node, "dim"), len(shape)) if shape[d] == 1]


def cuts_of(
    unit: Unit, strategy: Strategy, mesh: MeshSpec, coordinate: Callable[[str], torch.fx.Node]
) -> dict[torch.fx.Node, tuple[str, dict[Factor, Cut]]]:
    """Nodes that need their sharded implementation under this strategy, with the cuts by the factor names of their rule."""
    names = {node.name: node for node in unit.nodes}
    found: dict[torch.fx.Node, tuple[str, dict[Factor, Cut]]] = {}
    padded = strategy.padded(unit, mesh.sizes)
    cutting = [(factor, places, strategy.axes_of(factor)) for factor, places in unit.sharded.items()]
    cutting += [(pair, places, strategy.axes_choosing(pair)) for pair, places in unit.exchanged.items()]
    for factor, places, axes in cutting:
        for name, implementation, local_name in places if axes else ():
            cut = Cut(tuple((mesh.names[a], mesh.sizes[a]) for a in axes), tuple(coordinate(mesh.names[a]) for a in axes))
            _, by_factor = found.setdefault(names[name], (implementation, {}))
            before = by_factor.get(local_name, NOT_CUT)
            size = int(unit.sizes[factor]) if factor in padded else None
            by_factor[local_name] = Cut(before.axes + cut.axes, before.coordinates + cut.coordinates, size)
    return found


def _of_user(call: LocalCall, cuts: Cuts, name: str) -> torch.fx.Node:
    """A function that came with a rule, on all arguments of the op, defaults included."""
    (cut,) = cuts.values()
    declared = getattr(call.node.target, "_schema").arguments  # noqa: B009 - any op has one
    kwargs = {**call.kwargs, "axes": list(cut.axes), "coordinates": list(cut.coordinates)}
    rest = [kwargs.pop(a.name, a.default_value) for a in declared[len(call.args) :] if not a.kwarg_only]
    return call.emit(tables.USER_IMPLEMENTATIONS[name], (*call.args, *rest), kwargs)


IMPLEMENTATIONS: dict[str, Lowering] = {
    **layers.IMPLEMENTATIONS,
    **norms.IMPLEMENTATIONS,
    **reductions.IMPLEMENTATIONS,
    **indexing.IMPLEMENTATIONS,
}
"""Names in the `sharded` column of the rule table, to what emits them."""
