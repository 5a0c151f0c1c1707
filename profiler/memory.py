"""The memory of a step at given sizes: its course over time, its peak, what is alive there and how each part of it grows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import sympy

from autopar.profiler.tape import BACKWARD, FORWARD, GRADIENT, Storage
from autopar.profiler.timeline import Timeline, total

STEP = "optimizer"
KINDS = ("gradients", "activations", "temporaries")
"""Of memory that comes and goes."""


@dataclass(frozen=True)
class Alive:
    """Memory at the peak that one op of one module made, in all equal blocks (their index a star): `kind` is one of KINDS."""

    kind: str
    path: str
    op: str
    count: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class MemoryAt:
    """`levels` are the bytes alive after each change of memory, what rests included; `forward_end` the first of backward.

    `course` has their parts that come and go: gradients, activations (kept for backward) and temporaries; `step_bytes` are
    temporaries of the optimizer, after the last change. `phase` says where the peak is: in forward, backward, or the
    optimizer's step; `path` and `op` made what reached it ("" in the optimizer's step). `split` sums up to `peak_bytes`:
    parameters, compute copies, gradient buffers, optimizer, buffers, inputs (these rest), and the parts of `course`; `growth`
    has the same parts of that moment as expressions in the dynamic dims.
    """

    levels: tuple[int, ...]
    course: Mapping[str, tuple[int, ...]]
    forward_end: int
    step_bytes: int
    phase: str
    peak_bytes: int
    peak_index: int
    path: str
    op: str
    split: Mapping[str, int]
    growth: Mapping[str, sympy.Expr]
    alive: tuple[Alive, ...]


def memory_at(
    changes: Timeline,
    rests: Mapping[str, sympy.Expr],
    step_bytes: int,
    values: Mapping[sympy.Symbol, int],
    starred: Callable[[str], str] = str,
) -> MemoryAt:
    """`starred` gives a module's path with the index of a repeated block as a star."""
    resting = {name: int(size.xreplace(dict(values))) for name, size in rests.items()}
    rest = sum(resting.values())
    level = changes.bytes(dict(values))
    levels = [rest + int(each) for each in level] or [rest]
    index = max(range(len(levels)), key=levels.__getitem__)
    stepping = levels[-1] + step_bytes
    phase = FORWARD if index < changes.forward_end else BACKWARD
    if stepping > levels[index]:
        index, phase = len(levels) - 1, STEP
    alive = sorted(alive_at(changes, index + 1, values, starred), key=lambda a: -a.bytes)
    growth = dict(rests) | growth_at(changes, index + 1)
    split = dict(resting) | dict.fromkeys(KINDS, 0)
    for found in alive:
        split[found.kind] += found.bytes
    if phase == STEP:
        split["temporaries"] += step_bytes
        growth["temporaries"] += step_bytes
    made = changes.changes[index].storage if phase != STEP and changes.changes else None
    return MemoryAt(
        levels=tuple(levels),
        course=course_of(changes, level),
        forward_end=changes.forward_end,
        step_bytes=step_bytes,
        phase=phase,
        peak_bytes=max(levels[index], stepping if phase == STEP else 0),
        peak_index=index,
        path=starred(made.path) if made else "",
        op=made.op if made else "",
        split=split,
        growth=growth,
        alive=tuple(alive),
    )


def course_of(changes: Timeline, level: np.ndarray) -> dict[str, tuple[int, ...]]:
    """Bytes of each kind after each change."""
    kinds = np.array([KINDS.index(kind_of(change.storage, changes)) for change in changes.changes], dtype=np.int64)
    steps = np.diff(level, prepend=0)
    return {kind: tuple(np.cumsum(np.where(kinds == i, steps, 0)).tolist()) or (0,) for i, kind in enumerate(KINDS)}


def growth_at(changes: Timeline, count: int) -> dict[str, sympy.Expr]:
    """Bytes of each kind after so many changes, as expressions."""
    alive = changes.alive(count)
    return {kind: total(_of_kind(alive, kind, changes), kinds=None) for kind in KINDS}


def _of_kind(alive: Counter[Storage], kind: str, changes: Timeline) -> Counter[Storage]:
    return Counter({storage: count for storage, count in alive.items() if kind_of(storage, changes) == kind})


def alive_at(
    changes: Timeline, count: int, values: Mapping[sympy.Symbol, int], starred: Callable[[str], str] = str
) -> list[Alive]:
    numbers: Counter[tuple[str, str, str]] = Counter()
    bytes: Counter[tuple[str, str, str]] = Counter()
    for storage, times in changes.alive(count).items():
        key = kind_of(storage, changes), starred(storage.path), storage.op
        numbers[key] += times
        bytes[key] += times * int(sympy.sympify(storage.bytes).xreplace(dict(values)))
    return [Alive(*key, numbers[key], bytes[key]) for key in numbers]


def kind_of(storage: Storage, changes: Timeline) -> str:
    if storage.kind == GRADIENT:
        return "gradients"
    return "activations" if storage in changes.saved else "temporaries"
