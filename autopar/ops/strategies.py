"""Strategies of a unit: on each mesh axis one factor is cut, or none; everything else follows.

From the choice follow the placements of operands and results: a tensor with the factor is S on that axis, an operand
without it R (its gradient is then a partial sum), and where no factor is chosen everything is I. A reduced factor makes
results P. Units of linear ops may also pass partial sums through. Where pieces of one factor travel to those of another, both
are cut on one axis, as in "b0+e": a tensor with either is S there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from autopar.ir.conversion import in_mesh_order
from autopar.ir.placement import INVARIANT, PARTIAL, REPLICATE, Placement, State, piece_size
from autopar.ops.factors import Factor
from autopar.ops.rule import BY_PLACE
from autopar.ops.rule import INVARIANT as REDUCED_INSIDE
from autopar.ops.units import TOGETHER, Unit, needs_grad

PASS_PARTIAL = "~"
"""In place of a factor: all operands and results are partial sums on that axis."""


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """`factors` per mesh axis (None: nothing is cut there; "b0+e": both are); placements per operand and result of the unit."""

    factors: tuple[Factor | None, ...]
    operands: tuple[Placement, ...]
    results: tuple[Placement, ...]

    def axes_of(self, factor: Factor) -> tuple[int, ...]:
        """Those that cut the factor, also together with another one."""
        return tuple(axis for axis, choice in enumerate(self.factors) if factor in cut_by(choice))

    def axes_choosing(self, choice: str) -> tuple[int, ...]:
        return tuple(axis for axis, chosen in enumerate(self.factors) if chosen == choice)

    def local_sizes(self, unit: Unit, axis_sizes: Sequence[int]) -> dict[Factor, int]:
        """Factor sizes on one device, padding included."""
        sizes = {f: int(n) for f, n in unit.sizes.items()}
        for axis, choice in enumerate(self.factors):
            for factor in cut_by(choice):
                sizes[factor] = -(-sizes[factor] // axis_sizes[axis])
        return sizes

    def parts(self, factor: Factor, axis_sizes: Sequence[int]) -> int:
        """Into how many pieces the factor is cut."""
        return math.prod(axis_sizes[axis] for axis in self.axes_of(factor))

    def padded(self, unit: Unit, axis_sizes: Sequence[int]) -> frozenset[Factor]:
        """Factors that are cut unevenly, so that the last piece is padded."""
        cut = {factor for choice in self.factors for factor in cut_by(choice)}
        return frozenset(f for f in cut if int(unit.sizes[f]) % self.parts(f, axis_sizes))


def cut_by(choice: str | None) -> tuple[Factor, ...]:
    """The factors that are cut by what a strategy chooses on an axis.

    >>> cut_by("b0"), cut_by("b0+e"), cut_by("~"), cut_by(None)
    (('b0',), ('b0', 'e'), (), ())
    """
    return () if choice is None or choice == PASS_PARTIAL else tuple(choice.split(TOGETHER))


def strategies(unit: Unit, axis_sizes: Sequence[int]) -> tuple[Strategy, ...]:
    """All strategies whose cuts are even (or uneven where the unit tolerates it) and whose operands and results have
    placements; an axis of one device cuts nothing."""
    known = options(unit)
    choices = itertools.product(*(known if size > 1 else (None,) for size in axis_sizes))
    found = (strategy(unit, choice, axis_sizes) for choice in choices)
    return tuple(s for s in found if s is not None)


def options(unit: Unit) -> tuple[Factor | None, ...]:
    """What a strategy may choose on an axis."""
    passes = unit.linear and any(needs_grad(n) for n in unit.results) and all(needs_grad(n) for n in unit.operands)
    return (None, *unit.shardable, *unit.exchanged, *((PASS_PARTIAL,) if passes and unit.operands else ()))


def strategy(unit: Unit, choice: Sequence[Factor | None], axis_sizes: Sequence[int]) -> Strategy | None:
    """The strategy of this choice; None if it cuts unevenly what it must not, a tensor would have no placement, or a node
    several codes."""
    cut = _Cut.of(unit, tuple(choice), axis_sizes)
    if cut is None or cut.tears_rows() or cut.wants_two_implementations():
        return None
    operands = [cut.placed(node, cut.operand_without) for node in unit.operands]
    results = [cut.placed(node, cut.result_without) for node in unit.results]
    found = tuple(p for p in operands if p is not None), tuple(p for p in results if p is not None)
    if (len(found[0]), len(found[1])) != (len(operands), len(results)):
        return None
    return Strategy(factors=cut.choice, operands=found[0], results=found[1])


@dataclass(frozen=True)
class _Cut:
    """One choice for a unit: the mesh axes that cut each factor, and what is left of the factors on one device."""

    unit: Unit
    choice: tuple[Factor | None, ...]
    axes: Mapping[Factor, Sequence[int]]
    local: Mapping[Factor, int]

    @staticmethod
    def of(unit: Unit, choice: tuple[Factor | None, ...], axis_sizes: Sequence[int]) -> _Cut | None:
        """None if it cuts unevenly what it must not."""
        cut: dict[Factor, list[int]] = {}
        local = {f: int(n) for f, n in unit.sizes.items()}
        for axis, chosen in enumerate(choice):
            for factor in cut_by(chosen):
                cut.setdefault(factor, []).append(axis)
        for factor, axes in cut.items():
            size = piece_size(local[factor], [axis_sizes[axis] for axis in axes], ragged=factor in unit.ragged)
            if size is None:
                return None
            local[factor] = size
        return _Cut(unit, choice, cut, local)

    def wants_two_implementations(self) -> bool:
        """Whether factors are cut for which different code would have to run in the place of one node."""
        wanted: dict[str, str] = {}
        places = (place for factor in self.axes for place in self.unit.sharded.get(factor, ()))
        return any(wanted.setdefault(node, implementation) != implementation for node, implementation, _ in places)

    def operand_without(self, node: torch.fx.Node, factor: Factor | None) -> State | None:
        """On an axis that cuts a factor which this operand does not have."""
        if factor is None or not needs_grad(node):
            return INVARIANT
        return PARTIAL if factor == PASS_PARTIAL else REPLICATE

    def result_without(self, node: torch.fx.Node, factor: Factor | None) -> State | None:
        """On an axis that cuts a factor which this result does not have; None if there is no such placement."""
        if factor is None:
            return INVARIANT
        if factor == PASS_PARTIAL:
            return PARTIAL
        if factor in self.unit.reduced_at[node]:
            if REDUCED_INSIDE in self.unit.marks[factor]:
                return INVARIANT
            return PARTIAL if needs_grad(node) else None
        # the value does not depend on the factor: every device would compute it, and its gradient would be counted often
        return None if needs_grad(node) else INVARIANT

    def tears_rows(self) -> bool:
        """Whether a device's rows of a dim would not lie together (the inner part of a merged dim is cut), and must."""
        places = self.unit.sharded
        torn = {f for f in self.axes if any(implementation in BY_PLACE for _, implementation, _ in places.get(f, ()))}
        if not torn:
            return False
        dims = (dim for dims in self.unit.dims.values() for dim in dims if torn & set(dim))
        return any(f in torn and any(self.local[outer] > 1 for outer in dim[:i]) for dim in dims for i, f in enumerate(dim))

    def placed(self, node: torch.fx.Node, without: Callable[[torch.fx.Node, Factor | None], State | None]) -> Placement | None:
        """The placement of a tensor; None where a dim would be cut by an inner factor only, or `without` has none."""
        states = [without(node, factor) for factor in self.choice]
        order: list[int] = []
        for d, factors in enumerate(self.unit.dims[node]):
            outer_is_whole = False
            for factor in factors:
                axes = self.axes.get(factor, ())
                if axes and outer_is_whole:
                    return None
                for axis in axes:
                    if isinstance(states[axis], int):
                        return None  # it has both factors that the axis cuts together
                    states[axis] = d
                order += axes
                outer_is_whole = outer_is_whole or self.local[factor] > 1
        known = tuple(state for state in states if state is not None)
        if len(known) < len(states):
            return None
        placement = Placement(known, tuple(order))
        return placement if in_mesh_order(placement) else None
