"""From a unit and its strategy to nodes on local shapes.

Most nodes are copied as they are: their dims shrink with their operands. Three things change: arguments that spell out a
shape, ops with a sharded implementation, and the device of factory ops.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from autopar.ir.mesh import MeshSpec
from autopar.ops import sharded
from autopar.ops.factors import Factor, local_shape
from autopar.ops.fits import argument, dim_list
from autopar.ops.strategies import Strategy
from autopar.ops.units import Unit, is_getitem, rule_of, shapes_of

Emit = Callable[..., torch.fx.Node]
Axes = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Cut:
    """Which mesh axes cut a factor (outermost first), and the coordinate nodes on them."""

    axes: Axes
    coordinates: tuple[torch.fx.Node, ...]


NOT_CUT = Cut((), ())
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
    the unit coming out. `coordinate` gives the placeholder with this device's coordinate on an axis."""
    sizes = strategy.local_sizes(unit, mesh.sizes)
    cuts = cuts_of(unit, strategy, mesh, coordinate)
    for node in unit.nodes:
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), env.__getitem__)

        def call(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> torch.fx.Node:
            return graph.create_node("call_function", target, args, dict(kwargs or {}), name=node.name)  # noqa: B023

        if is_getitem(node):
            new = call(node.target, args, kwargs)
        elif node in cuts:
            implementation, by_factor = cuts[node]
            new = IMPLEMENTATIONS[implementation](call, node, args, kwargs, by_factor)
        elif node.target in SQUEEZES:
            new = call(torch.ops.aten.squeeze.dims, (args[0], squeezed_dims(node)))
        else:
            rule = rule_of(node)
            if rule.shape_argument is not None:
                spelled = args[rule.shape_argument]
                shape = [int(n) for n in local_shape(unit.dims[node], sizes)]
                args = (*args[: rule.shape_argument], shape[len(shape) - len(spelled) :], *args[rule.shape_argument + 1 :])
            if "device" in node.kwargs:
                kwargs = {**kwargs, "device": torch.device(device)}
            new = call(node.target, args, kwargs)
        new.meta = {"unit": unit.name, "origin": node.name}
        env[node] = new
    for node in unit.results:
        if node in unit.dense and env[node].target is not torch.ops.aten.contiguous.default:
            env[node] = graph.call_function(torch.ops.aten.contiguous.default, (env[node],))
            env[node].meta = {"unit": unit.name, "origin": node.name}


def squeezed_dims(node: torch.fx.Node) -> list[int]:
    """Which dims a squeeze takes away; on a device further ones may have size one, which must stay."""
    shape = shapes_of(node.args[0])[0]  # type: ignore[arg-type]
    return [d for d in dim_list(argument(node, "dim"), len(shape)) if shape[d] == 1]


def cuts_of(
    unit: Unit, strategy: Strategy, mesh: MeshSpec, coordinate: Callable[[str], torch.fx.Node]
) -> dict[torch.fx.Node, tuple[str, dict[Factor, Cut]]]:
    """Nodes that need their sharded implementation under this strategy, with the cuts by the factor names of their rule."""
    names = {node.name: node for node in unit.nodes}
    found: dict[torch.fx.Node, tuple[str, dict[Factor, Cut]]] = {}
    for factor, places in unit.sharded.items():
        axes = strategy.axes_of(factor)
        for name, implementation, local_name in places if axes else ():
            cut = Cut(tuple((mesh.names[a], mesh.sizes[a]) for a in axes), tuple(coordinate(mesh.names[a]) for a in axes))
            _, by_factor = found.setdefault(names[name], (implementation, {}))
            before = by_factor.get(local_name, NOT_CUT)
            by_factor[local_name] = Cut(before.axes + cut.axes, before.coordinates + cut.coordinates)
    return found


def needs_implementation(unit: Unit, strategy: Strategy) -> bool:
    """Whether some node runs another op than its own (its cost is then measured for that strategy by itself)."""
    return any(factor in unit.sharded for factor in strategy.factors if factor is not None)


def _embedding(
    call: Emit, node: torch.fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any], cuts: Mapping[Factor, Cut]
) -> torch.fx.Node:
    padding = argument(node, "padding_idx", -1)
    return call(sharded.embedding_vocab, (args[0], args[1], cuts["v"].axes, cuts["v"].coordinates, padding))


def _linear(
    call: Emit, node: torch.fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any], cuts: Mapping[Factor, Cut]
) -> torch.fx.Node:
    if len(args) < 3 or args[2] is None:
        return call(node.target, tuple(args))
    return call(sharded.linear_row_bias, (args[0], args[1], args[2], cuts["k"].axes, cuts["k"].coordinates))


def _addmm(
    call: Emit, node: torch.fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any], cuts: Mapping[Factor, Cut]
) -> torch.fx.Node:
    return call(sharded.addmm_row_bias, (args[0], args[1], args[2], cuts["k"].axes, cuts["k"].coordinates), kwargs)


def _mean(
    call: Emit, node: torch.fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any], cuts: Mapping[Factor, Cut]
) -> torch.fx.Node:
    parts = 1
    for cut in cuts.values():
        for _, size in cut.axes:
            parts *= size
    return call(torch.ops.aten.div.Tensor, (call(node.target, tuple(args), kwargs), parts))


def _layer_norm(
    call: Emit, node: torch.fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any], cuts: Mapping[Factor, Cut]
) -> torch.fx.Node:
    weight = args[2] if len(args) > 2 else None
    bias = args[3] if len(args) > 3 else None
    eps = argument(node, "eps", 1e-5)
    return call(sharded.layer_norm_hidden, (args[0], math.prod(args[1]), weight, bias, eps, cuts["h"].axes))


def _cross_entropy(
    call: Emit, node: torch.fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any], cuts: Mapping[Factor, Cut]
) -> torch.fx.Node:
    vocab, tokens = cuts.get("v", NOT_CUT), cuts.get("t", NOT_CUT)
    options = {
        "reduction": argument(node, "reduction", 1),
        "ignore_index": argument(node, "ignore_index", -100),
        "label_smoothing": argument(node, "label_smoothing", 0.0),
        "vocab_axes": vocab.axes,
        "vocab_coordinates": vocab.coordinates,
        "token_axes": tokens.axes,
    }
    return call(sharded.cross_entropy, (args[0], args[1]), options)


IMPLEMENTATIONS: dict[str, Callable[..., torch.fx.Node]] = {
    "embedding": _embedding,
    "linear": _linear,
    "addmm": _addmm,
    "mean": _mean,
    "layer_norm": _layer_norm,
    "cross_entropy": _cross_entropy,
}
"""Names in the `sharded` column of the rule table, to what emits them."""
