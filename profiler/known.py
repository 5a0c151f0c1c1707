"""Values that can be known without weights or data: what a model computes of sizes alone, or of inputs that came with data.

Model code branches on such values ("is anything masked?", "is this one sequence?"). A tensor remembers how it was made, and
only when the code asks for a number is it computed, at the example sizes. Where it asks whether numbers are finite, they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from autopar.ir.finite import found_if_finite
from autopar.torch_private import example_of, pytree

LARGEST = 1 << 24
"""Elements of the largest tensor that is computed to answer such a question."""


class Unknown(Exception):
    """The value depends on data that nobody gave."""


@dataclass(eq=False)
class Known:
    """How a tensor was made: `func` of `args`, in which other Knowns stand for tensors; or a value that came with data."""

    func: Any = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    value: Any = None

    def compute(self) -> Any:
        if self.value is None:
            args, kwargs = pytree.tree_map(_resolved, (self.args, self.kwargs))
            self.value = self.func(*args, **kwargs)
            self.args, self.kwargs = (), {}
        return self.value


def if_finite(func: Any, args: tuple[Any, ...]) -> Known | None:
    """What a check for numbers that are not finite finds if there are none; None of any other op."""
    found = found_if_finite(func, args)
    return None if found is None else Known(torch.full, (list(args[0].shape), found))


def part(whole: Known, index: int) -> Known:
    """One of several results of an op."""
    return Known(lambda results: results[index], (whole,))


def _resolved(leaf: Any) -> Any:
    if isinstance(leaf, Known):
        return leaf.compute()
    if isinstance(leaf, torch.Tensor):
        raise Unknown
    return example_of(leaf)


def is_function(func: Any) -> bool:
    """Whether calling it again gives the same: no random numbers, nothing written."""
    return torch.Tag.nondeterministic_seeded not in func.tags and not func._schema.is_mutable
