"""What Python code can see of a value, as something that can be compared: equal looks, equal behaviour.

Plain values look like themselves, containers and objects like their content, everything else like nothing but itself.
"""

from __future__ import annotations

import contextvars
import enum
import functools
import logging
import re
import sys
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Hashable, Iterable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, nn

from autopar.torch_private import size_of

Look = Hashable

ATOMS = (type(None), bool, int, str, bytes, type(Ellipsis), range, slice)
TORCH_ATOMS = (torch.dtype, torch.device, torch.layout, torch.memory_format)
SEQUENCES = (list, tuple, deque, torch.Size)
MAPPINGS = (dict, OrderedDict, defaultdict, types.MappingProxyType)
SETS = (set, frozenset)
DEPTH = 6
"""Objects nested deeper than this look like themselves only."""

FIXED = (object, re.Pattern, type(NotImplemented), contextvars.ContextVar)
"""Without attributes, and without a state that matters."""

LARGEST = 4096
"""Entries of a container that can be looked at at every call."""

FOREIGN = {"torch", "numpy", *sys.stdlib_module_names} - {"__main__"}
"""Whose code is not followed."""

FUNCTIONS = 400
"""Of so many functions that a block may reach the global names are watched."""


class Unclear(Exception):
    """There is too much to look at, or a state that cannot be seen."""


class Same:
    """Looks like nothing but this very object, which is kept alive."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


class Looks:
    """Looks of values at one moment; an object that occurs twice is looked at once."""

    def __init__(self, modules: dict[int, str] | None = None) -> None:
        self.modules = modules or {}
        self.known: dict[int, Look] = {}
        self.kept: list[Any] = []

    def of(self, value: Any, depth: int = DEPTH) -> Look:
        kind = type(value)
        if kind in ATOMS or kind in TORCH_ATOMS:
            return kind, str(value) if kind is slice else value
        if kind in (float, complex):
            return kind, repr(value)
        if isinstance(value, torch.SymInt):
            return "size", size_of(value)
        if isinstance(value, enum.Enum):
            return kind, value.name
        if isinstance(value, type | types.ModuleType | ModuleSpec | Tensor | logging.Logger | PurePath):
            return Same(value)
        if id(value) in self.known:
            return self.known[id(value)]
        self.known[id(value)] = Same(value)  # seen again inside itself
        self.kept.append(value)
        self.known[id(value)] = look = self._inside(value, depth)
        return look

    def _inside(self, value: Any, depth: int) -> Look:
        if isinstance(value, nn.Module):
            return ("module", self.modules[id(value)]) if id(value) in self.modules else Same(value)
        if isinstance(value, types.MethodType):
            return "method", Same(value.__func__), self.of(value.__self__, depth - 1)
        if depth == 0:
            return Same(value)
        kind, inner = type(value), depth - 1
        own = getattr(value, "__dict__", None)
        content: list[Any] = []
        if isinstance(value, (*SEQUENCES, *MAPPINGS, *SETS)):
            if len(value) > LARGEST:
                raise Unclear(f"a {kind.__name__} of {len(value)}")
            pairs = value.items() if isinstance(value, MAPPINGS) else value
            looks = [self.of(v, inner) for v in pairs]
            content.append(frozenset(looks) if isinstance(value, SETS) else tuple(looks))
        elif isinstance(value, types.FunctionType):
            content += [Same(value), *(self.of(cell.cell_contents, inner) for cell in value.__closure__ or () if filled(cell))]
        elif isinstance(value, functools.partial):
            content += [self.of(v, inner) for v in (value.func, value.args, value.keywords)]
        elif callable(value) or kind in FIXED or type(own) is dict:
            content.append(Same(value))
        else:
            raise Unclear(f"a {kind.__name__}")
        if type(own) is dict:
            content += [(k, self.of(v, inner)) for k, v in own.items()]
        return kind, *content


def surroundings(classes: Iterable[type], functions: Iterable[Any]) -> list[tuple[dict[str, Any], str]]:
    """(namespace, name) of the globals and class attributes that these functions and methods mention, and what they call.

    Code of torch, numpy and Python itself is not followed.
    """
    watched: dict[tuple[int, str], tuple[dict[str, Any], str]] = {}
    todo: list[Any] = list(functions)
    for kind in {base for c in classes for base in c.__mro__ if not _foreign(base.__module__)}:
        for name, value in vars(kind).items():
            todo.append(value)
            if _state(value) and not name.startswith("__"):
                watched[id(kind), name] = (vars(kind), name)  # type: ignore[assignment]
    seen: set[int] = set()
    while todo and len(seen) < FUNCTIONS:
        function = _function(todo.pop())
        if function is None or id(function) in seen or _foreign(function.__module__):
            continue
        seen.add(id(function))
        todo += [getattr(function, "__wrapped__", None)]
        todo += [cell.cell_contents for cell in function.__closure__ or () if filled(cell)]
        names = set(_names(function.__code__))
        for name in names & function.__globals__.keys():
            value = function.__globals__[name]
            todo.append(value)
            if _state(value):
                watched[id(function.__globals__), name] = (function.__globals__, name)
            if isinstance(value, types.ModuleType) and not _foreign(value.__name__):
                for inner in names & vars(value).keys():
                    todo.append(vars(value)[inner])
                    if _state(vars(value)[inner]):
                        watched[id(vars(value)), inner] = (vars(value), inner)
    return list(watched.values())


def _state(value: Any) -> bool:
    """Whether a global of this value could differ between two calls."""
    plain = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, logging.Logger)
    fixed = (*plain, classmethod, staticmethod, property)
    return not isinstance(value, fixed) and not callable(getattr(value, "__get__", None))


def _function(value: Any) -> types.FunctionType | None:
    if isinstance(value, classmethod | staticmethod | types.MethodType):
        value = value.__func__
    if isinstance(value, property):
        value = value.fget
    while isinstance(value, functools.partial):
        value = value.func
    value = getattr(value, "__wrapped__", value) if not isinstance(value, types.FunctionType) else value
    return value if isinstance(value, types.FunctionType) else None


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _foreign(module: str | None) -> bool:
    return module is None or module.split(".")[0] in FOREIGN


def filled(cell: types.CellType) -> bool:
    """Whether a name that a closure holds has a value yet."""
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
