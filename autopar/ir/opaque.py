"""Modules of which a Program has one node: classes that were given a rule, and their instances without their weights.

The op of such a class gets what its forward gets, then parameters and buffers, and a key that says which instance it is:
instances of equal attributes have equal keys, and their layers stay one region. What is kept of an instance holds no tensors.
"""

from __future__ import annotations

import copy
import enum
import functools
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autopar.errors import RuleError

OWN_TABLES = frozenset(vars(nn.Module())) - {"training"}
ATOMS = (type(None), bool, int, float, str, bytes, enum.Enum, torch.dtype, torch.device, range, slice)
DEPTH = 5


@dataclass(frozen=True, kw_only=True)
class Opaque:
    """A class with a rule. `state`: its parameters and buffers in the rule's order, or None for all in torch's order; `op`
    gives the op for so many of them; `bind` the arguments of a call of forward, defaults included, in order."""

    kind: type[nn.Module]
    state: tuple[str, ...] | None
    op: Callable[[tuple[str, ...]], Any]
    bind: Callable[..., tuple[Any, ...]]


CLASSES: dict[type, Opaque] = {}
INSTANCES: dict[str, nn.Module] = {}
"""By key."""


def opaque_of(module: nn.Module) -> Opaque | None:
    """Of the module's class, or of one that it inherits both rule and forward from."""
    kind = type(module)
    for base in kind.__mro__:
        if base in CLASSES:
            return CLASSES[base] if kind.forward is base.forward else None  # type: ignore[attr-defined]
    return None


def state_of(opaque: Opaque, module: nn.Module) -> tuple[str, ...]:
    """Names of the parameters and buffers that the op gets; raises RuleError if the rule forgets one, or names none."""
    held = {id(tensor): name for name, tensor in reversed(list(named_state(module)))}
    if opaque.state is None:
        return tuple(dict.fromkeys(held[id(tensor)] for _, tensor in named_state(module)))
    kind, all_names = opaque.kind.__name__, dict(named_state(module))
    for name in opaque.state:
        if name not in all_names:
            raise RuleError(f"the rule of {kind} names {name!r}, which is none of its tensors: {', '.join(all_names)}")
    said = {id(all_names[name]) for name in opaque.state}
    if missing := [name for name, tensor in all_names.items() if id(tensor) not in said]:
        raise RuleError(f"the rule of {kind} leaves out {missing[0]!r}: name all its parameters and buffers in `params`")
    return opaque.state


def named_state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def remember(opaque: Opaque, module: nn.Module, path: str) -> str:
    """The key of an instance, which is kept without its tensors; `path` is where it is in its model."""
    try:
        look = "\n".join(attributes(module))
    except Unclear:
        look = f"at {path}"
    key = f"{opaque.kind.__name__}_{hashlib.sha256(f'{opaque.kind.__module__} {look}'.encode()).hexdigest()[:12]}"
    if key not in INSTANCES or look.startswith("at "):
        INSTANCES[key] = without_tensors(opaque, module)
    return key


def without_tensors(opaque: Opaque, module: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers have no data, and that calls no hooks; raises RuleError if it cannot be copied."""
    memo: dict[int, Any] = {}
    for _, tensor in named_state(module):
        empty = torch.empty_like(tensor, device="meta", requires_grad=False)
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty
    try:
        found = copy.deepcopy(module, memo)
    except Exception as error:
        raise RuleError(f"{opaque.kind.__name__} has a rule, but an attribute that cannot be copied: {error}") from error
    for hooks in (found._forward_hooks, found._forward_pre_hooks):
        hooks.clear()
    return found


def run(names: tuple[str, ...], arguments: tuple[str, ...], key: str, *given: Any) -> Any:
    """Forward of an instance on what its op got: arguments of forward, then tensors in the places of its own."""
    inputs, state = given[: len(arguments)], given[len(arguments) :]
    tensors = dict(zip(names, state, strict=True))
    return torch.func.functional_call(INSTANCES[key], tensors, (), dict(zip(arguments, inputs, strict=True)))


def tensor_at(module: nn.Module, name: str) -> Any:
    """The parameter or buffer of a dotted name, read as code reads it."""
    return functools.reduce(getattr, name.split("."), module)


class Unclear(Exception):
    """An attribute whose content cannot be said as text."""


def attributes(module: nn.Module) -> Iterator[str]:
    """What its code may read, but tensors: classes, modes, and attributes as text. Raises Unclear."""
    for path, part in module.named_modules(remove_duplicate=False):
        yield f"{path} {type(part).__module__}.{type(part).__qualname__}"
        held = [*part._parameters.items(), *part._buffers.items()]
        yield " ".join(name for name, tensor in held if tensor is not None)
        for name, value in sorted(vars(part).items()):
            if name not in OWN_TABLES:
                yield f"{name} {look(value)}"


def look(value: Any, depth: int = DEPTH) -> str:
    """The same text in every process for values that code cannot tell apart; raises Unclear."""
    if isinstance(value, ATOMS):
        return f"{type(value).__name__} {value!r}"
    if depth == 0 or isinstance(value, Tensor | nn.Module):
        raise Unclear
    if isinstance(value, dict):
        return f"{type(value).__name__} {[(look(k, depth - 1), look(v, depth - 1)) for k, v in value.items()]}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} {[look(v, depth - 1) for v in value]}"
    if isinstance(value, set | frozenset):
        return f"{type(value).__name__} {sorted(look(v, depth - 1) for v in value)}"
    if isinstance(value, type) or (callable(value) and getattr(value, "__closure__", 0) is None):
        return f"{value.__module__}.{value.__qualname__}"
    if type(getattr(value, "__dict__", None)) is dict and not callable(value):
        return f"{type(value).__qualname__} {look(vars(value), depth - 1)}"
    raise Unclear
