"""What is kept for backward, by the op that made it, and what exists beside that for a moment."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import sympy

from autopar.profiler.closed_form import largest
from autopar.profiler.rows import Paths
from autopar.profiler.step import Recording
from autopar.profiler.tape import GRADIENT, MADE, Size
from autopar.profiler.timeline import Timeline


@dataclass(frozen=True, kw_only=True)
class KeptRow:
    """Memory that an op of a module makes in forward and backward reads: `count` pieces of `one_bytes` bytes in a step."""

    region: str
    path: str
    op: str
    count: int
    one_bytes: sympy.Expr

    @property
    def bytes(self) -> sympy.Expr:
        return self.count * self.one_bytes


def kept_rows(recording: Recording, changes: Timeline) -> list[KeptRow]:
    """In the order in which forward makes them."""
    paths = Paths(recording)
    counts: Counter[tuple[str, str, str, Size]] = Counter()
    for storage, count in changes.saved.items():
        if storage.kind == MADE:
            place = paths.region(storage.path), paths.starred(storage.path)
            counts[(*place, storage.op, storage.bytes)] += count
    return [
        KeptRow(region=region, path=path, op=op, count=count, one_bytes=sympy.sympify(size))
        for (region, path, op, size), count in counts.items()
    ]


def temporary_bytes(changes: Timeline) -> sympy.Expr:
    """The most that exists at once of what is neither kept for backward nor a parameter's gradient."""
    passing = Timeline(
        tuple(c for c in changes.changes if c.storage.kind != GRADIENT and c.storage not in changes.saved), forward_end=0
    )
    return largest(passing.peaks())
