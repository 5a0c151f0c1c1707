"""Sizes as vectors over their terms, so that thousands of them are added, compared and evaluated at once.

12*batch*seq + 4*seq + 8   ->   [12, 4, 8] over the terms (batch*seq, seq, 1)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import sympy

from autopar.profiler.tape import Size


class Forms:
    """Distinct sizes, each a row of `matrix` over `terms`."""

    def __init__(self) -> None:
        self.terms: dict[sympy.Expr, int] = {}
        self.rows: list[dict[int, int]] = []
        self.known: dict[Size, int] = {}

    def add(self, size: Size) -> int:
        """The row of that size."""
        if size not in self.known:
            self.known[size] = len(self.rows)
            found = sympy.expand(size).as_coefficients_dict()
            self.rows.append({self.terms.setdefault(term, len(self.terms)): int(c) for term, c in found.items()})
        return self.known[size]

    @property
    def matrix(self) -> np.ndarray:
        made = np.zeros((len(self.rows), len(self.terms)), dtype=np.int64)
        for i, row in enumerate(self.rows):
            for term, coefficient in row.items():
                made[i, term] = coefficient
        return made

    def expression(self, row: np.ndarray) -> sympy.Expr:
        return sympy.Add(*(int(c) * term for term, c in zip(self.terms, row, strict=True) if c))

    def at(self, sizes: Mapping[sympy.Symbol, int]) -> np.ndarray:
        """All sizes as numbers."""
        numbers = np.array([int(term.xreplace(dict(sizes))) for term in self.terms], dtype=np.int64)
        return self.matrix @ numbers


def candidates(levels: np.ndarray, places: Sequence[tuple[int, int]]) -> np.ndarray:
    """Rows of `levels` of which one is the largest at every size; terms are positive.

    Dropped are rows that another equals or exceeds in every term, and rows in the middle of an arithmetic sequence (the same
    event in equal blocks: first or last is at least as large).
    """
    rows = np.unique(_ends(levels, places), axis=0)
    rows = rows[np.argsort(-rows.sum(axis=1))]
    kept: list[np.ndarray] = []
    while len(rows):
        best, rest = rows[0], rows[1:]
        kept.append(best)
        rows = rest[~(rest <= best).all(axis=1)]
    return np.array([row for i, row in enumerate(kept) if not any((row <= k).all() for k in kept[i + 1 :])])


def _ends(levels: np.ndarray, places: Sequence[tuple[int, int]]) -> np.ndarray:
    groups: dict[tuple[int, int], list[int]] = {}
    for i, place in enumerate(places):
        groups.setdefault(place, []).append(i)
    keep = []
    for members in groups.values():
        rows = levels[members]
        middle = np.zeros(len(members), dtype=bool)
        if len(members) > 2:
            middle[1:-1] = (rows[:-2] + rows[2:] == 2 * rows[1:-1]).all(axis=1)
        keep += [m for m, inside in zip(members, middle, strict=True) if not inside]
    return levels[keep]


def largest(options: Sequence[sympy.Expr]) -> sympy.Expr:
    """Their maximum as an expression."""
    if not options:
        return sympy.Integer(0)
    return sympy.Max(*options, evaluate=False) if len(options) > 1 else options[0]
