"""Choices and tensors for example calls: by hypothesis, or the first of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
DTYPE = torch.float64
SIZES = (4, 6, 2, 1, 3, 12)


class Pick:
    """Chooses among alternatives, and makes tensors (the same ones each time)."""

    def __init__(self, choose: Callable[[Sequence[Any]], Any] = lambda choices: choices[0]) -> None:
        self.choose = choose
        self.generator = torch.Generator().manual_seed(3)

    def one(self, *choices: T) -> T:
        return self.choose(choices)  # type: ignore[no-any-return]

    def size(self, *choices: int) -> int:
        return self.one(*(choices or SIZES))

    def shape(self, rank: int) -> list[int]:
        return [self.size() for _ in range(rank)]

    def dim(self, rank: int) -> int:
        return self.one(*range(-1, rank)) if rank else 0

    def dims(self, rank: int) -> list[int]:
        """Some dims, at least one; each once, some counted from the end."""
        found = [d for d in range(rank) if self.one(d == rank - 1, True, False)]
        return [d - rank if self.one(False, True) else d for d in found or [0]]

    def tensor(self, *shape: int, grad: bool = True) -> Tensor:
        return torch.randn(shape, dtype=DTYPE, generator=self.generator).requires_grad_(grad)

    def positive(self, *shape: int) -> Tensor:
        return (torch.rand(shape, dtype=DTYPE, generator=self.generator) + 0.5).requires_grad_()

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self.generator)

    def flags(self, *shape: int) -> Tensor:
        return self.integers(2, *shape) == 1

    def against(self, shape: Sequence[int]) -> list[int]:
        """A shape that broadcasts against the given one."""
        kept = self.one(*range(len(shape) + 1))
        return [n if self.one(True, False) else 1 for n in shape[kept:]]
