"""Judge a solution without the solver: is it a plan at all, what does it cost, how much memory does it need and where.

Cost: for every call, each unit's forward and backward, each executed conversion's both ways once, and forward again for what
is redone; of conversions of state, with overlap, only what does not fit beside the rest (see `Problem`); times the
micro-batches, and the optimizer's step. Memory, in bytes per device, at these program points (classes in execution order):

forward of a class    state + kept by the classes up to this one + passing boundaries + the region's forward temporaries
backward of a class   at its first call: the same with backward temporaries, gradients of passing boundaries, + what one call
                      makes again + gradients of state of this call and of all whose backward came before;
                      and at its last call, when only one call's values are kept, and all its calls' gradients are there
optimizer             state + all gradients (over micro-batches, their sums are state) + scratch of the step

and program inputs everywhere. Temporaries of a region: at its worst unit, that unit's own figure plus what spans it; with
overlap also the largest parameter gathered ahead, and in backward the largest gradient on its way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from autopar.ir.placement import Placement
from autopar.solver.liveness import gradients_of, passing, returned, returned_before, spanning
from autopar.solver.problem import Arc, ClassChoice, Problem, Region, RegionChoice, Solution, Strategy, Unit

TOLERANCE = 1e-9
"""Relative slack for sums of floats, not for solvers."""

REDUCED = "reduced"

Parts = dict[str, float]
Timed = tuple[float, Sequence[float], float | None]


class InvalidSolution(AssertionError):
    """A solution that is no plan of its problem, or not at the figures that it claims: a bug, never a user's fault."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Memory at one program point, and what makes it up as `(what, bytes)`, largest first."""

    where: str
    bytes: float
    parts: tuple[tuple[str, float], ...]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the solution really costs per step, and needs per device."""

    cost_s: float
    peak_bytes: float
    peak_where: str
    rows: tuple[Row, ...]

    @property
    def peak(self) -> Row:
        return next(row for row in self.rows if row.where == self.peak_where)


def check(problem: Problem, solution: Solution, *, claims: bool = True, budget: bool = True) -> Verdict:
    """The verdict on a valid solution; raises InvalidSolution, saying what is wrong and where, on any other.

    `claims`: also compare cost, peak and bound with what the solution says; `budget`: also hold the peak against the budget.
    """
    _check_shared(problem, solution)
    for region in problem.regions:
        _check_region(problem, region, solution)
    rows = memory_rows(problem, solution)
    peak = max(rows, key=lambda row: row.bytes)
    verdict = Verdict(cost_s=step_s(problem, solution), peak_bytes=peak.bytes, peak_where=peak.where, rows=rows)
    if claims:
        _check_claims(solution, verdict)
    if budget and problem.budget_bytes is not None and peak.bytes > problem.budget_bytes * (1 + TOLERANCE):
        raise InvalidSolution(f"{peak.where} needs {peak.bytes:.0f} bytes, the budget is {problem.budget_bytes:.0f}")
    return verdict


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InvalidSolution(message)


def _check_claims(solution: Solution, verdict: Verdict) -> None:
    _require(
        abs(solution.cost_s - verdict.cost_s) <= 1e-9 * max(verdict.cost_s, 1e-30),
        f"claims to cost {solution.cost_s} s, costs {verdict.cost_s} s",
    )
    _require(
        abs(solution.peak_bytes - verdict.peak_bytes) <= 1e-9 * max(verdict.peak_bytes, 1.0),
        f"claims a peak of {solution.peak_bytes} bytes, needs {verdict.peak_bytes} in {verdict.peak_where}",
    )
    _require(
        solution.bound_s <= verdict.cost_s * (1 + 1e-6) + 1e-15,
        f"claims the bound {solution.bound_s} s, costs {verdict.cost_s} s",
    )


def _check_shared(problem: Problem, solution: Solution) -> None:
    for what, chosen, known in (
        ("boundary", solution.boundaries, problem.boundaries),
        ("state", solution.rest, problem.state),
    ):
        _require(set(chosen) == set(known), f"placements are chosen for {what} {sorted(chosen)}, not for {sorted(known)}")
        for name, placement in chosen.items():
            _require(placement in known[name].bytes_at, f"{what} {name} cannot be at [{placement}]")
    _require(set(solution.regions) == set(problem.region), f"regions {sorted(solution.regions)}, not {sorted(problem.region)}")


def _chosen(choice: RegionChoice, unit: Unit) -> Strategy:
    return unit.strategies[choice.strategies[unit.name]]


def _produced(region: Region, choice: RegionChoice, solution: Solution) -> dict[str, Placement]:
    """Where each tensor comes into being."""
    at = {name: solution.boundaries[boundary] for name, boundary in region.inputs.items()}
    at |= {name: solution.rest[group] for name, group in region.state.items()}
    for unit in region.units:
        at |= zip(unit.results, _chosen(choice, unit).results, strict=True)
    return at


def _check_region(problem: Problem, region: Region, solution: Solution) -> None:
    choice = solution.regions[region.name]
    _require(
        set(choice.strategies) == set(region.unit), f"region {region.name}: strategies for {sorted(choice.strategies)} only"
    )
    for unit in region.units:
        index = choice.strategies[unit.name]
        _require(0 <= index < len(unit.strategies), f"region {region.name}: unit {unit.name} has no strategy {index}")
    came = _check_conversions(region, choice, solution)
    _require(
        len(choice.classes) == len(region.classes),
        f"region {region.name}: {len(choice.classes)} class choices for {len(region.classes)} classes",
    )
    for number, keep in enumerate(choice.classes):
        _check_backward(problem, region, choice, keep, solution, came, f"region {region.name}, class {number}")


def _check_conversions(region: Region, choice: RegionChoice, solution: Solution) -> set[tuple[str, Placement]]:
    """All (tensor, placement) that exist in forward; conversions form a tree, and reach every consumer."""
    produced = _produced(region, choice, solution)
    came = set(produced.items())
    todo = set(choice.converted)
    for tensor, before, after in todo:
        _arc(region, tensor, before, after)
    while ready := [step for step in todo if (step[0], step[1]) in came]:
        for step in ready:
            _require((step[0], step[2]) not in came, f"region {region.name}: {step[0]} is made at [{step[2]}] twice")
            came.add((step[0], step[2]))
            todo.discard(step)
    for tensor, before, after in todo:
        raise InvalidSolution(f"region {region.name}: {tensor} [{before}] -> [{after}] starts where it never is")
    wishes = [
        (f"unit {unit.name}", tensor, placement)
        for unit in region.units
        for tensor, placement in zip(unit.operands, _chosen(choice, unit).operands, strict=True)
    ] + [(f"boundary {boundary}", tensor, solution.boundaries[boundary]) for tensor, boundary in region.outputs]
    for who, tensor, placement in wishes:
        _require((tensor, placement) in came, f"region {region.name}: {who} wants {tensor} at [{placement}], where it never is")
    return came


def _arc(region: Region, tensor: str, before: Placement, after: Placement) -> Arc:
    _require(tensor in region.tensors, f"region {region.name} has no tensor {tensor}")
    for arc in region.tensors[tensor].arcs:
        if (arc.before, arc.after) == (before, after):
            return arc
    raise InvalidSolution(f"region {region.name}: {tensor} has no conversion [{before}] -> [{after}]")


def _check_backward(
    problem: Problem,
    region: Region,
    choice: RegionChoice,
    keep: ClassChoice,
    solution: Solution,
    came: set[tuple[str, Placement]],
    where: str,
) -> None:
    """Replay what is kept and redone, in execution order, then look whether backward finds what it reads."""
    for tensor, placement in keep.kept:
        _require((tensor, placement) in came, f"{where}: {tensor} is kept at [{placement}], where it never is")
    _require(keep.reconverted <= choice.converted, f"{where}: a conversion runs again that never ran")
    _require(keep.redone | keep.kept_internals <= set(region.unit), f"{where}: unknown units are redone or kept")
    there = set(keep.kept) | {(name, solution.rest[group]) for name, group in region.state.items()}
    there |= {
        (name, solution.boundaries[boundary])
        for name, boundary in region.inputs.items()
        if problem.boundaries[boundary].resident
    }
    _reconvert(there, keep)
    for unit in region.units:
        if unit.name not in keep.redone:
            continue
        strategy = _chosen(choice, unit)
        _require(unit.redoable, f"{where}: unit {unit.name} would not give the same again")
        for tensor, placement in zip(unit.operands, strategy.operands, strict=True):
            _require((tensor, placement) in there, f"{where}: redoing {unit.name} lacks {tensor} at [{placement}]")
        there |= set(zip(unit.results, strategy.results, strict=True))
        _reconvert(there, keep)
    for tensor, before, after in keep.reconverted:
        _require((tensor, before) in there, f"{where}: {tensor} [{before}] -> [{after}] again lacks its source")
    for unit in region.units:
        for tensor, placement in reads(unit, _chosen(choice, unit)):
            _require((tensor, placement) in there, f"{where}: backward of {unit.name} lacks {tensor} at [{placement}]")
        has_internals = unit.name in keep.kept_internals or unit.name in keep.redone
        _require(
            has_internals or not _chosen(choice, unit).saved_bytes, f"{where}: backward of {unit.name} lacks what it saved"
        )


def _reconvert(there: set[tuple[str, Placement]], keep: ClassChoice) -> None:
    while new := {(t, after) for t, before, after in keep.reconverted if (t, before) in there} - there:
        there |= new


def reads(unit: Unit, strategy: Strategy) -> list[tuple[str, Placement]]:
    """The (tensor, placement) that the unit's backward reads."""
    return [
        (unit.operands[i], strategy.operands[i]) if kind == "operand" else (unit.results[i], strategy.results[i])
        for kind, i in unit.reads_of(strategy)
    ]


def step_s(problem: Problem, solution: Solution) -> float:
    """Seconds of a training step."""
    total = 0.0
    for region in problem.regions:
        choice = solution.regions[region.name]
        forward, backward = Phase.of_forward(problem, region, choice), Phase.of_backward(problem, region, choice)
        total += sum(region.classes) * forward.seconds
        for calls, keep in zip(region.classes, choice.classes, strict=True):
            total += calls * (backward + Phase.of_again(problem, region, choice, keep)).seconds
    update = math.fsum(problem.state[name].step_s(placement) for name, placement in solution.rest.items())
    return problem.micro_batches * total + update


@dataclass(frozen=True)
class Phase:
    """Forward, backward, or what runs again, of one call: `busy_s` of computation and of communication that it waits for, and
    what each link has to carry, that included. Without overlap it waits for everything."""

    busy_s: float
    links_s: tuple[float, ...]

    @property
    def seconds(self) -> float:
        return max((self.busy_s, *self.links_s))

    def __add__(self, other: Phase) -> Phase:
        return Phase(self.busy_s + other.busy_s, tuple(a + b for a, b in zip(self.links_s, other.links_s, strict=True)))

    @staticmethod
    def of(problem: Problem, times: Iterable[Timed]) -> Phase:
        """The sum of `times`: seconds, on which links how many of them, and, where they can run beside other work, for how many
        the device computes nothing else. Exact, so that figures do not depend on the order of sets."""
        busy: list[float] = []
        links: list[list[float]] = [[] for _ in range(problem.links)]
        for seconds, on_links, work_s in times:
            busy.append(work_s if work_s is not None and problem.overlap else seconds)
            for link, part in zip(links, on_links, strict=False):
                link.append(part)
        return Phase(math.fsum(busy), tuple(map(math.fsum, links)))

    @staticmethod
    def of_forward(problem: Problem, region: Region, choice: RegionChoice) -> Phase:
        units = ((s.forward_s, s.forward_links_s, None) for s in (_chosen(choice, u) for u in region.units))
        return Phase.of(problem, [*units, *_conversions(problem, region, choice.converted, backward=False)])

    @staticmethod
    def of_backward(problem: Problem, region: Region, choice: RegionChoice) -> Phase:
        units = ((s.backward_s, s.backward_links_s, None) for s in (_chosen(choice, u) for u in region.units))
        return Phase.of(problem, [*units, *_conversions(problem, region, choice.converted, backward=True)])

    @staticmethod
    def of_again(problem: Problem, region: Region, choice: RegionChoice, keep: ClassChoice) -> Phase:
        redone = (_chosen(choice, region.unit[name]) for name in keep.redone)
        units = ((s.forward_s, s.forward_links_s, None) for s in redone)
        return Phase.of(problem, [*units, *_conversions(problem, region, keep.reconverted, backward=False)])


def _conversions(
    problem: Problem, region: Region, steps: Iterable[tuple[str, Placement, Placement]], *, backward: bool
) -> Iterator[Timed]:
    for step in steps:
        arc = _arc(region, *step)
        seconds, link = (arc.backward_s, arc.backward_link) if backward else (arc.forward_s, arc.forward_link)
        on_links = tuple(seconds if link == i else 0.0 for i in range(problem.links))
        work_s = arc.backward_work_s if backward else arc.forward_work_s
        yield seconds, on_links, work_s if step[0] in region.state and link is not None else None


def memory_rows(problem: Problem, solution: Solution) -> tuple[Row, ...]:
    """Every memory row, in execution order; forward and backward of each class, then the optimizer."""
    rest = {f"{name} at rest [{p}]": problem.state[name].bytes_at[p] for name, p in solution.rest.items()}
    inputs = {
        f"{name} (program input) [{p}]": problem.boundaries[name].bytes_at[p]
        for name, p in solution.boundaries.items()
        if problem.boundaries[name].resident
    }
    outputs = {f"{name} (returned)": problem.boundaries[name].bytes_at[solution.boundaries[name]] for name in returned(problem)}
    always, kept, rows = rest | inputs, Parts(), []
    once: dict[str, tuple[str, float]] = {}
    for region in problem.regions:
        choice = solution.regions[region.name]
        held = {name: problem.boundaries[name].bytes_at[solution.boundaries[name]] for name in passing(problem, region)}
        forward, backward = (_temporaries(problem, region, choice, solution, back) for back in (False, True))
        ahead, reducing = (
            _in_flight(problem, region, choice.converted),
            _in_flight(problem, region, choice.converted, REDUCED),
        )
        once |= _kept_once(problem, region, choice, solution)
        behind = sum(region.classes)
        for number, (calls, keep) in enumerate(zip(region.classes, choice.classes, strict=True)):
            where = f"{region.name}{f' (calls of class {number})' if len(region.classes) > 1 else ''}"
            before = dict(kept)
            kept |= _kept(problem, region, choice, keep, solution, calls, where)
            alive = {what: size for what, (name, size) in once.items() if name not in held}
            values = {f"{name} [{solution.boundaries[name]}]": size for name, size in held.items()}
            values |= {f"{name} (returned)": outputs[f"{name} (returned)"] for name in returned_before(problem, region)}
            rows.append(_row(f"{where} forward", always | kept | alive | values | forward | ahead))
            gradients = {f"gradient of {name}": size for name, size in held.items() if problem.boundaries[name].needs_grad}
            alive = {what: size for what, (_, size) in once.items()}
            again = _redone(region, choice, keep) | _in_flight(problem, region, keep.reconverted, "ahead again")
            common = always | outputs | alive | gradients | again | backward | reducing
            behind -= calls
            rows.append(_row(f"{where} backward", common | kept | _gradients(problem, region, solution, behind + 1)))
            if calls > 1:
                one = before | _kept(problem, region, choice, keep, solution, 1, where)
                done = _gradients(problem, region, solution, behind + calls)
                rows.append(_row(f"{where} backward, last call", common | one | done))
    step = {f"optimizer step of {name}": problem.state[name].step_bytes_at[p] for name, p in solution.rest.items()}
    summed = problem.micro_batches > 1
    done = {f"gradient of {n} [{p}]": 0.0 if summed else problem.state[n].grad_bytes(p) for n, p in solution.rest.items()}
    rows.append(_row("optimizer step", always | done | step))
    return tuple(rows)


def _gradients(problem: Problem, region: Region, solution: Solution, calls: int) -> Parts:
    """Gradients of state after the backward of all later regions and of `calls` calls of this one."""
    found: Parts = {}
    here = problem.regions.index(region)
    for other in problem.regions[here:]:
        for name in gradients_of(problem, other):
            group, placement = problem.state[name], solution.rest[name]
            whole = other is not region or group.shared
            share = 1.0 if whole else calls / sum(region.classes)
            found[f"gradient of {name} [{placement}]"] = share * group.grad_bytes(placement)
    return found


def _in_flight(
    problem: Problem, region: Region, steps: Iterable[tuple[str, Placement, Placement]], what: str = "gathered ahead"
) -> Parts:
    """The largest conversion of state that a link may be busy with beside the unit that runs."""
    sizes = {
        f"{region.name}.{t} [{p}] {what}": region.tensors[t].bytes_at[p]
        * (region.tensors[t].gradient_scale if what == REDUCED else 1.0)
        for t, before, p in steps
        if t in region.state and problem.overlap and _arc(region, t, before, p).travels
    }
    largest = max(sizes, key=lambda what: (sizes[what], what), default=None)
    return {} if largest is None else {largest: sizes[largest]}


def _row(where: str, parts: Mapping[str, float]) -> Row:
    ordered = sorted(((what, size) for what, size in parts.items() if size), key=lambda part: (-part[1], part[0]))
    return Row(where=where, bytes=math.fsum(parts.values()), parts=tuple(ordered))


def _is_kept_once(problem: Problem, region: Region, solution: Solution, tensor: str, placement: Placement) -> bool:
    """A value that all calls read, kept as it came: one copy. Converted, it is every call's own."""
    name = region.inputs.get(tensor)
    return name is not None and not problem.boundaries[name].carried and solution.boundaries[name] == placement


def _kept_once(problem: Problem, region: Region, choice: RegionChoice, solution: Solution) -> dict[str, tuple[str, float]]:
    return {
        f"{region.name}.{t} [{p}] kept once": (region.inputs[t], region.tensors[t].bytes_at[p])
        for keep in choice.classes
        for t, p in keep.kept
        if _is_kept_once(problem, region, solution, t, p)
    }


def _kept(
    problem: Problem, region: Region, choice: RegionChoice, keep: ClassChoice, solution: Solution, calls: int, where: str
) -> Parts:
    each = {
        f"{where}.{t} [{p}] kept x {calls}": calls * region.tensors[t].bytes_at[p]
        for t, p in keep.kept
        if not _is_kept_once(problem, region, solution, t, p)
    }
    inside = {
        f"{where}.{name} saved inside x {calls}": calls * _chosen(choice, region.unit[name]).saved_bytes
        for name in keep.kept_internals
    }
    return each | inside


def _redone(region: Region, choice: RegionChoice, keep: ClassChoice) -> Parts:
    again = {f"{region.name}.{t} [{p}] again": region.tensors[t].bytes_at[p] for t, _, p in keep.reconverted}
    for name in keep.redone:
        strategy, unit = _chosen(choice, region.unit[name]), region.unit[name]
        again |= {
            f"{region.name}.{t} [{p}] redone": region.tensors[t].bytes_at[p]
            for t, p in zip(unit.results, strategy.results, strict=True)
        }
        again[f"{region.name}.{name} inside redone"] = strategy.saved_bytes
    return again


def _temporaries(problem: Problem, region: Region, choice: RegionChoice, solution: Solution, backward: bool) -> Parts:
    """What the region's worst unit needs while it runs."""
    produced = _produced(region, choice, solution)
    worst: Parts = {}
    for unit in region.units:
        strategy = _chosen(choice, unit)
        own = strategy.backward_temp_bytes if backward else strategy.forward_temp_bytes
        parts = {f"{region.name}.{unit.name} {'backward' if backward else 'forward'} temporaries": own}
        parts |= {
            f"{region.name}.{t} [{produced[t]}] across {unit.name}": region.tensors[t].bytes_at[produced[t]]
            for t in spanning(problem, region, unit)
        }
        worst = max(worst, parts, key=lambda p: sum(p.values()))
    return worst
