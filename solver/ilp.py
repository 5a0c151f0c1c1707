"""A mixed-integer program as plain arrays, row by row: what `model` writes and `adapter` hands to a solver."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

Term = tuple[int, float]
"""(variable, coefficient)."""


@dataclass
class Ilp:
    """minimise Σ cost·v subject to lower <= v <= upper, row_lower <= rows <= row_upper, v integer where `integer`."""

    cost: list[float] = field(default_factory=list)
    lower: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    integer: list[bool] = field(default_factory=list)
    row_lower: list[float] = field(default_factory=list)
    row_upper: list[float] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0])
    columns: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def variable(self, *, cost: float = 0.0, upper: float = 1.0, integer: bool = False) -> int:
        """A new variable in [0, upper]."""
        self.cost.append(cost)
        self.lower.append(0.0)
        self.upper.append(upper)
        self.integer.append(integer)
        return len(self.cost) - 1

    def row(self, terms: Iterable[Term], *, at_least: float = -math.inf, at_most: float = math.inf) -> None:
        """A new row; a variable may occur several times."""
        merged: dict[int, float] = {}
        for variable, coefficient in terms:
            merged[variable] = merged.get(variable, 0.0) + coefficient
        for variable, coefficient in merged.items():
            if coefficient:
                self.columns.append(variable)
                self.values.append(coefficient)
        self.starts.append(len(self.columns))
        self.row_lower.append(at_least)
        self.row_upper.append(at_most)

    def relaxed(self) -> Ilp:
        """The same without integrality."""
        return replace(self, integer=[False] * self.variables)

    def without(self, variables: Iterable[int]) -> Ilp:
        """The same with these variables at zero."""
        upper = list(self.upper)
        for variable in variables:
            upper[variable] = 0.0
        return replace(self, upper=upper)

    @property
    def variables(self) -> int:
        return len(self.cost)

    @property
    def rows(self) -> int:
        return len(self.row_lower)
