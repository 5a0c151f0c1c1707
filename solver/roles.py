"""What people call a factor: batch, sequence, tensor or hidden. Only constraints, baselines and the printed plan need to know.

Batch is what dim 0 of the model's inputs runs over, sequence dim 1 of the integer ones; tensor are the other factors of
matrix products, attention, embeddings and losses; hidden is the rest. What is expanded along the batch (a mask, a bias of
positions) does not come from it: such dims get their role from where they meet it. What cuts tokens and the experts that they
travel to has a role of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest

import torch

from autopar.ir.program import Program
from autopar.ops.factors import Factor
from autopar.ops.strategies import PASS_PARTIAL, cut_by
from autopar.ops.units import Unit

BATCH, SEQUENCE, TENSOR, HIDDEN, EXPERT, PARTIAL = "batch", "sequence", "tensor", "hidden", "expert", "partial"
TENSOR_KINDS = frozenset({"matmul", "attention", "embedding", "loss"})

Labels = tuple[str | None, ...]


def role_of(choice: str | None, role: Mapping[Factor, str]) -> str | None:
    """Of what a strategy chooses on an axis, from the roles of the unit's factors."""
    cut = cut_by(choice)
    return EXPERT if len(cut) > 1 else role[cut[0]] if cut else PARTIAL if choice == PASS_PARTIAL else None


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
    spread_back(program, units, found)
    return found


def spread_back(
    program: Program, units: Mapping[str, tuple[Unit, ...]], found: Mapping[str, Mapping[str, dict[Factor, str]]]
) -> None:
    """Factors whose dims a later unit runs over as batch or sequence get that role; from the last call to the first."""
    values: dict[str, Labels] = {}
    for call in reversed(program.calls):
        region = program.regions[call.region]
        labels: dict[torch.fx.Node, Labels] = {}
        for node, value in zip(region.outputs, call.outputs, strict=True):
            labels[node] = merged(values.get(value, ()), labels.get(node, ()))
        for unit in reversed(units[call.region]):
            rename_factors(unit, found[call.region][unit.name], labels)
        for slot, value in zip(region.inputs, call.inputs, strict=True):
            values[value] = merged(values.get(value, ()), labels.get(region.nodes[slot], ()))


def rename_factors(unit: Unit, role: dict[Factor, str], labels: dict[torch.fx.Node, Labels]) -> None:
    """Roles of factors that had none of their own, from the labels of the results' dims; adds the labels of the operands."""
    for node in unit.results:
        for dim, label in zip(unit.dims[node], labels.get(node, ()), strict=False):
            if label and dim and role[dim[0]] in (HIDDEN, TENSOR) and label not in role.values():
                role[dim[0]] = label
    for node in unit.operands:
        known = tuple(role[d[0]] if d and role[d[0]] in (BATCH, SEQUENCE) else None for d in unit.dims[node])
        labels[node] = merged(labels.get(node, ()), known)


def merged(first: Labels, second: Labels) -> Labels:
    """Per dim the first label that is known."""
    return tuple(a or b for a, b in zip_longest(first, second))


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
