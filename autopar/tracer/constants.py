"""Tensors that a model makes from nothing, such as a mask of ones: their values are known while it is being traced.

The nodes that use neither inputs nor state are run as they stand, on the CPU, when the code asks for a value. With them, checks
for numbers that are not finite are taken to find none in what is not known; what depends on that is told apart.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from autopar.ir.finite import found_if_finite
from autopar.torch_private import OpOverload, example_of, storage_key, without_modes
from autopar.tracer.traced import traced_constant

LARGEST = 1 << 24
"""Elements of the largest tensor that is made to answer a question."""

UNFILLED = ("empty", "new_empty", "resize")
"""Ops whose results hold anything at first."""


class Unknown(Exception):
    """A value depends on inputs, state, random numbers or unfilled memory."""


class Constants:
    """Values of the nodes of a graph that is being written."""

    def __init__(self) -> None:
        self.values: dict[Node, Any] = {}
        self.attributes: dict[Node, Tensor] = {}
        self.seen: set[Node] = set()
        self.finite: set[Node] = set()
        self.spoilt: set[int] = set()

    def of(self, graph: Graph, node: Node) -> tuple[Any, bool] | None:
        """The value of a node, and whether it is so only if all numbers are finite; None if it depends on data."""
        for one in graph.find_nodes(op="get_attr"):
            if one not in self.seen and (value := traced_constant(str(one.target))) is not None:
                self.attributes[one] = value
        with without_modes(), torch.no_grad():
            for one in graph.nodes:
                if one not in self.seen:
                    self.seen.add(one)
                    self._run(one)
            if node not in self.values or self._is_spoilt(self.values[node]):
                return None
            return self.values[node], node in self.finite

    def _run(self, node: Node) -> None:
        try:
            self.values[node] = self._value(node)
        except Exception:  # whatever cannot be run is not known
            if isinstance(node.target, OpOverload) and node.target._schema.is_mutable:
                self.spoilt |= {storage_key(v) for v in map(self.values.get, node.all_input_nodes) if isinstance(v, Tensor)}

    def _value(self, node: Node) -> Any:
        if node.op == "get_attr":
            return self.attributes[node]
        try:
            return self._computed(node)
        except Unknown:
            found = found_if_finite(node.target, node.args)
            if found is None:
                raise
            self.finite.add(node)
            return torch.full([example_of(n) for n in node.meta["val"].shape], found, device="cpu")

    def _computed(self, node: Node) -> Any:
        target: Any = node.target
        if target is not operator.getitem and not _is_function(target):
            raise Unknown
        if any(isinstance(v, Tensor) and v.numel() > LARGEST for v in [node.meta.get("val")]):
            raise Unknown
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), self._known)
        options = {name: torch.device("cpu") if isinstance(v, torch.device) else v for name, v in kwargs.items()}
        found = target(*args, **options)
        if any(source in self.finite for source in node.all_input_nodes):
            self.finite.add(node)
        return found

    def _known(self, node: Node) -> Any:
        if node not in self.values or self._is_spoilt(self.values[node]):
            raise Unknown
        return self.values[node]

    def _is_spoilt(self, value: Any) -> bool:
        """Whether something unknown was written into its memory."""
        return isinstance(value, Tensor) and storage_key(value) in self.spoilt


def _is_function(target: Any) -> bool:
    """Whether it is an op of torch's that gives the same each time."""
    if not isinstance(target, OpOverload) or target.namespace not in ("aten", "prims"):
        return False
    unfilled = target._schema.name.startswith(UNFILLED, target._schema.name.index("::") + 2)
    return torch.Tag.nondeterministic_seeded not in target.tags and not unfilled
