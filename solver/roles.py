"""What people call a factor: batch, sequence, tensor or hidden. Only the baselines and the printed plan need to know.

Batch is what dim 0 of the model's inputs runs over, sequence dim 1 of the integer ones; tensor are the other factors of
matrix products, attention, embeddings and losses; hidden is the rest.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from autopar.ir.program import Program
from autopar.ops.factors import Factor
from autopar.ops.units import Unit

BATCH, SEQUENCE, TENSOR, HIDDEN = "batch", "sequence", "tensor", "hidden"
TENSOR_KINDS = frozenset({"matmul", "attention", "embedding", "loss"})

Labels = tuple[str | None, ...]


def roles(program: Program, units: Mapping[str, tuple[Unit, ...]]) -> dict[str, dict[str, dict[Factor, str]]]:
    """region -> unit -> factor -> role, found by following the dims of the inputs through the program."""
    values: dict[str, Labels] = {}
    for name in filter(None, program.inputs):
        spec = program.values[name]
        rank = len(spec.shape)
        names: list[str | None] = [BATCH, SEQUENCE] if not spec.dtype.is_floating_point and rank <= 2 else [BATCH]
        values[name] = tuple((names + [None] * rank)[:rank])
    found: dict[str, dict[str, dict[Factor, str]]] = {}
    for call in program.calls:
        region = program.regions[call.region]
        labels = {region.nodes[slot]: values.get(value, ()) for slot, value in zip(region.inputs, call.inputs, strict=True)}
        named = {unit.name: name_factors(unit, labels) for unit in units[call.region]}
        found.setdefault(call.region, named)
        for node, value in zip(region.outputs, call.outputs, strict=True):
            values[value] = labels.get(node, ())
    return found


def name_factors(unit: Unit, labels: dict[torch.fx.Node, Labels]) -> dict[Factor, str]:
    """Roles of a unit's factors from the labels of its operands' dims; adds the labels of its results."""
    role: dict[Factor, str] = {}
    for node in unit.operands:
        for dim, label in zip(unit.dims[node], labels.get(node, ()), strict=False):
            if label and dim:
                role.setdefault(dim[0], label)
    for factor in unit.sizes:
        role.setdefault(factor, TENSOR if unit.kind in TENSOR_KINDS else HIDDEN)
    for node in unit.results:
        labels[node] = tuple(role[d[0]] if d and role[d[0]] in (BATCH, SEQUENCE) else None for d in unit.dims[node])
    return role
