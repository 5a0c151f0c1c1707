"""The blocks of a model that may repeat: which modules those are, and how their code can be watched."""

from __future__ import annotations

import abc
import inspect
import sys
import types
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autopar.tracer.appearance import Look, Looks, Unclear, surroundings
from autopar.tracer.replica import OWN_TABLES

TORCH = str(Path(torch.__file__).parent)
LISTS = (nn.ModuleList, nn.ModuleDict)
CONTAINERS = (*LISTS, nn.Sequential)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
EVERYTHING = "*"
"""The name that stands for all attributes of a module, where code looks into its `__dict__`."""

Key = tuple[str, str]
"""(module path within the block, attribute)."""


@dataclass(kw_only=True)
class Block:
    """A module that may be the same as others of its `kind`; `parts` are the modules in it by path, "" being itself.

    `originals` are its parameters and buffers by name, aliases too, as they are outside of a trace. The tables of parameters
    of a `sealed` block are empty.
    """

    module: nn.Module
    path: str
    kind: Hashable
    parts: dict[str, nn.Module] = field(init=False)
    classes: dict[str, type] = field(init=False)
    originals: dict[str, Tensor] = field(init=False)
    sealed: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.parts = dict(self.module.named_modules(remove_duplicate=False))
        self.classes = {path: type(part) for path, part in self.parts.items()}
        self.originals = self.state()

    @cached_property
    def surroundings(self) -> list[tuple[dict[str, Any], str]]:
        held = (value for part in self.parts.values() for value in own(part).values())
        return surroundings(set(self.classes.values()), [value for value in held if callable(value)])

    def state(self) -> dict[str, Tensor]:
        """Its parameters and buffers as they are now, by name within the block, aliases too; in a trace these are fake."""
        return {
            f"{path}.{name}".removeprefix("."): tensor
            for path, part in self.parts.items()
            for name, tensor in (*part._parameters.items(), *part._buffers.items())
            if tensor is not None
        }

    def attributes(self) -> dict[Key, Look]:
        """How every attribute looks that is no parameter, buffer or module; raises Unclear."""
        if list(self.parts.values()) != [part for _, part in self.module.named_modules(remove_duplicate=False)]:
            raise Unclear(f"other modules in {self.path}")
        looks = Looks({id(part): path for path, part in self.parts.items()})
        found = {}
        for path, part in self.parts.items():
            for name, value in own(part).items():
                if name == "training" or name not in OWN_TABLES:
                    found[path, name] = looks.of(value)
                elif path and name in HOOKS and value:
                    raise Unclear(f"a hook in {self.path}.{path}")
        return found

    def containers(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> set[int]:
        """The ids of the lists and dicts that its arguments and attributes are or hold."""
        tables = [value for part in self.parts.values() for name, value in own(part).items() if name not in OWN_TABLES]
        return containers([args, kwargs, *tables])


def find(root: nn.Module) -> list[Block]:
    """The modules worth a look: members of containers, and siblings that are built alike; outer ones first."""
    found: dict[int, Block] = {}
    for parent_path, parent in root.named_modules():
        kinds = {name: built(child) for name, child in parent.named_children()}
        for name, kind in kinds.items():
            child = parent.get_submodule(name)
            several = sum(other == kind for other in kinds.values()) > 1
            own_leaf = several and not type(child).__module__.startswith("torch.")
            inside = isinstance(parent, CONTAINERS)
            worth = (inside or several) if any(child.children()) else (inside and own_leaf)
            if worth and not isinstance(child, LISTS) and id(child) not in found and is_open(child):
                found[id(child)] = Block(module=child, path=f"{parent_path}.{name}".removeprefix("."), kind=kind)
    return list(found.values())


def built(module: nn.Module) -> Hashable:
    """Classes, names, shapes and dtypes of all that is in a module."""
    described = []
    for path, part in module.named_modules(remove_duplicate=False):
        tensors = tuple(
            (name, None if t is None else (type(t), tuple(t.shape), t.stride(), t.dtype, t.device, t.requires_grad))
            for name, t in (*part._parameters.items(), *part._buffers.items())
        )
        described.append((path, type(part), tensors))
    return tuple(described)


def is_open(module: nn.Module) -> bool:
    """Whether a subclass can take the place of the module's class."""
    kind = type(module)
    special = any("__init_subclass__" in vars(base) and not _known(base) for base in kind.__mro__[:-1])
    plain = isinstance(inspect.getattr_static(kind, "forward"), types.FunctionType) and "forward" not in vars(module)
    return type(kind) in (type, abc.ABCMeta) and not special and plain


def _known(kind: type) -> bool:
    """Whose `__init_subclass__` is known to keep no list of subclasses: GradientCheckpointingLayer wraps `forward` in it."""
    return kind.__module__.split(".")[0] in ("torch", "transformers")


def become(module: nn.Module, methods: dict[str, Any]) -> None:
    """Make the module, which is one of ours, an instance of a subclass of its class that has these methods too."""
    object.__setattr__(module, "__class__", derived(type(module), methods))


def derived(kind: type, methods: dict[str, Any], *before: type) -> type:
    """A subclass that looks like the class but for these methods; `before` are bases whose methods come before its own."""
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    metaclass: Any = type(kind)
    made: type = metaclass(kind.__name__, (*before, kind), names | methods)
    return made


@dataclass(frozen=True)
class Differences:
    """In what the attributes of blocks of one kind differ: `parts` are the paths of the modules that do.

    `groups` (by id of the block) are equal for blocks that differ at most in what is different in each, such as a number.
    """

    parts: frozenset[str]
    groups: dict[int, Hashable]

    @classmethod
    def among(cls, blocks: list[Block]) -> Differences:
        """Raises Unclear."""
        looks = [block.attributes() for block in blocks]
        keys = {key: None for look in looks for key in look}
        values = {key: [look.get(key) for look in looks] for key in keys}
        several = {key: len(set(found)) for key, found in values.items() if any(look != found[0] for look in found)}
        telling = [key for key, count in several.items() if count < len(blocks)]
        groups: dict[int, Hashable] = {id(block): tuple(values[key][i] for key in telling) for i, block in enumerate(blocks)}
        return cls(frozenset(path for path, _ in several), groups)


def record_reads(module: nn.Module, note: Callable[[int, str], None]) -> None:
    """From now on `note(id of the module's __dict__, name)` is called for every attribute that code reads of the module."""
    kind = type(module)
    if not is_open(module) or any("__getattribute__" in vars(base) for base in kind.__mro__ if base is not object):
        note(id(own(module)), EVERYTHING)
        return

    def __getattribute__(this: Any, name: str) -> Any:
        if name != "__dict__":
            note(id(own(this)), name)
        elif not sys._getframe(1).f_code.co_filename.startswith(TORCH):
            note(id(own(this)), EVERYTHING)
        return kind.__getattribute__(this, name)

    become(module, {"__getattribute__": __getattribute__})


def own(module: nn.Module) -> dict[str, Any]:
    """The module's `__dict__`, read unnoticed."""
    return object.__getattribute__(module, "__dict__")  # type: ignore[no-any-return]


def containers(values: list[Any]) -> set[int]:
    """The ids of the lists and dicts among these values and inside them."""
    found: set[int] = set()
    seen: set[int] = set()
    todo = list(values)
    while todo:
        value = todo.pop()
        if isinstance(value, list | tuple | dict) and id(value) not in seen:
            seen.add(id(value))
            found |= set() if isinstance(value, tuple) else {id(value)}
            todo += value.values() if isinstance(value, dict) else value
    return found
