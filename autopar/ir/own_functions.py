"""An `autograd.Function` as an op: a Program has one node for each use of it, and its own backward stays its own.

The op takes the tensors and the numbers that the function is called with; anything else is a part of the op. Backward calls the
function again, as of every op of `own_ops`, and goes back through it. What such an op may be cut along is discovered.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils.flop_counter import FlopCounterMode

from autopar.ir.opaque import look
from autopar.ir.own_ops import SIMPLE, define, register_flops
from autopar.torch_private import OpOverload, pytree

OPS: dict[tuple[type[Function], tuple[str, ...], int], OpOverload] = {}
KINDS: dict[Any, type[Function]] = {}
"""Of these ops, what they run."""


@dataclass(frozen=True, kw_only=True)
class Use:
    """A function with what is given to it. `pattern` has one word per argument: which of them the op takes, and as what, and
    the others as text."""

    kind: type[Function]
    given: tuple[Any, ...]
    pattern: tuple[str, ...]

    def op(self, results: int) -> OpOverload:
        """That of all uses of the function that differ in tensors and numbers only."""
        key = self.kind, self.pattern, results
        if key not in OPS:
            OPS[key] = own_op(self, results)
        return OPS[key]

    @property
    def taken(self) -> tuple[Any, ...]:
        return tuple(value for value, word in zip(self.given, self.pattern, strict=True) if word in TYPES)

    @property
    def name(self) -> str:
        text = " ".join((self.kind.__module__, *self.pattern))
        return f"{self.kind.__qualname__.rpartition('<locals>.')[2]}_{hashlib.sha256(text.encode()).hexdigest()[:6]}"


TYPES: dict[str, type] = {"tensor": Tensor, **{kind.__name__: kind for kind in SIMPLE}}
"""What an op takes, by the word for it."""


def use_of(kind: type[Function], given: Sequence[Any]) -> Use:
    """Raises `opaque.Unclear` for an argument that is neither taken by ops nor can be said as text."""
    return Use(kind=kind, given=tuple(given), pattern=tuple(map(word_of, given)))


def word_of(value: Any) -> str:
    if isinstance(value, Tensor):
        return "tensor"
    if isinstance(value, torch.SymInt):
        return "int"
    return type(value).__name__ if type(value) in SIMPLE else look(value)


def is_function(given: Any) -> bool:
    return isinstance(given, type) and issubclass(given, Function)


def tensors_of(returned: Any) -> tuple[Tensor, ...]:
    return tuple(leaf for leaf in pytree.tree_leaves(returned) if isinstance(leaf, Tensor))


def own_op(use: Use, results: int) -> OpOverload:
    """A new op for uses like this one."""
    types = {f"argument_{i}": TYPES[word] for i, word in enumerate(use.pattern) if word in TYPES}
    parameters = {n: inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=t) for n, t in types.items()}
    constants = [None if word in TYPES else value for value, word in zip(use.given, use.pattern, strict=True)]
    run = functools.partial(called, use.kind, tuple(constants), tuple(word in TYPES for word in use.pattern))
    op: OpOverload = define(use.name, run, parameters, results, functools.partial(fake, run), checked=False)._opoverload
    count_flops(op, run)
    KINDS[op] = use.kind
    return op


def called(kind: type[Function], constants: tuple[Any, ...], taken: tuple[bool, ...], *given: Any) -> tuple[Tensor, ...]:
    """The tensors that the function returns for what its op is given."""
    values = iter(given)
    args = [next(values) if is_taken else constant for constant, is_taken in zip(constants, taken, strict=True)]
    return tensors_of(kind.apply(*args))  # type: ignore[no-untyped-call]


def fake(run: Callable[..., tuple[Tensor, ...]], *given: Any) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return tuple(x.new_empty(x.shape) for x in run(*given))


def count_flops(op: OpOverload, run: Callable[..., tuple[Tensor, ...]]) -> None:
    """Tell torch those of the ops inside."""

    def forward(*given: Any, out_val: Any = None) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run(*given)
        return int(counter.get_total_flops())

    register_flops(op, forward, get_raw=True)
