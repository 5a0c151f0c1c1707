"""Program: a traced model as region types, the calls of them in order, and the state that they use.

A *region* is a graph that runs once per call; a model of 32 equal layers has one region for the layer and 32 calls of it,
plus what comes before and after. Every later stage works per region, so its cost does not grow with depth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import sympy
import torch

from autopar.ir.precision import Precision
from autopar.torch_private import TreeSpec

Size: TypeAlias = int | sympy.Expr


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """Global shape (sympy expressions in dynamic dims), dtype, and whether a gradient flows back through it."""

    shape: tuple[Size, ...]
    dtype: torch.dtype
    needs_grad: bool

    @property
    def is_loss(self) -> bool:
        """Whether training could differentiate it: a real scalar with a gradient."""
        return self.shape == () and self.needs_grad and self.dtype.is_floating_point

    @property
    def bytes(self) -> Size:
        return sympy.prod(self.shape) * self.dtype.itemsize if self.shape else self.dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class Region:
    """One region type.

    `graph` holds placeholders (first `inputs`, then `state`, by name), functional ATen calls, and one output node with a
    tuple of nodes. Each node's meta has `val` (fake tensor, or a tuple of them), `needs_grad` (bool, or a tuple),
    `path` (module path within the region, "" for the region itself) and `source` ("file.py:12", or ""); what the model's code
    runs under `torch.utils.checkpoint` also `checkpoint`, the number of that call within the region.
    """

    name: str
    graph: torch.fx.Graph
    inputs: tuple[str, ...]
    state: tuple[str, ...]

    @cached_property
    def nodes(self) -> dict[str, torch.fx.Node]:
        return {node.name: node for node in self.graph.nodes}

    @property
    def outputs(self) -> tuple[torch.fx.Node, ...]:
        (results,) = self.graph.output_node().args
        assert isinstance(results, tuple | list), f"region {self.name} ends in {results}"
        return tuple(node for node in results if isinstance(node, torch.fx.Node))


def path_of(node: torch.fx.Node, call: str = "") -> str:
    """The path of the module that a region's node is of, in the call of the region at the path `call`."""
    return ".".join(filter(None, (call, node.meta.get("path", ""))))


def place_of(node: torch.fx.Node, call: str = "") -> str:
    """Where a region's node is from, as messages say it: "path (file.py:12)", by its own name where there is no path."""
    source = node.meta.get("source", "")
    return f"{path_of(node, call) or node.name}{f' ({source})' if source else ''}"


@dataclass(frozen=True, kw_only=True)
class Call:
    """One execution of a region: which values enter and leave, and which state it uses, by position."""

    region: str
    path: str
    inputs: tuple[str, ...]
    state: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class State:
    """A parameter, a buffer, or a tensor constant of the model's code; `aliases` are further names of the same tensor.

    `spec` says how it rests: a parameter may enter regions in another dtype (that of its placeholders there), which it is cast
    to first. `gradient_dtype`: in which gradients of it travel between devices, if not in the one that they are made in.
    """

    name: str
    kind: str
    spec: TensorSpec
    aliases: tuple[str, ...] = ()
    value: torch.Tensor | None = None
    gradient_dtype: torch.dtype | None = None


@dataclass(frozen=True, kw_only=True)
class Program:
    """A whole model.

    `values` are all tensors that enter, leave or pass between calls. `inputs` names the values that the flattened user
    inputs become (None: that leaf is no tensor, its traced value stands in `constants` at the same position). `outputs`
    names the flattened outputs likewise. `mutations` maps a buffer to the value that replaces its content. `loss` is the
    scalar that training differentiates, if there is one. `symbols` maps the names of dynamic dims to their symbols.
    `precision`: what it was traced in, if not its own; casts of values are nodes of the graphs. `assumptions`: what its code
    asked of data and was answered without, a sentence each.
    """

    name: str
    regions: Mapping[str, Region]
    calls: tuple[Call, ...]
    values: Mapping[str, TensorSpec]
    state: Mapping[str, State]
    inputs: tuple[str | None, ...]
    input_constants: tuple[Any, ...]
    in_spec: TreeSpec
    outputs: tuple[str | None, ...]
    output_constants: tuple[Any, ...]
    out_spec: TreeSpec
    loss: str | None
    mutations: Mapping[str, str]
    fingerprint: str
    symbols: Mapping[str, sympy.Symbol] = field(default_factory=dict)
    precision: Precision | None = None
    assumptions: tuple[str, ...] = ()

    def calls_of(self, region: str) -> tuple[int, ...]:
        """Indices of the calls of a region, in order."""
        return tuple(i for i, call in enumerate(self.calls) if call.region == region)

    def is_shared_input(self, region: str, position: int) -> bool:
        """Whether all calls of the region get the same value there (a mask, say), not each its own."""
        return len({self.calls[i].inputs[position] for i in self.calls_of(region)}) == 1

    def computed_dtype(self, name: str) -> torch.dtype:
        """In which regions take this state; how it rests if none does."""
        return self._computed_dtypes.get(name, self.state[name].spec.dtype)

    @property
    def autocast(self) -> str | None:
        """The dtype of the `torch.autocast` that it was captured under."""
        return self.precision.autocast if self.precision else None

    def cast_to(self, name: str) -> torch.dtype | None:
        """The dtype that this state is cast to before regions take it; None if it rests in it."""
        computed = self.computed_dtype(name)
        return computed if computed != self.state[name].spec.dtype else None

    @cached_property
    def _computed_dtypes(self) -> dict[str, torch.dtype]:
        found: dict[str, torch.dtype] = {}
        for call in self.calls:
            region = self.regions[call.region]
            found |= {name: region.nodes[slot].meta["val"].dtype for name, slot in zip(call.state, region.state, strict=True)}
        return found

    def producer(self, value: str) -> tuple[int, int] | None:
        """(call index, output position) that makes the value; None for a program input."""
        return self._producers.get(value)

    @cached_property
    def _producers(self) -> dict[str, tuple[int, int]]:
        return {value: (i, j) for i, call in enumerate(self.calls) for j, value in enumerate(call.outputs)}

    @property
    def parameter_count(self) -> Size:
        return sum(sympy.prod(s.spec.shape) for s in self.state.values() if s.kind == "parameter")
