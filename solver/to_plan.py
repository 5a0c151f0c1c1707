"""From a solution to a plan: names for everything, and the figures that the emitted program will be held against."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from autopar.hardware import COST_MODEL_VERSION
from autopar.ir.conversion import Conversion
from autopar.ir.placement import Placement
from autopar.ir.plan import (
    DiscoveredRule,
    Figures,
    KeptTensor,
    Plan,
    PlannedClass,
    PlannedCollective,
    PlannedConversion,
    PlannedRegion,
    PlannedTensor,
    PlannedUnit,
)
from autopar.ir.program import TensorSpec
from autopar.ops.flops import Collective
from autopar.ops.rows import discovered
from autopar.ops.strategies import Strategy
from autopar.ops.units import needs_grad
from autopar.profiler.model_cost import Measured
from autopar.profiler.unit_cost import NodeCost, UnitCost
from autopar.solver.build import Builder
from autopar.solver.check import Row, check, step_s
from autopar.solver.problem import Arc, ClassChoice, Problem, RegionChoice, Solution
from autopar.solver.selection import Modules, leading

Count = Counter[tuple[str, str, str]]


Redone = Mapping[str, tuple[tuple[frozenset[str], frozenset[tuple[str, Placement, Placement]]], ...]]
"""Per region and class: the units, and the conversions, that the emitted backward really runs again."""


def only_redone(problem: Problem, solution: Solution, redone: Redone) -> Solution:
    """The solution without what need not run again, and its cost.

    A solution counts every tensor as memory of its own; where two share memory (a view and what it views), keeping the one
    provides the other, and nothing has to be redone for it.
    """
    regions = {}
    for name, choice in solution.regions.items():
        classes = [
            replace(keep, redone=keep.redone & units, reconverted=keep.reconverted & steps)
            for keep, (units, steps) in zip(choice.classes, redone[name], strict=True)
        ]
        regions[name] = replace(choice, classes=tuple(classes))
    solution = replace(solution, regions=regions)
    cost_s = step_s(problem, solution)
    return replace(solution, cost_s=cost_s, bound_s=min(solution.bound_s, cost_s))


def to_plan(builder: Builder, problem: Problem, solution: Solution, redone: Redone | None = None) -> Plan:
    """The plan of a checked solution; with `redone`, of what of it really runs again (see `only_redone`)."""
    program, setting = builder.program, builder.setting
    verdict = check(problem, solution)
    solution = solution if redone is None else only_redone(problem, solution, redone)
    placed = {value: solution.boundaries[boundary] for value, boundary in builder.boundary_of.items()}
    rest = {name: solution.rest[group] for name, group in builder.group_of.items()}
    return Plan(
        model=program.name,
        fingerprint=program.fingerprint,
        mesh=setting.mesh,
        hardware=setting.hardware.name,
        cost_model=COST_MODEL_VERSION,
        optimizer=setting.optimizer,
        micro_batches=setting.micro_batches,
        budget_bytes=None if problem.budget_bytes is None else int(problem.budget_bytes),
        status=solution.status,
        step_time_s=solution.cost_s,
        lower_bound_s=solution.bound_s,
        gap=solution.gap,
        peak_bytes=verdict.peak_bytes,
        peak_where=verdict.peak_where,
        notes=solution.notes,
        bucket_bytes={
            name: link.bucket_bytes(size)
            for name, size, link in zip(setting.mesh.names, setting.mesh.sizes, builder.links, strict=True)
        },
        precision=program.precision,
        figures=figures(builder, problem, solution, verdict.peak),
        inputs={name: tensor(program.values[name], placed[name]) for name in program.inputs if name},
        state={name: tensor(state.spec, rest[name]) for name, state in program.state.items()},
        boundaries=placed,
        regions={name: region(builder, problem, name, choice) for name, choice in solution.regions.items()},
    )


def tensor(spec: TensorSpec, placement: Placement) -> PlannedTensor:
    return PlannedTensor(
        shape=tuple(int(n) for n in spec.shape), dtype=str(spec.dtype).removeprefix("torch."), placement=placement
    )


def region(builder: Builder, problem: Problem, name: str, choice: RegionChoice) -> PlannedRegion:
    measured = {m.unit.name: m.unit for m in builder.cost.regions[name]}
    modules = Modules(builder.program, builder.cost.regions)
    chosen = {unit.name: unit.strategies[choice.strategies[unit.name]] for unit in problem.region[name].units}
    return PlannedRegion(
        units={
            unit: PlannedUnit(
                kind=measured[unit].kind,
                nodes=tuple(n.name for n in measured[unit].nodes),
                factors=s.factors,
                roles=s.roles,
                path=modules.path_of((name, unit)),
                op=str(leading(measured[unit]).target),
                reads=tuple(dict.fromkeys(n.name for n in measured[unit].operands)),
            )
            for unit, s in chosen.items()
        },
        discovered={
            node: DiscoveredRule(op=row.op, row=row.text, reason=row.reason)
            for node, row in discovered(builder.program.regions[name]).items()
        },
        converted=conversions(choice.converted),
        classes=tuple(planned_class(n, c) for n, c in zip(problem.region[name].classes, choice.classes, strict=True)),
    )


def in_order(steps: Iterable[tuple[str, Placement, Placement]]) -> list[tuple[str, Placement, Placement]]:
    """Sets have another order in every process; a plan has not."""
    return sorted(steps, key=lambda step: (step[0], str(step[1]), str(step[2])))


def conversions(chosen: Iterable[tuple[str, Placement, Placement]]) -> tuple[PlannedConversion, ...]:
    return tuple(PlannedConversion(tensor=t, before=b, after=a) for t, b, a in in_order(chosen))


def planned_class(calls: int, choice: ClassChoice) -> PlannedClass:
    return PlannedClass(
        calls=calls,
        kept=tuple(KeptTensor(tensor=t, placement=pl) for t, pl in sorted(choice.kept, key=lambda k: (k[0], str(k[1])))),
        kept_internals=tuple(sorted(choice.kept_internals)),
        redone=tuple(sorted(choice.redone)),
        reconverted=conversions(choice.reconverted),
    )


def figures(builder: Builder, problem: Problem, solution: Solution, peak: Row) -> Figures:
    """Sums over all calls of one forward and backward (times: of the whole step), read off the solution, not off the
    solver's objective."""
    flops = Counter(forward=0, backward=0, redone=0)
    times: defaultdict[str, float] = defaultdict(float)
    counts: Counter[tuple[str, str, str]] = Counter()
    sent: Counter[tuple[str, str, str]] = Counter()

    def add(collectives: Iterable[Collective], phase: str, calls: int, state: bool = False) -> None:
        for c in collectives:
            counts[c.kind, c.axis, phase] += calls
            sent[c.kind, c.axis, phase] += calls * c.bytes
            waited_s = 0.0 if state else builder.hardware.skew_s
            seconds = builder.collective_s(c.kind, c.bytes, builder.mesh.names.index(c.axis), state)
            times[f"communication on {c.axis}"] += calls * (seconds - waited_s)
            if waited_s:
                times["waiting for each other"] += calls * waited_s

    for name, choice in solution.regions.items():
        priced, calls = problem.region[name], sum(problem.region[name].classes)
        costs = {m.unit.name: chosen_cost(builder, m, choice.strategies[m.unit.name], name) for m in builder.cost.regions[name]}
        for cost, sizes in costs.values():
            flops["forward"] += calls * total_flops(cost.forward, sizes)
            flops["backward"] += calls * total_flops(cost.backward, sizes)
            times["compute"] += calls * (builder.kernels_s(cost.forward, sizes) + builder.kernels_s(cost.backward, sizes))
            add(cost.forward_collectives, "forward", calls)
            add(cost.backward_collectives, "backward", calls)
        for converted in in_order(choice.converted):
            arc = arc_of(problem, name, converted)
            times["copies of conversions"] += calls * (arc.forward_moved_s + arc.backward_moved_s)
            state, scale = converted[0] in priced.state, priced.tensors[converted[0]].gradient_scale
            add(conversion_collectives(builder, name, converted, "forward"), "forward", calls, state)
            add(conversion_collectives(builder, name, converted, "backward", scale), "backward", calls, state)
        for multiplicity, keep in zip(priced.classes, choice.classes, strict=True):
            for unit in sorted(keep.redone):
                cost, sizes = costs[unit]
                flops["redone"] += multiplicity * total_flops(cost.forward, sizes)
                times["recomputation"] += multiplicity * builder.kernels_s(cost.forward, sizes)
                add(cost.forward_collectives, "backward", multiplicity)
            for converted in in_order(keep.reconverted):
                times["copies of conversions"] += multiplicity * arc_of(problem, name, converted).forward_moved_s
                sent_again = conversion_collectives(builder, name, converted, "forward")
                add(sent_again, "backward", multiplicity, converted[0] in priced.state)
    return Figures(
        forward_flops=flops["forward"],
        backward_flops=flops["backward"],
        redone_flops=flops["redone"],
        collectives=tuple(
            PlannedCollective(kind=k, axis=a, phase=ph, count=counts[k, a, ph], bytes=sent[k, a, ph])  # type: ignore[arg-type]
            for k, a, ph in sorted(counts)
        ),
        estimated_peak_bytes=peak.bytes,
        estimated_peak_where=peak.where,
        memory_bytes=dict(peak.parts),
        time_s=step_times(problem, solution, times),
    )


def step_times(problem: Problem, solution: Solution, times: Mapping[str, float]) -> dict[str, float]:
    """The parts of a step, which add up to it: what runs beside other work counts against the rest, below zero."""
    whole = {what: problem.micro_batches * seconds for what, seconds in times.items()}
    whole["optimizer"] = sum(problem.state[name].step_s_at.get(placement, 0.0) for name, placement in solution.rest.items())
    if casts := sum(problem.state[name].cast_s_at.get(placement, 0.0) for name, placement in solution.rest.items()):
        whole["casts of parameters"] = casts
    beside = solution.cost_s - sum(whole.values())
    return whole | {"overlapped": beside} if problem.overlap else whole


def arc_of(problem: Problem, region: str, converted: tuple[str, Placement, Placement]) -> Arc:
    name, before, after = converted
    return next(a for a in problem.region[region].tensors[name].arcs if (a.before, a.after) == (before, after))


def chosen_cost(builder: Builder, measured: Measured, index: int, region_name: str) -> tuple[UnitCost, Mapping[str, int]]:
    chosen: Strategy = builder.strategies[region_name][measured.unit.name][index]
    return builder.costs.of(measured, chosen), chosen.local_sizes(measured.unit, builder.mesh.sizes)


def total_flops(nodes: Iterable[NodeCost], sizes: Mapping[str, int]) -> int:
    return round(sum(n.flops.at(sizes) for n in nodes))


def conversion_collectives(
    builder: Builder, region_name: str, converted: tuple[str, Placement, Placement], phase: str, gradient_scale: float = 1.0
) -> Iterator[Collective]:
    """The collective of a conversion in one phase, as the emitted program will show it."""
    name, before, after = converted
    node = builder.program.regions[region_name].nodes[name]
    conversion = Conversion(before, after)
    kind = conversion.kind.forward if phase == "forward" else conversion.kind.backward
    if kind is None or (phase == "backward" and not needs_grad(node)):
        return
    value = node.meta["val"]
    scale = 1.0 if phase == "forward" else gradient_scale
    elements = conversion.sent(kind, tuple(int(n) for n in value.shape), builder.mesh.sizes)
    yield Collective(kind, builder.mesh.names[conversion.axis], round(scale * elements * value.element_size()))
