"""Factors: the loop indices of an op, found by unification.

Every dim of every tensor is a product of factors, outermost first. Where two ops meet at a tensor, or where a reshape
regroups dims, the factor lists of both sides must describe the same loops: equal factors are merged, a larger one is split.
Sizes are ints, or sympy expressions in dynamic dims.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import sympy

from autopar.ir.program import Size

Factor = str
Dims = tuple[tuple[Factor, ...], ...]
"""Per dim of a tensor its factors, outermost first; a dim of size one has none."""


class CannotUnify(Exception):
    """Two factor lists do not cut the same loops (4 * 6 against 3 * 8)."""


def quotient(larger: Size, smaller: Size) -> Size | None:
    """`larger / smaller` if that is a whole number for all values of the symbols, else None."""
    if isinstance(larger, int) and isinstance(smaller, int):
        return larger // smaller if larger % smaller == 0 else None
    ratio = sympy.cancel(sympy.sympify(larger) / sympy.sympify(smaller))
    return ratio if sympy.denom(ratio) == 1 else None


@dataclass
class Space:
    """Factors under construction: sizes, what merged into what, what was split, and marks that merge along."""

    sizes: dict[Factor, Size] = field(default_factory=dict)
    parts: dict[Factor, tuple[Factor, ...]] = field(default_factory=dict)
    marks: dict[Factor, frozenset[str]] = field(default_factory=dict)

    def new(self, name: Factor, size: Size, marks: Iterable[str] = ()) -> Factor:
        unique, count = name, 0
        while unique in self.sizes or unique in self.parts:
            count += 1
            unique = f"{name}{count}"
        self.sizes[unique] = size
        self.marks[unique] = frozenset(marks)
        return unique

    def leaves(self, factors: Iterable[Factor]) -> list[Factor]:
        """The factors as they stand now, after merges and splits."""
        found: list[Factor] = []
        for factor in factors:
            found += self.leaves(self.parts[factor]) if factor in self.parts else [factor]
        return found

    def unify(self, left: Iterable[Factor], right: Iterable[Factor]) -> None:
        """Make both lists the same loops, in order; raises CannotUnify."""
        a, b = self.leaves(left)[::-1], self.leaves(right)[::-1]
        while a and b:
            x, y = a.pop(), b.pop()
            if x == y:
                continue
            if (size := self.sizes[x]) == self.sizes[y]:
                self._become(y, (x,))
                a, b = self.leaves(reversed(a))[::-1], self.leaves(reversed(b))[::-1]
                continue
            if quotient(size, self.sizes[y]) is None:
                x, y, a, b = y, x, b, a
            rest = quotient(self.sizes[x], self.sizes[y])
            if rest is None:
                raise CannotUnify(f"{self.sizes[x]} against {self.sizes[y]}")
            inner = self.new(x, rest, self.marks[x])
            self._become(x, (y, inner))
            a, b = self.leaves(reversed(a))[::-1], self.leaves(reversed(b))[::-1]
            a.append(inner)
        if a or b:
            raise CannotUnify("sizes differ")

    def _become(self, factor: Factor, parts: tuple[Factor, ...]) -> None:
        if factor in self.leaves(parts):
            raise CannotUnify(f"{factor} cannot be a part of itself")
        self.parts[factor] = parts
        del self.sizes[factor]
        inherited = self.marks.pop(factor)
        for part in parts:
            self.marks[part] = self.marks[part] | inherited

    def resolve(self, dims: Dims) -> Dims:
        return tuple(tuple(self.leaves(dim)) for dim in dims)


def local_shape(dims: Dims, sizes: Mapping[Factor, Size]) -> tuple[Size, ...]:
    """Product of factor sizes, per dim."""
    shape: list[Size] = []
    for dim in dims:
        size: Size = 1
        for factor in dim:
            size = size * sizes[factor]
        shape.append(size)
    return tuple(shape)


def flat(dims: Dims) -> Sequence[Factor]:
    return [factor for dim in dims for factor in dim]
