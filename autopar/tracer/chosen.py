"""Writing where a mask says so: "x[mask] = token", "x[mask] = y[mask]", "x[mask] += 1".

Torch takes such an index for the positions that are chosen, and how many these are, only data tell. But what is written to
chosen places, if it is the same for all of them or was read from the same places, needs no positions: it is a choice for each
element. Values that were read are spread to all elements, so only through ops that do no harm to those that are not chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from autopar.tracer.clean import shape_of
from autopar.tracer.effects import before

aten = torch.ops.aten
HARMLESS = frozenset(
    [
        aten.add.Tensor,
        aten.add.Scalar,
        aten.sub.Tensor,
        aten.sub.Scalar,
        aten.mul.Tensor,
        aten.mul.Scalar,
        aten.neg.default,
        aten._to_copy.default,
    ]
)
"""Finite numbers stay finite, and so do gradients: the others would reach the chosen ones as nan, times zero."""


def choose_where_written(graph: Graph) -> None:
    """In place, of every write by a mask for which it is possible."""
    for node in [node for node in graph.nodes if node.target is aten.index_put.default]:
        if (write := write_of(node)) is None or (values := write.spread(node.args[2])) is None:
            continue
        base, accumulate = node.args[0], node.args[3] if len(node.args) > 3 else node.kwargs.get("accumulate", False)
        if accumulate:
            values = write.add(aten.add.Tensor, base, values)
        mask = write.mask
        for _ in range(write.behind):
            mask = write.add(aten.unsqueeze.default, mask, -1)
        chosen = write.add(aten.where.self, mask, values, base)
        node.replace_all_uses_with(chosen)
        graph.erase_node(node)


@dataclass(frozen=True, kw_only=True)
class Write:
    """A write by one mask, of the dims that follow the first ones; `behind` is how many dims come after those."""

    node: Node
    indices: tuple[Any, ...]
    mask: Node
    behind: int

    def add(self, op: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        """A new node in front of the write."""
        return before(self.node.graph, self.node, op, *args, **kwargs)

    def spread(self, value: Any) -> Any:
        """What has, at each chosen element, the value that is written there; None if that cannot be told."""
        if not isinstance(value, Node):
            return value
        shape = shape_of(value.meta["val"])
        at = len(shape) - self.behind - 1
        if at < 0:
            return value
        if shape[at] == 1:
            for _ in range(self.mask.meta["val"].ndim - 1):
                value = self.add(aten.unsqueeze.default, value, at)
            return value
        if value.target is aten.index.Tensor:
            args: Any = value.args
            read, indices = args
            same = tuple(indices) == self.indices and shape_of(read.meta["val"]) == shape_of(self.node.meta["val"])
            return read if same else None
        if value.target not in HARMLESS:
            return None
        found = [self.spread(arg) for arg in value.args]
        return None if None in found else self.add(value.target, *found, **value.kwargs)


def write_of(node: Node) -> Write | None:
    """Where an `index_put` writes, if one mask says it."""
    args: Any = node.args
    indices = tuple(args[1])
    masks = [index for index in indices if index is not None]
    if len(masks) != 1 or masks[0].meta["val"].dtype is not torch.bool:
        return None
    dims = indices.index(masks[0]) + masks[0].meta["val"].ndim
    return Write(node=node, indices=indices, mask=masks[0], behind=node.meta["val"].ndim - dims)
