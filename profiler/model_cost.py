"""The profile of a whole program: every unit of every region type, measured once."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from autopar.errors import TraceError
from autopar.ir.program import Program
from autopar.ops.units import Unit, units
from autopar.profiler.unit_cost import UnitCost, structure, unit_cost


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A unit with its cost."""

    unit: Unit
    cost: UnitCost


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """`regions`: per region type its units in execution order. `device` is the device type that kernels were chosen for.

    `families`: what sharded implementations cost (`strategy_cost`), filled in as meshes ask for it.
    """

    program: Program
    regions: Mapping[str, tuple[Measured, ...]]
    device: str
    families: MutableMapping[Any, Any] = field(default_factory=dict, compare=False, repr=False)


def measure(program: Program, device: str = "cpu") -> ModelCost:
    """Trace every unit of every region type; units that differ only in the sizes of what may be cut are traced once."""
    known: dict[str, UnitCost] = {}
    regions = {}
    for name, region in program.regions.items():
        found = []
        for unit in units(region):
            key = structure(unit, unit.shardable)
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
