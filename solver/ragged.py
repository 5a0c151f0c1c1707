"""Which dims may be cut unevenly in a search: those of vocabularies, in whatever tensor they are.

They begin at factors that an implementation of their own cuts and that take padding (the rows of an embedding, the classes of
a loss), and at parameters that rest so already. From there they spread: through tensors to the units that take padding of the
same factor (the product that makes logits, a cast of them), through values and parameters from region to region.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from autopar.ir.placement import Placement
from autopar.ir.program import Program
from autopar.ops.factors import Factor
from autopar.ops.units import Unit
from autopar.solver.groups import UnionFind

Dims = frozenset[int]
NONE: Dims = frozenset()


class Ragged:
    """Of a program in these units, some of whose parameters are at `resting`. Inputs of the program are cut evenly."""

    def __init__(
        self, program: Program, units: Mapping[str, Sequence[Unit]], resting: Mapping[str, Placement], sizes: Sequence[int]
    ) -> None:
        self.program, self.units = program, units
        links = list(self.links())
        union = UnionFind(dict.fromkeys(end for link in links for end in link))
        for link in links:
            union.join(link)
        begin = {end for end in self.beginnings(resting, sizes) if end in union.parent}
        found = {union.find(end) for end in begin}
        self.ends = {end for end in union.parent if union.find(end) in found}

    def factors(self, region: str, unit: Unit) -> frozenset[Factor]:
        """Of a unit."""
        return frozenset(f for f in unit.ragged if factor_end(region, unit, f) in self.ends)

    def of_tensor(self, region: str, name: str, rank: int) -> Dims:
        """Of a tensor between units."""
        return frozenset(d for d in range(rank) if end_of("tensor", region, name, d) in self.ends)

    def of_value(self, name: str) -> Dims:
        """Of a value between regions."""
        if name in self.program.inputs:
            return NONE
        return frozenset(d for d in range(len(self.program.values[name].shape)) if end_of("value", name, d) in self.ends)

    def of_state(self, name: str) -> Dims:
        """Of a parameter at rest: dim 0 alone, along which a piece of the padded tensor is contiguous."""
        return frozenset({0}) if end_of("state", name, 0) in self.ends else NONE

    def links(self) -> Iterator[tuple[str, str]]:
        """Pairs of ends that are the same dim: of a unit's factor and a tensor, of a region's tensor and what it stands for."""
        for region, units in self.units.items():
            for unit in units:
                for node in (*unit.operands, *unit.results):
                    for d, factors in enumerate(unit.dims[node]):
                        if factors and factors[0] in unit.ragged:
                            yield factor_end(region, unit, factors[0]), end_of("tensor", region, node.name, d)
        for call in self.program.calls:
            nodes = self.program.regions[call.region]
            outputs = [node.name for node in nodes.outputs]
            for kind, pairs in (
                ("value", zip((*nodes.inputs, *outputs), (*call.inputs, *call.outputs), strict=True)),
                ("state", zip(nodes.state, call.state, strict=True)),
            ):
                for slot, name in pairs:
                    spec = self.program.values[name] if kind == "value" else self.program.state[name].spec
                    for d in range(len(spec.shape)):
                        yield end_of(kind, name, d), end_of("tensor", call.region, slot, d)

    def beginnings(self, resting: Mapping[str, Placement], sizes: Sequence[int]) -> Iterator[str]:
        for region, units in self.units.items():
            for unit in units:
                yield from (factor_end(region, unit, factor) for factor in unit.ragged if factor in unit.sharded)
        for name, placement in resting.items():
            state = self.program.state.get(name)
            if state is not None and not placement.divides([int(n) for n in state.spec.shape], sizes):
                yield end_of("state", name, 0)


def end_of(*parts: object) -> str:
    return " ".join(map(str, parts))


def factor_end(region: str, unit: Unit, factor: Factor) -> str:
    return end_of("factor", region, unit.name, factor)
