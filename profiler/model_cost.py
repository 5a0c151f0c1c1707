"""The profile of a whole program: every unit of every region type, measured once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from autopar.errors import TraceError
from autopar.ir.program import Program
from autopar.ops.units import Unit, units
from autopar.profiler.unit_cost import UnitCost, unit_cost


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A unit with its cost."""

    unit: Unit
    cost: UnitCost


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """`regions`: per region type its units in execution order. `device` is the device type that kernels were chosen for."""

    program: Program
    regions: Mapping[str, tuple[Measured, ...]]
    device: str


def measure(program: Program, device: str = "cpu") -> ModelCost:
    """Trace every unit of every region type; equal units (same ops on same shapes) are traced once."""
    known: dict[str, UnitCost] = {}
    regions = {}
    for name, region in program.regions.items():
        found = []
        for unit in units(region):
            key = signature(unit)
            if key not in known:
                known[key] = traceable_cost(unit, name, device)
            found.append(Measured(unit=unit, cost=known[key]))
        regions[name] = tuple(found)
    return ModelCost(program=program, regions=regions, device=device)


def traceable_cost(unit: Unit, region: str, device: str) -> UnitCost:
    """The unit's cost; raises TraceError where torch cannot run one of its ops, or its backward, without data."""
    try:
        return unit_cost(unit, device)
    except (RuntimeError, NotImplementedError) as error:
        ops = ", ".join(dict.fromkeys(str(n.target) for n in unit.nodes))
        reason = str(error).strip().splitlines()[0]
        raise TraceError(
            f"{unit.name} of {region} ({ops}) cannot be profiled: {reason}. Replace the op in the model, or wrap it as a "
            "custom op (torch.library.custom_op) with a fake implementation and give that a rule (autopar.op_rule)"
        ) from error


def signature(unit: Unit) -> str:
    """Text equal for units that run the same ops on the same shapes."""
    number: dict[torch.fx.Node, str] = {node: f"%o{i}" for i, node in enumerate(unit.operands)}
    lines = [f"{n.meta['val'].dtype}{n.meta['needs_grad']}{unit.dims[n]}" for n in unit.operands]
    for i, node in enumerate(unit.nodes):
        number[node] = f"%{i}"
        args = torch.fx.node.map_arg((node.args, node.kwargs), number.__getitem__)
        lines.append(f"{node.target}{args}{node in unit.results}{node in unit.dense}")
    return "\n".join([*lines, str(sorted(unit.sizes.items()))])
