"""Dims of the inputs that may change: named by the user, symbols in every shape."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sympy
import torch
from torch import nn
from torch.export import Dim

from autopar.errors import InputError, TraceError
from autopar.torch_private import pytree
from autopar.tracer.symbols import rename_symbols

if TYPE_CHECKING:
    from autopar.tracer.capture import Captured

DynamicLike = Mapping[str, int | Mapping[str, int]]


@dataclass(frozen=True)
class Dynamic:
    """Names of dims: `{"batch": 0}` is that dim of every input tensor that has it, `{"batch": {"x": 0}}` of input x only."""

    names: DynamicLike

    def __post_init__(self) -> None:
        for name, where in self.names.items():
            dims = where.values() if isinstance(where, Mapping) else [where]
            if not name.isidentifier() or not all(isinstance(d, int) and d >= 0 for d in dims):
                raise InputError(
                    f"dynamic dim {name!r}: {where!r} is neither a dim (0, 1, ...) nor a mapping of inputs to dims"
                )

    def marks(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[dict[int, str]]:
        """For each flattened input its dynamic dims, by name; raises InputError for an input or dim that does not exist."""
        leaves = [leaf for _, leaf in _named_leaves(model, args, kwargs)]
        marks: list[dict[int, str]] = [{} for _ in leaves]
        inputs = {name for name, _ in _named_leaves(model, args, kwargs)}
        for dim_name, where in self.names.items():
            if isinstance(where, Mapping) and (unknown := sorted(set(where) - inputs)):
                known = ", ".join(sorted(inputs))
                raise InputError(
                    f"dynamic dim {dim_name!r} names {unknown[0]!r}, which is no example input; those are: {known}"
                )
            sizes = set()
            for mark, (name, leaf) in zip(marks, _named_leaves(model, args, kwargs), strict=True):
                dim = where.get(name) if isinstance(where, Mapping) else where
                if isinstance(leaf, torch.Tensor) and dim is not None and dim < leaf.ndim:
                    if dim in mark:
                        raise InputError(f"dim {dim} of input {name!r} is named both {mark[dim]!r} and {dim_name!r}")
                    mark[dim] = dim_name
                    sizes.add(int(leaf.shape[dim]))
            if not sizes:
                raise InputError(f"no example input has the dim that {dim_name!r}: {where!r} names")
            if len(sizes) > 1:
                raise InputError(f"the example inputs give {dim_name!r} the sizes {sorted(sizes)}; name these dims differently")
            if min(sizes) < 2:
                raise InputError(f"the example size of dynamic dim {dim_name!r} is {min(sizes)}; give at least 2")
        return marks

    def shapes(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """What `torch.export` takes as `dynamic_shapes`."""
        if not self.names:
            return None
        marks = [dict.fromkeys(mark, Dim.DYNAMIC) or None for mark in self.marks(model, args, kwargs)]
        marked_args, marked_kwargs = pytree.tree_unflatten(marks, pytree.tree_structure((args, kwargs)))
        signature = inspect.signature(model.forward)
        shapes = dict(signature.bind(*marked_args, **marked_kwargs).arguments)
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                shapes.update(shapes.pop(parameter.name, {}))
        return shapes

    def apply(self, captured: Captured, marks: list[dict[int, str]]) -> dict[str, sympy.Symbol]:
        """Rename torch's symbols in every value of the graph, so that a dim has one symbol wherever it occurs."""
        symbols = {name: sympy.Symbol(name, integer=True, positive=True) for name in self.names}
        nodes = {node.name: node for node in captured.graph.find_nodes(op="placeholder")}
        renamed: dict[sympy.Symbol, sympy.Symbol] = {}
        for leaf, mark in zip(captured.inputs, marks, strict=True):
            for dim, name in mark.items():
                assert leaf is not None
                size = nodes[leaf].meta["val"].shape[dim]
                expression = size.node.expr if isinstance(size, torch.SymInt) else size
                if not isinstance(expression, sympy.Symbol):
                    raise TraceError(
                        f"dim {dim} of input {leaf!r} cannot be dynamic as {name!r}: the model fixes it to {expression}; "
                        "leave it out of `dynamic`, or make the code work for any size"
                    )
                renamed[expression] = symbols[name]
        if renamed:
            known: dict[
                int, tuple[Any, Any]
            ] = {}  # copies of a block share their values; the old ones are kept, so ids are safe
            for node in captured.graph.nodes:
                if "val" in node.meta:
                    val = node.meta["val"]
                    if id(val) not in known:
                        known[id(val)] = val, rename_symbols(val, renamed)
                    node.meta["val"] = known[id(val)][1]
        return symbols


def _named_leaves(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[str, Any]]:
    """(name of the argument, leaf) in the order of the flattened `(args, kwargs)`."""
    positional: list[str] = []
    for parameter in inspect.signature(model.forward).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            positional += [parameter.name] * (len(args) - len(positional))
        elif parameter.kind is not parameter.VAR_KEYWORD:
            positional.append(parameter.name)
    pairs = [*zip(positional, args, strict=False), *kwargs.items()]
    return [(name, leaf) for name, value in pairs for leaf in pytree.tree_leaves(value)]
