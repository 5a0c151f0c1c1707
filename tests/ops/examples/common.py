"""Calls that ops of many families share the shape of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from autopar.ops.proof import Call
from tests.ops.pick import DTYPE, Pick

Example = Callable[[Pick], Call]
Examples = dict[Any, Example]


def along_one(target: Any, *after: Any) -> Example:
    """Ops of (x, dim, ...) that work along a dim."""

    def example(p: Pick) -> Call:
        rank = p.one(3, 2, 1)
        return Call(target, (p.tensor(*p.shape(rank)), p.dim(rank), *after))

    return example


def along_some(target: Any) -> Example:
    """Ops of (x, dims)."""

    def example(p: Pick) -> Call:
        rank = p.one(3, 2, 1)
        return Call(target, (p.tensor(*p.shape(rank)), p.dims(rank)))

    return example


def all_of(target: Any) -> Example:
    """Ops of (x)."""

    def example(p: Pick) -> Call:
        return Call(target, (p.tensor(*p.shape(p.one(3, 2, 1, 0))),))

    return example


def binary(target: Any, kind: str = "float", numbers: Sequence[Any] = (), **options: Any) -> Example:
    """Ops of two tensors that broadcast, or (given numbers) of a tensor and a number."""

    def example(p: Pick) -> Call:
        shape = p.shape(p.one(3, 2, 1))
        make = {"float": p.tensor, "positive": p.positive, "integer": lambda *s: p.integers(3, *s), "bool": p.flags}[kind]
        first = make(*p.one(shape, p.against(shape)))
        second = p.one(make(*shape), make(*p.against(shape)), first, *numbers)
        return Call(target, (first, second), p.one({}, options))

    return example


def unary(target: Any, *after: Any, positive: bool = False) -> Example:
    def example(p: Pick) -> Call:
        make = p.positive if positive else p.tensor
        return Call(target, (make(*p.shape(p.one(3, 2, 0))), *after))

    return example


def factory(target: Any, *after: Any) -> Example:
    def example(p: Pick) -> Call:
        return Call(target, (p.shape(p.one(2, 1, 3)), *after), {"dtype": DTYPE, "device": torch.device("cpu")})

    return example
