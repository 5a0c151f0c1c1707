"""Mixed precision: in which dtypes parameters rest, the model computes, and gradients are added up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from autopar.errors import InputError

Parameter = tuple[tuple[int, ...], torch.dtype]


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Names of dtypes ("bfloat16"); None leaves what the model has.

    parameters  how they rest and are stepped; default: as the model has them
    compute     the model runs in it; default: the dtypes that it has. Parameters that rest in another one have a copy in it,
                kept for the whole step
    reduce      gradients are added to buffers of it that rest; default: they stay as backward makes them
    """

    parameters: str | None = None
    compute: str | None = None
    reduce: str | None = None

    def __post_init__(self) -> None:
        for what in ("parameters", "compute", "reduce"):
            self.dtype(what)

    @staticmethod
    def parse(text: str) -> Precision:
        """From "parameters=float32,compute=bfloat16,reduce=float32", any part left out, or one dtype to compute in."""
        parts = [part.strip() for part in text.split(",") if part.strip()]
        split = [part.partition("=") for part in parts]
        pairs = dict(((head, tail) if equals else ("compute", head) for head, equals, tail in split))
        if unknown := sorted(set(pairs) - {"parameters", "compute", "reduce"}):
            raise InputError(f"precision {text!r}: {unknown[0]!r} is none of parameters, compute, reduce")
        return Precision(**pairs)

    def dtype(self, what: str) -> torch.dtype | None:
        name = getattr(self, what)
        found = getattr(torch, name, None) if name is not None else None
        if name is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
            raise InputError(f"precision: {what}={name!r} is no floating-point dtype of torch, as float32 or bfloat16")
        return found

    def cast_of(self, model: nn.Module) -> dict[torch.dtype, torch.dtype]:
        """Which dtypes of the model's tensors and inputs become which when it runs."""
        compute = self.dtype("compute")
        if compute is None:
            return {}
        return {t.dtype: compute for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()}

    def parameters_of(self, model: nn.Module) -> list[tuple[Parameter, bool]]:
        """(shape, dtype at rest) of each parameter, and whether it is trained."""
        rest = self.dtype("parameters")
        return [
            ((tuple(p.shape), rest if rest is not None and p.is_floating_point() else p.dtype), p.requires_grad)
            for p in model.parameters()
        ]

    def copies_bytes(self, model: nn.Module) -> int:
        """Of the copies that the model computes with."""
        runs = zip(self.parameters_of(model), self._computing(model), strict=True)
        return sum(math.prod(shape) * own.itemsize for ((shape, rest), _), own in runs if rest != own)

    def computing_bytes(self, model: nn.Module) -> int:
        """Of the parameters that the model computes with, copies or not."""
        return sum(p.numel() * own.itemsize for p, own in zip(model.parameters(), self._computing(model), strict=True))

    def has_gradient_buffer(self, model: nn.Module) -> bool:
        reduce = self.dtype("reduce")
        runs = zip(model.parameters(), self._computing(model), strict=True)
        return reduce is not None and {own for p, own in runs if p.requires_grad} != {reduce}

    def gradient_buffer_bytes(self, model: nn.Module) -> int:
        reduce = self.dtype("reduce")
        if reduce is None or not self.has_gradient_buffer(model):
            return 0
        return sum(p.numel() * reduce.itemsize for p in model.parameters() if p.requires_grad)

    def _computing(self, model: nn.Module) -> list[torch.dtype]:
        """The dtype in which the model runs, of each parameter."""
        cast: Mapping[torch.dtype, torch.dtype] = self.cast_of(model)
        return [cast.get(p.dtype, p.dtype) for p in model.parameters()]
