"""A second module tree over the same tensors: classes in it can be changed while tracing, the user's model stays as it is."""

from __future__ import annotations

import functools
import sys
import types
import weakref
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from autopar.tracer.appearance import filled

OWN_TABLES = tuple(vars(nn.Module()))
"""Attributes of every module: tables of parameters, buffers, modules and hooks, and `training`."""

CONTAINERS = (list, tuple, dict, set, OrderedDict)


class NotReplicable(Exception):
    """Some object refers to modules of the tree in a way that a copy of the tree would not follow."""


def replicate(model: nn.Module) -> nn.Module:
    """The same module tree as new objects of the same classes; all tensors and most other objects are shared.

    What refers to modules of the tree (containers, bound methods, partials among the attributes) refers to the new ones, and
    containers that only the tree refers to are copied, so that what its code puts there stays out of the user's.
    Raises NotReplicable for what cannot be followed: closures, weak references, modules in slots, scripted modules.
    """
    return _Replica(model).module(model)  # type: ignore[no-any-return]


class _Replica:
    def __init__(self, model: nn.Module) -> None:
        self.tree = {id(module) for module in model.modules()}
        self.tensors = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self.made: dict[int, Any] = {}
        alone = min(_other_references([{"a list": []}]).values())
        found = _other_references([vars(module) for module in model.modules()])
        self.own = {key for key, count in found.items() if count <= alone}

    def module(self, module: nn.Module) -> Any:
        if id(module) in self.made:
            return self.made[id(module)]
        kind = type(module)
        if isinstance(module, torch.fx.GraphModule | torch.jit.ScriptModule):
            raise NotReplicable(f"{kind.__name__} is code that was made from a module")
        if any(vars(base).get("__slots__") for base in kind.__mro__):
            raise NotReplicable(f"{kind.__name__} has slots")
        copy = self.made[id(module)] = object.__new__(kind)
        for name, value in vars(module).items():
            table = name in OWN_TABLES and isinstance(value, dict | set)
            vars(copy)[name] = self._rebuilt(value) if table else self.value(value)
        return copy

    def value(self, value: Any) -> Any:
        """The value itself, or one like it that refers to the new modules."""
        if id(value) in self.made:
            return self.made[id(value)]
        if id(value) in self.tree:
            return self.module(value)
        if type(value) in CONTAINERS and (id(value) in self.own or self._refers(value)):
            copy = self._rebuilt(value)
        elif isinstance(value, types.MethodType) and self._refers(value.__self__):
            copy = types.MethodType(value.__func__, self.value(value.__self__))
        elif type(value) is functools.partial and self._refers((value.func, value.args, value.keywords)):
            copy = functools.partial(self.value(value.func), *map(self.value, value.args), **self.value(dict(value.keywords)))
        elif self._hides(value):
            raise NotReplicable(f"a {type(value).__name__} holds on to a module")
        else:
            return value
        self.made[id(value)] = copy
        return copy

    def _rebuilt(self, value: Any) -> Any:
        if isinstance(value, dict):
            return type(value)((key, self.value(v)) for key, v in value.items())
        return type(value)(self.value(v) for v in value)

    def _refers(self, value: Any, depth: int = 4) -> bool:
        """Whether a module or a parameter of the tree is found in there."""
        if id(value) in self.tree or id(value) in self.tensors:
            return True
        if depth == 0:
            return False
        if type(value) in CONTAINERS:
            inner = value.values() if isinstance(value, dict) else value
            return any(self._refers(v, depth - 1) for v in inner)
        if isinstance(value, types.MethodType):
            return self._refers(value.__self__, depth - 1)
        if type(value) is functools.partial:
            return self._refers((value.func, value.args, value.keywords), depth - 1)
        return self._hides(value)

    def _hides(self, value: Any) -> bool:
        """Whether a function's closure or a weak reference leads to a module of the tree."""
        if isinstance(value, weakref.ref):
            return id(value()) in self.tree
        cells = value.__closure__ or () if isinstance(value, types.FunctionType) else ()
        return any(self._refers(cell.cell_contents, 2) for cell in cells if filled(cell))


def _other_references(tables: list[dict[str, Any]]) -> dict[int, int]:
    """By id of every value in the tables, how often something else refers to it, and the same number more for all."""
    held: dict[int, int] = {}
    counted: dict[int, int] = {}
    for table in tables:
        for value in table.values():
            held[id(value)] = held.get(id(value), 0) + 1
            counted[id(value)] = sys.getrefcount(value)
    return {key: counted[key] - held[key] for key in held}
