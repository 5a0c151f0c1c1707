"""What mixed precision makes of a profiled model: which tensors change, and the bytes of copies and gradient buffers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from autopar.errors import InputError
from autopar.ir.precision import Precision

Parameter = tuple[tuple[int, ...], torch.dtype]


@dataclass(frozen=True)
class ModelPrecision:
    """A model under a precision, of which `parameters`, `compute` and `reduce` count.

    Parameters that rest in another dtype than they are computed with have a copy in that one, kept for the whole step;
    gradients that are added up in another one have buffers that rest.
    """

    model: nn.Module
    precision: Precision

    def __post_init__(self) -> None:
        if self.precision.output is not None or not self.precision.cast_inputs:
            raise InputError(
                f"precision {self.precision}: a profile knows parameters, compute and reduce; leave the others to plans"
            )

    @cached_property
    def cast(self) -> dict[torch.dtype, torch.dtype]:
        """Which dtypes of the model's tensors and inputs become which when it runs."""
        compute = self.precision.dtype("compute")
        if compute is None:
            return {}
        return {t.dtype: compute for t in (*self.model.parameters(), *self.model.buffers()) if t.is_floating_point()}

    @cached_property
    def parameters(self) -> list[tuple[Parameter, bool]]:
        """(shape, dtype at rest) of each parameter, and whether it is trained."""
        rest = self.precision.dtype("parameters")
        return [
            ((tuple(p.shape), rest if rest is not None and p.is_floating_point() else p.dtype), p.requires_grad)
            for p in self.model.parameters()
        ]

    @property
    def copies_bytes(self) -> int:
        """Of the copies that the model computes with."""
        runs = zip(self.parameters, self._computing, strict=True)
        return sum(math.prod(shape) * own.itemsize for ((shape, rest), _), own in runs if rest != own)

    @property
    def computing_bytes(self) -> int:
        """Of the parameters that the model computes with, copies or not."""
        return sum(p.numel() * own.itemsize for p, own in zip(self.model.parameters(), self._computing, strict=True))

    @property
    def has_gradient_buffer(self) -> bool:
        reduce = self.precision.dtype("reduce")
        runs = zip(self.model.parameters(), self._computing, strict=True)
        return reduce is not None and {own for p, own in runs if p.requires_grad} != {reduce}

    @property
    def gradient_buffer_bytes(self) -> int:
        reduce = self.precision.dtype("reduce")
        if reduce is None or not self.has_gradient_buffer:
            return 0
        return sum(p.numel() * reduce.itemsize for p in self.model.parameters() if p.requires_grad)

    @property
    def _computing(self) -> list[torch.dtype]:
        """The dtype in which the model runs, of each parameter."""
        cast: Mapping[torch.dtype, torch.dtype] = self.cast
        return [cast.get(p.dtype, p.dtype) for p in self.model.parameters()]
