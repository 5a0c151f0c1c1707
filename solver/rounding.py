"""From a solver's floats to a Solution with nothing useless in it, and back to a start for the solver."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from autopar.ir.placement import Placement
from autopar.solver.check import check, reads
from autopar.solver.problem import Arc, ClassChoice, Problem, Region, RegionChoice, Solution
from autopar.solver.space import Arcs, Space
from autopar.solver.variables import Model

Step = tuple[str, Placement, Placement]
Place = tuple[str, Placement]
Option = TypeVar("Option")


def to_solution(model: Model, values: Sequence[float]) -> Solution:
    """The plan that the values stand for, with its true cost and peak (no bound yet); values must be integral."""
    draft = draft_of(model, values)
    regions = {
        region.name: _region(model, values, region, draft.regions[region.name].strategies, draft)
        for region in model.space.problem.regions
    }
    return judged(model.space.problem, replace(draft, regions=regions))


def draft_of(model: Model, values: Sequence[float]) -> Solution:
    """Only the shared choices (strategies, boundaries, rest): all that a relaxed model's values are good for."""
    regions = {
        region.name: RegionChoice(
            strategies={unit.name: _largest(model.x[region.name, unit.name], values) for unit in region.units},
            converted=frozenset(),
            classes=(),
        )
        for region in model.space.problem.regions
    }
    return Solution(
        regions=regions,
        boundaries={name: _largest(options, values) for name, options in model.beta.items()},
        rest={name: _largest(options, values) for name, options in model.rest.items()},
        cost_s=0.0,
        peak_bytes=0.0,
        bound_s=0.0,
        status="feasible",
    )


def _largest(options: Mapping[Option, int], values: Sequence[float]) -> Option:
    return max(options, key=lambda option: values[options[option]])


def judged(problem: Problem, solution: Solution) -> Solution:
    """The solution with the checker's cost and peak; raises InvalidSolution if it is none (budget aside)."""
    verdict = check(problem, solution, claims=False, budget=False)
    return replace(solution, cost_s=verdict.cost_s, peak_bytes=verdict.peak_bytes)


def _region(
    model: Model, values: Sequence[float], region: Region, strategies: Mapping[str, int], draft: Solution
) -> RegionChoice:
    produced, wants = placed(region, strategies, draft)
    support = {
        (tensor, *arc) for tensor in region.tensors for arc, v in model.y[region.name, tensor].items() if values[v] > 0.5
    }
    choices = []
    for number in range(len(region.classes)):
        choices.append(_class(model, values, region, strategies, produced, draft, support, number))
    converted: set[Step] = set()
    for tensor in region.tensors:
        pinned = {step for keep in choices for step in keep.reconverted if step[0] == tensor}
        targets = {p for name, p in wants if name == tensor} | {p for keep in choices for t, p in keep.kept if t == tensor}
        targets = (targets | {step[1] for step in pinned}) - {produced[tensor]}
        steps = {step for step in support if step[0] == tensor}
        arcs = model.space.arcs[region.name, tensor]
        hidden = tensor in region.state and model.space.problem.overlap
        free = not model.memory and not hidden and len(targets) == 1
        converted |= tree(tensor, arcs, steps, produced[tensor], targets, pinned, free=free)
    return RegionChoice(strategies=strategies, converted=frozenset(converted), classes=tuple(choices))


def placed(region: Region, strategies: Mapping[str, int], draft: Solution) -> tuple[dict[str, Placement], set[Place]]:
    """Where each tensor is produced, and all (tensor, placement) that forward wants."""
    produced = {name: draft.boundaries[b] for name, b in region.inputs.items()}
    produced |= {name: draft.rest[g] for name, g in region.state.items()}
    wants = {(name, draft.boundaries[b]) for name, b in region.outputs}
    for unit in region.units:
        strategy = unit.strategies[strategies[unit.name]]
        produced |= zip(unit.results, strategy.results, strict=True)
        wants |= set(zip(unit.operands, strategy.operands, strict=True))
    return produced, wants


def _class(
    model: Model,
    values: Sequence[float],
    region: Region,
    strategies: Mapping[str, int],
    produced: Mapping[str, Placement],
    draft: Solution,
    support: set[Step],
    number: int,
) -> ClassChoice:
    if not model.memory:
        return demand(model.space.problem, region, strategies, produced, draft, None, set(), set())
    own = model.classes[region.name][number]
    kept = {key for options in (own.kept, own.kept_once) for key, v in options.items() if values[v] > 0.5}
    redone = {unit for (unit, s), v in own.redone.items() if values[v] > 0.5 and strategies[unit] == s}
    again = {(t, *arc) for (t, arc), v in own.again.items() if values[v] > 0.5 and (t, *arc) in support}
    return demand(model.space.problem, region, strategies, produced, draft, kept, redone, again)


def always_there(problem: Problem, region: Region, solution: Solution) -> set[Place]:
    """State at rest and program inputs: in memory anyway."""
    found = {(name, solution.rest[group]) for name, group in region.state.items()}
    inputs = {name: b for name, b in region.inputs.items() if problem.boundaries[b].resident}
    return found | {(name, solution.boundaries[b]) for name, b in inputs.items()}


def demand(
    problem: Problem,
    region: Region,
    strategies: Mapping[str, int],
    produced: Mapping[str, Placement],
    draft: Solution,
    kept: Collection[Place] | None,
    redone: Collection[str],
    again: Collection[Step],
) -> ClassChoice:
    """What of `kept` (None: anything may be kept), `redone` and `again` backward really needs, by following its reads."""
    free = always_there(problem, region, draft)
    makers = {name: unit.name for unit in region.units for name in unit.results}
    chosen = {unit.name: unit.strategies[strategies[unit.name]] for unit in region.units}
    ways = {(t, after): (t, before, after) for t, before, after in again}
    used_kept: set[Place] = set()
    used_redone = {name for name in redone if chosen[name].saved_bytes}
    used_again: set[Step] = set()
    todo = [place for unit in region.units for place in reads(unit, chosen[unit.name])]
    todo += [
        place for name in sorted(used_redone) for place in zip(region.unit[name].operands, chosen[name].operands, strict=True)
    ]
    seen: set[Place] = set()
    while todo:
        place = todo.pop()
        if place in seen or place in free:
            continue
        seen.add(place)
        maker = makers.get(place[0])
        remade = maker in redone and produced[place[0]] == place[1]
        if kept is None or (place in kept and not (remade and maker in used_redone)):
            used_kept.add(place)
        elif remade:
            assert maker is not None
            if maker not in used_redone:
                used_redone.add(maker)
                todo += zip(region.unit[maker].operands, chosen[maker].operands, strict=True)
        else:
            assert place in ways, f"backward of region {region.name} has no {place[0]} at [{place[1]}]: the model is wrong"
            used_again.add(ways[place])
            todo.append((place[0], ways[place][1]))
    used_kept = {(t, p) for t, p in used_kept if not (makers.get(t) in used_redone and produced[t] == p)}
    inside = {name for name, strategy in chosen.items() if strategy.saved_bytes and name not in used_redone}
    return ClassChoice(
        kept=frozenset(used_kept),
        kept_internals=frozenset(inside),
        redone=frozenset(used_redone),
        reconverted=frozenset(used_again),
    )


def tree(
    tensor: str,
    arcs: Sequence[Arc],
    steps: set[Step],
    root: Placement,
    targets: set[Placement],
    pinned: set[Step],
    *,
    free: bool,
) -> set[Step]:
    """The conversions to execute: a smallest part of `steps` that holds `pinned` and leads from `root` to all `targets`.

    `free`: one target, for which any shortest path will do (the solver's may be a mixture of equally short ones).
    """
    cost = {(tensor, a.before, a.after): a.forward_s + a.backward_s for a in arcs}
    if not targets:
        return set(pinned)
    if free:
        steps = shortest_path(cost, root, next(iter(targets)))
    for step in sorted(steps - pinned, key=lambda s: (-cost[s], str(s))):
        rest = steps - {step}
        if targets <= _reached(rest, root) and all(before in _reached(rest, root) for _, before, _ in pinned):
            steps = rest
    return steps


def _reached(steps: Collection[Step], root: Placement) -> set[Placement]:
    seen = {root}
    while new := {after for _, before, after in steps if before in seen} - seen:
        seen |= new
    return seen


def shortest_path(cost: Mapping[Step, float], root: Placement, target: Placement) -> set[Step]:
    """Dijkstra, small: the steps of a cheapest path (fewest steps among equals)."""
    best: dict[Placement, tuple[float, int]] = {root: (0.0, 0)}
    via: dict[Placement, Step] = {}
    todo = {root}
    while todo:
        here = min(todo, key=lambda p: (best[p], str(p)))
        todo.discard(here)
        for step, seconds in cost.items():
            if step[1] == here:
                new = (best[here][0] + seconds, best[here][1] + 1)
                if step[2] not in best or new < best[step[2]]:
                    best[step[2]], via[step[2]] = new, step
                    todo.add(step[2])
    path, at = set(), target
    while at != root:
        path.add(via[at])
        at = via[at][1]
    return path


def to_start(model: Model, solution: Solution) -> dict[int, float]:
    """Values of the integer variables that stand for the solution; the solver fills in the rest."""
    start: dict[int, float] = {}

    def put(options: Mapping[object, int], chosen: Collection[object]) -> None:
        for option, v in options.items():
            if model.ilp.integer[v]:
                start[v] = float(option in chosen)

    for (region, unit), x in model.x.items():
        put(x, {solution.regions[region].strategies[unit]})  # type: ignore[arg-type]
    for name, options in model.beta.items():
        put(options, {solution.boundaries[name]})  # type: ignore[arg-type]
    for name, options in model.rest.items():
        put(options, {solution.rest[name]})  # type: ignore[arg-type]
    for (region, tensor), y in model.y.items():
        put(y, {(b, a) for t, b, a in solution.regions[region].converted if t == tensor})  # type: ignore[arg-type]
    for region, classes in model.classes.items():
        for own, keep in zip(classes, solution.regions[region].classes, strict=False):
            strategies, inputs = solution.regions[region].strategies, model.space.problem.region[region].inputs
            as_it_came = {key for key in own.kept_once if solution.boundaries[inputs[key[0]]] == key[1]}
            put(own.kept, keep.kept - as_it_came)  # type: ignore[arg-type]
            put(own.kept_once, keep.kept & as_it_came)  # type: ignore[arg-type]
            put(own.redone, {(unit, strategies[unit]) for unit in keep.redone})  # type: ignore[arg-type]
    return start


def arcs_of(space: Space, solution: Solution) -> Arcs:
    """Arcs that the solution executes."""
    used = {(name, *step) for name, choice in solution.regions.items() for step in choice.converted}
    return {key: tuple(a for a in arcs if (*key, a.before, a.after) in used) for key, arcs in space.arcs.items()}
