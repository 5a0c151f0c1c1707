"""How a unit's draws of random numbers are written into a local graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch

from autopar.ir.layout import drawn_order
from autopar.ir.mesh import MeshSpec
from autopar.ir.program import Size
from autopar.ops import draws
from autopar.ops.counters import KEY_NUMBERS
from autopar.ops.drawn import is_attention, kind_of
from autopar.ops.factors import flat
from autopar.ops.fits import argument
from autopar.ops.joint import TensorLike
from autopar.ops.strategies import Strategy
from autopar.ops.units import Unit

if TYPE_CHECKING:
    from autopar.ops.lowering.emit import LocalCall


def keys_like(count: int) -> TensorLike:
    """The keys of so many draws, for tracing."""
    return TensorLike(shape=(count, KEY_NUMBERS), dtype=torch.int64, needs_grad=False)


@dataclass(frozen=True)
class Loops:
    """Of what a node draws: as `autopar.ops.draws.dropout` takes them, and how many make up each dim. `order` is empty where
    memory has them in theirs."""

    sizes: tuple[int, ...]
    cuts: tuple[int, ...]
    places: tuple[torch.fx.Node, ...]
    per_dim: tuple[int, ...]
    order: tuple[int, ...]


def loops_of(
    unit: Unit, node: torch.fx.Node, strategy: Strategy, mesh: MeshSpec, coordinate: Callable[[str], torch.fx.Node]
) -> Loops:
    """The loops of what the node draws (of attention: its scores), and which axes cut them."""
    dims = unit.dims[node]
    if is_attention(node):
        keys = node.args[1]
        assert isinstance(keys, torch.fx.Node)
        dims = (*dims[:-1], unit.dims[keys][-2])
    loops = flat(dims)
    starts = [*accumulate(map(len, dims), initial=0)]
    found = [(loop, axis) for loop, factor in enumerate(loops) for axis in strategy.axes_of(factor)]
    return Loops(
        sizes=tuple(int(unit.sizes[factor]) for factor in loops),
        cuts=tuple(n for loop, axis in found for n in (loop, mesh.sizes[axis])),
        places=tuple(coordinate(mesh.names[axis]) for _, axis in found),
        per_dim=tuple(len(dim) for dim in dims),
        order=tuple(loop for dim in drawn_order(node) for loop in range(starts[dim], starts[dim + 1])),
    )


def emit_draw(call: LocalCall, site: int, key: torch.fx.Node, loops: Loops, shape: Sequence[Size]) -> torch.fx.Node:
    """The op, of this local shape, with numbers that are a function of the key and of where this device's piece lies."""
    node = call.node
    found = kind_of(node)
    assert found is not None, f"{node} draws nothing"
    kind, numbers = found
    piece, order = (loops.sizes, loops.cuts, loops.places), (loops.order,) if loops.order else ()
    if is_attention(node):
        options: dict[str, Any] = {name: argument(node, name) for name in ("scale", "enable_gqa")}
        if argument(node, "is_causal"):
            at = sum(loops.per_dim[:-2])
            options["causal_loops"] = (at, at + loops.per_dim[-2])
        mask = call.argument(3) if len(call.args) > 3 else call.kwargs.get("attn_mask")
        return call.emit(draws.attention, (*call.args[:3], mask, key, site, numbers[0], *piece), options)
    if kind == "dropout":
        return call.emit(draws.dropout, (call.args[0], key, site, numbers[0], *piece, *order))
    dtype = node.meta["val"].dtype
    return call.emit(
        draws.DRAW, (key, site, kind, list(numbers), [int(n) for n in shape], *map(list, piece), dtype, *map(list, order))
    )
