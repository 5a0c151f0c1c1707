"""What of a batch one device needs: the rows that any of its inputs is cut to, and of these each input's own piece."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autopar.codegen.variant import Given, Variant, Variants
from autopar.errors import InputError
from autopar.ir.placement import Placement
from autopar.ir.plan import PlannedTensor
from autopar.ir.run import zip_inputs


@dataclass(frozen=True, kw_only=True)
class Share:
    """Of batches of `rows` samples under one program: `own` are the rows that this device loads, ascending."""

    variant: Variant
    rows: int
    own: tuple[int, ...]

    @classmethod
    def of(cls, variant: Variant) -> Share | None:
        """None for a program without an input that has dims."""
        shapes = [planned.shape for planned in variant.plan.inputs.values() if planned.shape]
        if not shapes:
            return None
        rows = shapes[0][0]
        needed: set[int] = set()
        for planned in variant.plan.inputs.values():
            if planned.shape and planned.shape[0] == rows:
                needed |= set(_rows(variant, planned.placement, rows).tolist())
        return cls(variant=variant, rows=rows, own=tuple(sorted(needed)))

    def piece(self, name: str, loaded: Tensor) -> Tensor:
        """A DTensor of the whole input, from the `own` rows of it."""
        variant, planned = self.variant, self.variant.plan.inputs[name]
        if loaded.ndim and loaded.shape[0] == len(self.own) and planned.shape[0] == self.rows:
            self.require_shape(name, planned, loaded)
            position = {row: i for i, row in enumerate(self.own)}
            index = [position[row] for row in _rows(variant, planned.placement, self.rows).tolist()]
            local = loaded[index[0] : index[-1] + 1] if index == list(range(index[0], index[-1] + 1)) else loaded[index]
            local = _cut(variant, planned.placement, local, dims_from=1)
        else:
            local = _cut(variant, planned.placement, loaded, dims_from=0)
        return variant.whole(name, local)

    def require_shape(self, name: str, planned: PlannedTensor, loaded: Tensor) -> None:
        if tuple(loaded.shape[1:]) != planned.shape[1:]:
            raise InputError(
                f"input {name} is {list(loaded.shape)} for {len(self.own)} samples, the plan is for {list(planned.shape[1:])} "
                "each: pad all samples to one length, or pass whole=True to shard_loader if batches differ in it"
            )


def _rows(variant: Variant, placement: Placement, rows: int) -> Tensor:
    index = torch.arange(rows)
    for axis in placement.order:
        if placement.states[axis] == 0:
            index = index.chunk(variant.plan.mesh.sizes[axis])[variant.place[axis]]
    return index


def _cut(variant: Variant, placement: Placement, tensor: Tensor, dims_from: int) -> Tensor:
    for axis in placement.order:
        dim = placement.states[axis]
        if isinstance(dim, int) and dim >= dims_from:
            tensor = tensor.chunk(variant.plan.mesh.sizes[axis], dim)[variant.place[axis]]
    return tensor


def as_call(batch: Any) -> Given:
    """How a module is called with a batch: a mapping by name, a tuple or list by position, a tensor alone."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (tuple(batch), {}) if isinstance(batch, tuple | list) else ((batch,), {})


def named(variants: Variants, variant: Variant, batch: Any) -> dict[int, str]:
    """id of each tensor of a batch that is an input -> its name in the plan; raises InputError if they do not fit."""
    args, kwargs = as_call(batch)
    known = {n: v for n, v in kwargs.items() if n in variants.signature.parameters or n in variant.plan.inputs}
    return {id(tensor): name for name, tensor in zip_inputs(variant.program, *variants.arranged(variant, args, known))}
