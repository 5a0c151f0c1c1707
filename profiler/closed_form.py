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

    @property
    def from_one(self) -> np.ndarray:
        """Maps a row to coefficients over products of (dim - 1): a row without negative ones is positive at all sizes."""
        index: dict[sympy.Expr, int] = {}
        entries = []
        for i, term in enumerate(self.terms):
            shifted = term.xreplace({dim: dim + 1 for dim in term.free_symbols}) if term.is_polynomial() else term
            for part, c in sympy.expand(shifted).as_coefficients_dict().items():
                entries.append((i, index.setdefault(part, len(index)), int(c)))
        made = np.zeros((len(self.terms), len(index)), dtype=np.int64)
        for i, j, c in entries:
            made[i, j] = c
        return made


def candidates(levels: np.ndarray, places: Sequence[tuple[int, int]], from_one: np.ndarray) -> np.ndarray:
    """Rows of `levels` of which one is the largest at every size.

    Dropped are rows that another equals or exceeds at all sizes from 1 on, as `Forms.from_one` shows, and rows in the middle
    of an arithmetic sequence (the same event in equal blocks: first or last is at least as large).
    """
    rows = np.unique(_ends(levels, places), axis=0)
    return rows[undominated(rows @ from_one)]


def undominated(rows: np.ndarray) -> list[int]:
    """Indices of rows that no other one equals or exceeds in every column; of equal ones the first."""
    waiting = np.argsort(-rows.sum(axis=1), kind="stable")
    kept: list[int] = []
    while len(waiting):
        best, rest = waiting[0], waiting[1:]
        kept.append(int(best))
        waiting = rest[~(rows[rest] <= rows[best]).all(axis=1)]
    return [k for i, k in enumerate(kept) if not any((rows[k] <= rows[other]).all() for other in kept[i + 1 :])]


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


def pruned(options: Sequence[sympy.Expr]) -> list[sympy.Expr]:
    """Without those that another equals or exceeds at all sizes from 1 on."""
    forms = Forms()
    distinct = list(dict.fromkeys(options))
    rows = [forms.add(option) for option in distinct]
    return [distinct[i] for i in undominated(forms.matrix[rows] @ forms.from_one)] if distinct else []


def largest(options: Sequence[sympy.Expr]) -> sympy.Expr:
    """Their maximum as an expression, for sizes from 1 on."""
    kept = pruned(options)
    if not kept:
        return sympy.Integer(0)
    return sympy.Max(*kept, evaluate=False) if len(kept) > 1 else kept[0]
