"""A plan carried over to a smaller model of the same structure: the same decisions, where they can be run and compared.

Graphs of the two models correspond node by node: other sizes, fewer equal layers. What the plan says of a node, a value or a
parameter is said of its counterpart; of equal layers as many are taken as there are different choices of what is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from torch.fx import Node

from autopar.errors import PlanError
from autopar.ir.plan import KeptTensor, Plan, PlannedClass, PlannedConversion, PlannedRegion, PlannedTensor, PlannedUnit
from autopar.ir.program import Program, Region, Size
from autopar.ir.region_view import merged
from autopar.solver.restriction import split

T = TypeVar("T")
FULL = "verify at full size with --full"
"""What is left where a smaller model does not do."""


def layers_needed(plan: Plan, program: Program, layers: int) -> int:
    """With how many of its first layers the model shows every choice of the plan, at most as many as the `layers` that it has.

    Each repeated part must be called as often as the solver's classes need to tell its choices apart.
    """
    repeated = {name: program.calls_of(name) for name in program.regions if len(program.calls_of(name)) > 1}
    found = [layers_of(program, name, calls_needed(plan.regions[name], len(at)), layers) for name, at in repeated.items()]
    return max(1, min(layers, max(found, default=1)))


def calls_needed(planned: PlannedRegion, calls: int) -> int:
    return min(calls, 1 << max(1, len(merged(planned.classes)) - 1))


def layers_of(program: Program, region: str, needed: int, layers: int) -> int:
    """Of how many first layers so many calls of the region are: as their paths say, or any such number of `layers`."""
    paths = [program.calls[i].path for i in program.calls_of(region)]
    numbers = [[int(part) for part in path.split(".") if part.isdecimal()] for path in paths]
    if len(set(paths)) == len(paths) and all(len(found) == 1 for found in numbers):
        return sorted(number for (number,) in numbers)[needed - 1] + 1
    of_one_layer = -(-len(paths) // max(1, layers))
    return layers - (len(paths) - needed) // of_one_layer


def transplanted(plan: Plan, program: Program, small: Program) -> Plan:
    """The plan of `program` as one of `small`: decisions only, its figures are those of the large one.

    Raises PlanError where the two do not correspond.
    """
    return Transplant(plan, program, small).plan_of_small()


@dataclass(frozen=True)
class Transplant:
    plan: Plan
    program: Program
    small: Program

    def plan_of_small(self) -> Plan:
        if list(self.program.regions) != list(self.small.regions):
            raise unlike(f"it has the parts {', '.join(self.small.regions)}, not {', '.join(self.program.regions)}")
        plan, small = self.plan, self.small
        regions = {name: self.region(name) for name in small.regions}
        inputs = {name: small.values[name] for name in small.inputs if name}
        state = {name: found.spec for name, found in small.state.items()}
        return plan.model_copy(
            update={
                "fingerprint": small.fingerprint,
                "inputs": {n: tensor(plan.inputs[self.values[n]], spec.shape) for n, spec in inputs.items()},
                "state": {n: tensor(plan.state[self.state[n]], spec.shape) for n, spec in state.items()},
                "boundaries": {name: plan.boundaries[self.values[name]] for name in small.values},
                "regions": regions,
                "budget_bytes": None,
            }
        )

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """Calls of the small model, each with one of the large; of equal layers the first and the last correspond."""
        found = []
        for region in self.small.regions:
            here, there = self.small.calls_of(region), self.program.calls_of(region)
            if len(here) > len(there):
                raise unlike(f"it has {len(here)} of {region}, not {len(there)}")
            found += [*zip(here[:-1], there, strict=False), (here[-1], there[-1])]
        return found

    @cached_property
    def values(self) -> dict[str, str]:
        """Of the small model -> of the large one."""
        found = dict(paired([*filter(None, self.small.inputs)], [*filter(None, self.program.inputs)], "inputs"))
        for here, there in self.pairs:
            mine, other = self.small.calls[here], self.program.calls[there]
            found |= paired(mine.inputs, other.inputs, f"inputs of {mine.path or mine.region}")
            found |= paired(mine.outputs, other.outputs, f"results of {mine.path or mine.region}")
        return found

    @cached_property
    def state(self) -> dict[str, str]:
        found = {name: name for name in self.small.state if name in self.program.state}
        for here, there in self.pairs:
            mine, other = self.small.calls[here], self.program.calls[there]
            found |= paired(mine.state, other.state, f"parameters and buffers of {mine.path or mine.region}")
        if unknown := [name for name in self.small.state if name not in found]:
            raise unlike(f"its {unknown[0]} is in no layer that they share")
        return found

    def region(self, name: str) -> PlannedRegion:
        planned = self.plan.regions[name]
        node = nodes(self.program.regions[name], self.small.regions[name])
        calls = len(self.small.calls_of(name))
        classes = list(spread(merged(planned.classes), calls, name))
        return PlannedRegion(
            units={node[unit]: of_unit(said, node) for unit, said in planned.units.items()},
            discovered={node[at]: rule for at, rule in planned.discovered.items()},
            converted=tuple(conversion(c, node) for c in planned.converted),
            classes=tuple(of_class(size, keep, node) for size, keep in classes),
        )


def nodes(large: Region, small: Region) -> dict[str, str]:
    """Nodes of the large model's region -> those of the small one, by their order; raises PlanError unless they do the same."""
    found: dict[str, str] = {}
    for there, here in zip(large.graph.nodes, small.graph.nodes, strict=False):
        if doing(there) != doing(here):
            raise unlike(f"{here.name} of {small.name} is {here.target}, where the model has {there.name}, {there.target}")
        mine, other = [n.name for n in here.all_input_nodes], [n.name for n in there.all_input_nodes]
        if mine != [found[name] for name in other]:
            raise unlike(
                f"{here.name} of {small.name} reads {named(mine)}, where {there.name} of the model reads {named(other)}"
            )
        found[there.name] = here.name
    paired([*small.graph.nodes], [*large.graph.nodes], f"nodes in {small.name}")
    return found


def doing(node: Node) -> tuple[str, object]:
    """What a node is; names of placeholders and attributes are its own."""
    return node.op, node.target if node.op == "call_function" else ""


def named(names: Sequence[str]) -> str:
    return ", ".join(names) or "nothing"


def paired(mine: Sequence[T], other: Sequence[T], what: str) -> Iterator[tuple[T, T]]:
    """Of the small model and of the large one, by their order; raises PlanError where these are not as many."""
    if len(mine) != len(other):
        raise unlike(f"it has {len(mine)} {what}, not {len(other)}")
    return zip(mine, other, strict=True)


def spread(choices: Sequence[PlannedClass], calls: int, name: str) -> Iterator[tuple[int, PlannedClass]]:
    """Each choice for some of so many calls, in order, as the solver divides them."""
    sizes = split(calls)
    if len(sizes) < len(choices):
        raise unlike(f"{calls} calls of {name} cannot show {len(choices)} choices of what is kept")
    for i, size in enumerate(sizes):
        yield size, choices[min(i, len(choices) - 1)]


def of_unit(said: PlannedUnit, node: Mapping[str, str]) -> PlannedUnit:
    moved = {"nodes": tuple(node[n] for n in said.nodes), "reads": tuple(node[n] for n in said.reads)}
    return said.model_copy(update=moved)


def of_class(calls: int, keep: PlannedClass, node: Mapping[str, str]) -> PlannedClass:
    return PlannedClass(
        calls=calls,
        kept=tuple(KeptTensor(tensor=node[k.tensor], placement=k.placement) for k in keep.kept),
        kept_internals=tuple(node[unit] for unit in keep.kept_internals),
        redone=tuple(node[unit] for unit in keep.redone),
        reconverted=tuple(conversion(c, node) for c in keep.reconverted),
    )


def conversion(planned: PlannedConversion, node: Mapping[str, str]) -> PlannedConversion:
    return planned.model_copy(update={"tensor": node[planned.tensor]})


def tensor(planned: PlannedTensor, shape: Sequence[Size]) -> PlannedTensor:
    return planned.model_copy(update={"shape": tuple(int(n) for n in shape)})


def unlike(reason: str) -> PlanError:
    return PlanError(f"the smaller model is not of the same structure: {reason}; {FULL}")
