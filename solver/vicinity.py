"""The few placements and conversions that a strict restriction can use, found without looking at all the others.

On three axes a tensor has hundreds of placements and thousands of conversions; a baseline's units make and want a handful.
Per axis a tensor then only takes states that a unit makes or wants there, or is invariant.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from autopar.ir.placement import INVARIANT, Placement, State
from autopar.solver.problem import Arc, Problem, Region
from autopar.solver.restriction import Restriction
from autopar.solver.space import Key, Space, Ways, allowed

States = tuple[set[State], ...]
"""Per axis."""
At = defaultdict[Key, set[Placement]]


class Vicinity:
    """Conversions of a problem by where they start, for many restrictions."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.starting: dict[Key, dict[Placement, list[Arc]]] = {}
        for region in problem.regions:
            for tensor in region.tensors.values():
                at = self.starting[region.name, tensor.name] = defaultdict(list)
                for arc in tensor.arcs:
                    at[arc.before].append(arc)

    def of(self, allow: Restriction) -> Space:
        """The restriction's space: boundaries only where their makers and readers are, arcs only between such places."""
        strategies = {(r.name, u.name): tuple(allowed(r, u, allow)) for r in self.problem.regions for u in r.units}
        rest = {
            name: tuple(p for p in group.bytes_at if allow.rest is None or allow.rest(name, p))
            for name, group in self.problem.state.items()
        }
        made, wanted = self.touched(strategies, rest)
        states = {key: self.states(made[key] | wanted[key]) for key in self.starting}
        boundaries = self.boundaries(states, allow)
        for region in self.problem.regions:
            for tensor, name in links(region):
                widen(states[region.name, tensor], self.states(boundaries[name]))
                (made if region.inputs.get(tensor) == name else wanted)[region.name, tensor].update(boundaries[name])
        return Space(
            problem=self.problem,
            allow=allow,
            strategies=strategies,
            arcs={key: self.between(key, made[key], wanted[key], states[key]) for key in self.starting},
            boundaries=boundaries,
            rest=rest,
        )

    def touched(self, strategies: Mapping[Key, Sequence[int]], rest: Mapping[str, Iterable[Placement]]) -> tuple[At, At]:
        """Where each tensor may come into being, and where units may want it."""
        made, wanted = defaultdict[Key, set[Placement]](set), defaultdict[Key, set[Placement]](set)
        for region in self.problem.regions:
            for unit in region.units:
                for s in (unit.strategies[i] for i in strategies[region.name, unit.name]):
                    for tensor, placement in zip(unit.results, s.results, strict=True):
                        made[region.name, tensor].add(placement)
                    for tensor, placement in zip(unit.operands, s.operands, strict=True):
                        wanted[region.name, tensor].add(placement)
            for tensor, group in region.state.items():
                made[region.name, tensor].update(rest[group])
        return made, wanted

    def states(self, placements: Iterable[Placement]) -> States:
        found: States = tuple({INVARIANT} for _ in range(self.problem.axes))
        for placement in placements:
            for axis, state in enumerate(placement.states):
                found[axis].add(state)
        return found

    def boundaries(self, states: Mapping[Key, States], allow: Restriction) -> dict[str, tuple[Placement, ...]]:
        """Placements of each boundary that are, on every axis, as some unit on either side has it."""
        near = {name: self.states(()) for name in self.problem.boundaries}
        for region in self.problem.regions:
            for tensor, name in links(region):
                widen(near[name], states[region.name, tensor])
        return {
            name: tuple(
                p
                for p in boundary.bytes_at
                if takes_only(p, near[name]) and (allow.boundary is None or allow.boundary(name, p))
            )
            for name, boundary in self.problem.boundaries.items()
        }

    def between(self, key: Key, starts: set[Placement], ends: set[Placement], states: States) -> tuple[Arc, ...]:
        """Arcs on paths from `starts` to `ends` through these states."""
        seen, todo, found = set(starts), sorted(starts, key=str), []
        while todo:
            for arc in self.starting[key].get(todo.pop(), ()):
                if takes_only(arc.after, states):
                    found.append(arc)
                    if arc.after not in seen:
                        seen.add(arc.after)
                        todo.append(arc.after)
        useful = Ways(found).reachable(ends, backward=True)
        return tuple(arc for arc in found if arc.after in useful)


def links(region: Region) -> list[tuple[str, str]]:
    """(tensor, boundary) of inputs and outputs."""
    return [*region.inputs.items(), *region.outputs]


def widen(states: States, more: States) -> None:
    for mine, others in zip(states, more, strict=True):
        mine |= others


def takes_only(placement: Placement, states: States) -> bool:
    return all(state in options for state, options in zip(placement.states, states, strict=True))
