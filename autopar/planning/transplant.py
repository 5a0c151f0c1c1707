"""A plan carried over to a smaller model of the same structure: the same decisions, where they can be run and compared.

Graphs of the two models correspond node by node: other sizes, fewer equal layers. What the plan says of a node, a value or a
parameter is said of its counterpart; of equal layers as many are taken as there are different choices of what is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from autopar.errors import PlanError
from autopar.ir.plan import KeptTensor, Plan, PlannedClass, PlannedConversion, PlannedRegion, PlannedTensor, PlannedUnit
from autopar.ir.program import Program, Region
from autopar.solver.restriction import split


def layers_needed(plan: Plan) -> int:
    """How many equal layers show every choice of the plan: as many as the solver's classes of so many layers can tell apart."""
    return max((1 << max(1, len(different(region.classes)) - 1) for region in plan.regions.values()), default=2)


def different(classes: Sequence[PlannedClass]) -> list[PlannedClass]:
    """Neighbouring classes that keep and redo the same are one."""
    return [next(members) for _, members in groupby(classes, key=lambda c: c.model_copy(update={"calls": 0}))]


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
        inputs = {name: small.values[name] for name in small.inputs if name}
        state = {name: found.spec for name, found in small.state.items()}
        return plan.model_copy(
            update={
                "fingerprint": small.fingerprint,
                "inputs": {n: tensor(plan.inputs[self.values[n]], spec.shape) for n, spec in inputs.items()},
                "state": {n: tensor(plan.state[self.state[n]], spec.shape) for n, spec in state.items()},
                "boundaries": {name: plan.boundaries[self.values[name]] for name in small.values},
                "regions": {name: self.region(name) for name in small.regions},
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
        found = dict(zip(filter(None, self.small.inputs), filter(None, self.program.inputs), strict=True))
        for here, there in self.pairs:
            mine, other = self.small.calls[here], self.program.calls[there]
            found |= zip((*mine.inputs, *mine.outputs), (*other.inputs, *other.outputs), strict=True)
        return found

    @cached_property
    def state(self) -> dict[str, str]:
        found = {name: name for name in self.small.state if name in self.program.state}
        for here, there in self.pairs:
            found |= zip(self.small.calls[here].state, self.program.calls[there].state, strict=True)
        return found

    def region(self, name: str) -> PlannedRegion:
        planned = self.plan.regions[name]
        node = nodes(self.program.regions[name], self.small.regions[name])
        calls = len(self.small.calls_of(name))
        classes = list(spread(different(planned.classes), calls, name))
        return PlannedRegion(
            units={node[unit]: of_unit(said, node) for unit, said in planned.units.items()},
            discovered={node[at]: rule for at, rule in planned.discovered.items()},
            converted=tuple(conversion(c, node) for c in planned.converted),
            classes=tuple(of_class(size, keep, node) for size, keep in classes),
        )


def nodes(large: Region, small: Region) -> dict[str, str]:
    """Nodes of the large model's region -> those of the small one, by their order; raises PlanError unless they do the same."""
    pairs = list(zip(large.graph.nodes, small.graph.nodes, strict=False))
    for there, here in pairs:
        if (there.op, there.target if there.op == "call_function" else "") != (
            here.op,
            here.target if here.op == "call_function" else "",
        ):
            raise unlike(f"{here.name} of {small.name} is {here.target}, where the model has {there.name}, {there.target}")
    if len(large.graph.nodes) != len(small.graph.nodes):
        raise unlike(f"{small.name} has {len(small.graph.nodes)} nodes, not {len(large.graph.nodes)}")
    return {there.name: here.name for there, here in pairs}


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


def tensor(planned: PlannedTensor, shape: Sequence[object]) -> PlannedTensor:
    return planned.model_copy(update={"shape": tuple(int(n) for n in shape)})  # type: ignore[call-overload]


def unlike(reason: str) -> PlanError:
    return PlanError(f"the smaller model is not of the same structure: {reason}. Verify at full size instead")
