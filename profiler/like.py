"""What a tensor is like: enough to make another in other memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from autopar.profiler.known import Known
from autopar.profiler.shape_tensor import Recorder, ShapeTensor
from autopar.torch_private import size_of, symbolic_mode_alone


@dataclass(frozen=True)
class Like:
    """What a tensor is like, and which slot its memory has: `slot` of what enters, or of what leaves if not `enters`."""

    shape: tuple[Any, ...]
    stride: tuple[Any, ...]
    offset: Any
    dtype: torch.dtype
    requires_grad: bool
    slot: int
    enters: bool = True

    @cached_property
    def is_whole(self) -> bool:
        """Whether it has no offset and is all of its memory, as a contiguous tensor is."""
        return isinstance(self.offset, int) and self.offset == 0 and [*map(str, self.stride)] == [*map(str, dense(self.shape))]

    @property
    def key(self) -> Any:
        sizes = [str(size_of(n)) for n in (*self.shape, *self.stride, self.offset)]
        return (*sizes, self.dtype, self.requires_grad, self.slot)


def like(tensor: Any, slot: int, enters: bool = True) -> Like:
    stride, offset = tuple(tensor.stride()), tensor.storage_offset()
    return Like(tuple(tensor.shape), stride, offset, tensor.dtype, tensor.requires_grad, slot, enters)


def extent(wanted: Like) -> Any:
    """Elements of memory that a view like that spans."""
    return sum((n - 1) * s for n, s in zip(wanted.shape, wanted.stride, strict=True)) + wanted.offset + 1


def dense(shape: Sequence[Any]) -> tuple[Any, ...]:
    """Strides of a contiguous tensor."""
    strides: list[Any] = []
    step: Any = 1
    for size in reversed(shape):
        strides.insert(0, step)
        step = step * size
    return tuple(strides)


def view(recorder: Recorder, base: Tensor, wanted: Like, known: Known | None = None) -> ShapeTensor:
    with symbolic_mode_alone(recorder.sizes.mode):
        return ShapeTensor(torch.as_strided(base, wanted.shape, wanted.stride, wanted.offset), known)
