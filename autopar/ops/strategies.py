"""Strategies of a unit: on each mesh axis one factor is cut, or none; everything else follows.

From the choice follow the placements of operands and results: a tensor with the factor is S on that axis, an operand
without it R (its gradient is then a partial sum), and where no factor is chosen everything is I. A reduced factor makes
results P. Units of linear ops may also pass partial sums through.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from autopar.ir.conversion import in_mesh_order
from autopar.ir.placement import INVARIANT, PARTIAL, REPLICATE, Placement, State
from autopar.ops.factors import Dims, Factor
from autopar.ops.rule import INVARIANT as REDUCED_INSIDE
from autopar.ops.units import Unit, needs_grad

PASS_PARTIAL = "~"
"""In place of a factor: all operands and results are partial sums on that axis."""


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """`factors` per mesh axis (None: nothing is cut there); placements per operand and per result of the unit."""

    factors: tuple[Factor | None, ...]
    operands: tuple[Placement, ...]
    results: tuple[Placement, ...]

    def axes_of(self, factor: Factor) -> tuple[int, ...]:
        return tuple(axis for axis, f in enumerate(self.factors) if f == factor)

    def local_sizes(self, unit: Unit, axis_sizes: Sequence[int]) -> dict[Factor, int]:
        """Factor sizes on one device."""
        sizes = {f: int(n) for f, n in unit.sizes.items()}
        for axis, factor in enumerate(self.factors):
            if factor is not None and factor != PASS_PARTIAL:
                sizes[factor] //= axis_sizes[axis]
        return sizes


def strategies(unit: Unit, axis_sizes: Sequence[int]) -> tuple[Strategy, ...]:
    """All strategies whose cuts are even and whose operands and results have placements."""
    options: list[Factor | None] = [None, *unit.shardable]
    if unit.linear and any(needs_grad(n) for n in unit.results) and all(needs_grad(n) for n in unit.operands) and unit.operands:
        options.append(PASS_PARTIAL)
    found = (strategy(unit, choice, axis_sizes) for choice in itertools.product(options, repeat=len(axis_sizes)))
    return tuple(s for s in found if s is not None)


def strategy(unit: Unit, choice: Sequence[Factor | None], axis_sizes: Sequence[int]) -> Strategy | None:
    """The strategy of this choice; None if it cuts unevenly, or a tensor would have no placement."""
    cut: dict[Factor, list[int]] = {}
    for axis, factor in enumerate(choice):
        if factor is not None and factor != PASS_PARTIAL:
            cut.setdefault(factor, []).append(axis)
    local = {f: int(n) for f, n in unit.sizes.items()}
    for factor, axes in cut.items():
        for axis in axes:
            if local[factor] % axis_sizes[axis]:
                return None
            local[factor] //= axis_sizes[axis]
    operands = [operand_placement(unit, node, choice, cut, local) for node in unit.operands]
    results = [result_placement(unit, node, choice, cut, local) for node in unit.results]
    if any(p is None for p in (*operands, *results)):
        return None
    return Strategy(factors=tuple(choice), operands=tuple(operands), results=tuple(results))  # type: ignore[arg-type]


def operand_placement(
    unit: Unit,
    node: torch.fx.Node,
    choice: Sequence[Factor | None],
    cut: Mapping[Factor, list[int]],
    local: Mapping[Factor, int],
) -> Placement | None:
    def absent(factor: Factor | None) -> State | None:
        if factor is None or not needs_grad(node):
            return INVARIANT
        return PARTIAL if factor == PASS_PARTIAL else REPLICATE

    return placed(unit.dims[node], choice, cut, local, absent)


def result_placement(
    unit: Unit,
    node: torch.fx.Node,
    choice: Sequence[Factor | None],
    cut: Mapping[Factor, list[int]],
    local: Mapping[Factor, int],
) -> Placement | None:
    def absent(factor: Factor | None) -> State | None:
        if factor is None:
            return INVARIANT
        if factor == PASS_PARTIAL:
            return PARTIAL
        if factor in unit.reduced_at[node]:
            if REDUCED_INSIDE in unit.marks[factor]:
                return INVARIANT
            return PARTIAL if needs_grad(node) else None
        # the value does not depend on the factor: every device would compute it, and its gradient would be counted often
        return None if needs_grad(node) else INVARIANT

    return placed(unit.dims[node], choice, cut, local, absent)


def placed(
    dims: Dims, choice: Sequence[Factor | None], cut: Mapping[Factor, list[int]], local: Mapping[Factor, int], absent: object
) -> Placement | None:
    """The placement of a tensor with these dims; None where a dim would be cut by an inner factor only."""
    states: list[State | None] = [absent(factor) for factor in choice]  # type: ignore[operator]
    order: list[int] = []
    for d, factors in enumerate(dims):
        outer_is_whole = False
        for factor in factors:
            axes = cut.get(factor, [])
            if axes and outer_is_whole:
                return None
            for axis in axes:
                states[axis] = d
            order += axes
            outer_is_whole = outer_is_whole or local[factor] > 1
    if any(state is None for state in states):
        return None
    placement = Placement(tuple(states), tuple(order))  # type: ignore[arg-type]
    return placement if in_mesh_order(placement) else None
