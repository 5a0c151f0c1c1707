"""Presolve: what is left to choose from once everything that no solution (or no better one) could use is gone.

Exact: a strategy goes only if another one wants and makes the same at no higher figure, or if no conversion path leads to
what it wants or from what it makes; an arc goes if it lies on no path from a producible to a wanted placement.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from autopar.errors import SolverError
from autopar.ir.placement import Placement
from autopar.solver.problem import Arc, Problem, Region, Strategy, Unit
from autopar.solver.restriction import FREE, Restriction

Key = tuple[str, str]
"""(region, unit) or (region, tensor)."""
Arcs = Mapping[Key, tuple[Arc, ...]]


@dataclass(frozen=True, kw_only=True)
class Consumer:
    """A wish for a tensor: of a unit (as operand `position`), or of a boundary that the region's output goes to."""

    unit: str | None = None
    position: int = 0
    boundary: str | None = None


@dataclass(frozen=True, kw_only=True)
class Space:
    """The remaining choices. `strategies` are indices into the unit's own list; `arcs` those of each tensor."""

    problem: Problem
    allow: Restriction
    strategies: Mapping[Key, tuple[int, ...]]
    arcs: Arcs
    boundaries: Mapping[str, tuple[Placement, ...]]
    rest: Mapping[str, tuple[Placement, ...]]

    def produced(self, region: Region, tensor: str) -> tuple[Placement, ...]:
        """Placements at which the tensor may come into being."""
        if tensor in region.inputs:
            return self.boundaries[region.inputs[tensor]]
        if tensor in region.state:
            return self.rest[region.state[tensor]]
        unit, position = maker(region, tensor)
        return _unique(unit.strategies[s].results[position] for s in self.strategies[region.name, unit.name])

    def wanted(self, region: Region, consumer: Consumer) -> tuple[Placement, ...]:
        """Placements at which the consumer may want its tensor."""
        if consumer.boundary is not None:
            return self.boundaries[consumer.boundary]
        assert consumer.unit is not None
        unit = region.unit[consumer.unit]
        return _unique(unit.strategies[s].operands[consumer.position] for s in self.strategies[region.name, unit.name])


def _unique(placements: Iterable[Placement]) -> tuple[Placement, ...]:
    return tuple(dict.fromkeys(placements))


def maker(region: Region, tensor: str) -> tuple[Unit, int]:
    """The unit that makes the tensor, and as which of its results."""
    for unit in region.units:
        if tensor in unit.results:
            return unit, unit.results.index(tensor)
    raise AssertionError(f"tensor {tensor!r} of region {region.name!r} has neither a unit, a boundary nor state")


def consumers(region: Region, strategies: Mapping[Key, tuple[int, ...]] | None = None) -> dict[str, list[Consumer]]:
    """Consumers of each tensor; operands of one unit that all `strategies` want alike are one consumer."""
    found: dict[str, list[Consumer]] = {name: [] for name in region.tensors}
    for unit in region.units:
        seen: set[tuple[str, tuple[Placement, ...]]] = set()
        allowed = range(len(unit.strategies)) if strategies is None else strategies[region.name, unit.name]
        for position, tensor in enumerate(unit.operands):
            wish = (tensor, tuple(unit.strategies[s].operands[position] for s in allowed))
            if wish not in seen:
                seen.add(wish)
                found[tensor].append(Consumer(unit=unit.name, position=position))
    for tensor, boundary in dict.fromkeys(region.outputs):
        found[tensor].append(Consumer(boundary=boundary))
    return found


class Ways:
    """Arcs as steps from placement to placement, either way."""

    def __init__(self, arcs: Iterable[Arc]) -> None:
        self.onward: dict[Placement, list[Placement]] = {}
        self.back: dict[Placement, list[Placement]] = {}
        for arc in arcs:
            self.onward.setdefault(arc.before, []).append(arc.after)
            self.back.setdefault(arc.after, []).append(arc.before)

    def reachable(self, starts: Iterable[Placement], *, backward: bool = False) -> set[Placement]:
        """All placements on paths from (backward: to) one of `starts`, these included."""
        steps = self.back if backward else self.onward
        seen = set(starts)
        todo = list(seen)
        while todo:
            for new in steps.get(todo.pop(), ()):
                if new not in seen:
                    seen.add(new)
                    todo.append(new)
        return seen


def narrow(problem: Problem, allow: Restriction = FREE, arcs: Arcs | None = None) -> Space:
    """The space of the problem under a restriction, and with only the given arcs; raises SolverError if nothing is left."""
    given = arcs or {(r.name, t.name): t.arcs for r in problem.regions for t in r.tensors.values()}
    strategies = {(r.name, u.name): _undominated(allowed(r, u, allow), u) for r in problem.regions for u in r.units}
    boundaries = {
        name: tuple(p for p in boundary.bytes_at if allow.boundary is None or allow.boundary(name, p))
        for name, boundary in problem.boundaries.items()
    }
    rest = {
        name: tuple(p for p in group.bytes_at if allow.rest is None or allow.rest(name, p))
        for name, group in problem.state.items()
    }
    return tighten(Space(problem=problem, allow=allow, strategies=strategies, arcs=given, boundaries=boundaries, rest=rest))


def tighten(space: Space) -> Space:
    """The space without what has become useless; raises SolverError if nothing is left."""
    by_arcs = {id(arcs): Ways(arcs) for arcs in {id(arcs): arcs for arcs in space.arcs.values()}.values()}
    ways = {key: by_arcs[id(arcs)] for key, arcs in space.arcs.items()}
    while True:
        tighter = _prune(space, ways)
        _assert_choices(tighter)
        if (tighter.strategies, tighter.boundaries, tighter.rest) == (space.strategies, space.boundaries, space.rest):
            return _without_idle_arcs(tighter, ways)
        space = tighter


def allowed(region: Region, unit: Unit, allow: Restriction) -> list[int]:
    """Indices of the unit's strategies that the restriction leaves."""
    return [i for i in range(len(unit.strategies)) if allow.strategy is None or allow.strategy(region.name, unit.name, i)]


def _figures(strategy: Strategy) -> tuple[float, ...]:
    return (
        strategy.forward_s,
        strategy.backward_s,
        strategy.saved_bytes,
        strategy.forward_temp_bytes,
        strategy.backward_temp_bytes,
    )


def _undominated(indices: list[int], unit: Unit) -> tuple[int, ...]:
    best: dict[tuple[tuple[Placement, ...], tuple[Placement, ...]], list[int]] = {}
    for i in indices:
        new = unit.strategies[i]
        rivals = best.setdefault((new.operands, new.results), [])
        if any(_no_worse(unit.strategies[old], new) for old in rivals):
            continue
        rivals[:] = [old for old in rivals if not _no_worse(new, unit.strategies[old])] + [i]
    return tuple(sorted(i for rivals in best.values() for i in rivals))


def _no_worse(a: Strategy, b: Strategy) -> bool:
    return all(x <= y for x, y in zip(_figures(a), _figures(b), strict=True))


def _prune(space: Space, ways: Mapping[Key, Ways]) -> Space:
    problem = space.problem
    usable: dict[Key, set[Placement]] = {}
    reached: dict[Key, set[Placement]] = {}
    for region in problem.regions:
        for tensor, wishes in consumers(region).items():
            key = (region.name, tensor)
            leading = [ways[key].reachable(space.wanted(region, wish), backward=True) for wish in wishes]
            made = region.tensors[tensor].bytes_at.keys() & set(space.produced(region, tensor))
            usable[key] = {p for p in made if all(p in lead for lead in leading)}
            reached[key] = ways[key].reachable(usable[key])
    strategies = {
        (region.name, unit.name): tuple(
            s
            for s in space.strategies[region.name, unit.name]
            if all(p in usable[region.name, t] for t, p in zip(unit.results, unit.strategies[s].results, strict=True))
            and all(p in reached[region.name, t] for t, p in zip(unit.operands, unit.strategies[s].operands, strict=True))
        )
        for region in problem.regions
        for unit in region.units
    }
    boundaries, rest = dict(space.boundaries), dict(space.rest)
    for region in problem.regions:
        for tensor, name in region.inputs.items():
            boundaries[name] = tuple(p for p in boundaries[name] if p in usable[region.name, tensor])
        for tensor, name in region.outputs:
            boundaries[name] = tuple(p for p in boundaries[name] if p in reached[region.name, tensor])
        for tensor, name in region.state.items():
            rest[name] = tuple(p for p in rest[name] if p in usable[region.name, tensor])
    return replace(space, strategies=strategies, boundaries=boundaries, rest=rest)


def _assert_choices(space: Space) -> None:
    for what, choices in (("unit", space.strategies), ("boundary", space.boundaries), ("state", space.rest)):
        for name, left in choices.items():
            if not left:
                where = name if isinstance(name, str) else " of region ".join(reversed(name))
                raise SolverError(
                    f"{what} {where} has no choice left: no strategy is allowed whose placements its neighbours can reach; "
                    "loosen the restriction"
                )


def _without_idle_arcs(space: Space, ways: Mapping[Key, Ways]) -> Space:
    arcs: dict[Key, tuple[Arc, ...]] = {}
    for region in space.problem.regions:
        for tensor, wishes in consumers(region).items():
            key = (region.name, tensor)
            sources = ways[key].reachable(space.produced(region, tensor))
            targets = ways[key].reachable({p for wish in wishes for p in space.wanted(region, wish)}, backward=True)
            arcs[key] = tuple(a for a in space.arcs[key] if a.before in sources and a.after in targets)
    return replace(space, arcs=arcs)
