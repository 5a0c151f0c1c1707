"""The memory of a step at given sizes: its course over time, its peak, and what is alive there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import sympy

from autopar.profiler.tape import BACKWARD, FORWARD, GRADIENT, Storage
from autopar.profiler.timeline import Timeline

STEP = "optimizer"


@dataclass(frozen=True)
class Alive:
    """Memory at the peak that one op of one module made, in all equal blocks: `kind` activations, gradients, temporaries."""

    kind: str
    path: str
    op: str
    count: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class MemoryAt:
    """`levels` are the bytes alive after each change of memory, what rests included; `forward_end` the first of backward.

    `phase` says where the peak is: in forward, backward, or the optimizer's step. `split` sums up to `peak_bytes`: parameters,
    compute copies, gradient buffers, optimizer, buffers, inputs (these rest), gradients, activations (kept for backward) and
    temporaries.
    """

    levels: tuple[int, ...]
    forward_end: int
    phase: str
    peak_bytes: int
    peak_index: int
    split: Mapping[str, int]
    alive: tuple[Alive, ...]


def memory_at(changes: Timeline, resting: Mapping[str, int], step_bytes: int, values: Mapping[sympy.Symbol, int]) -> MemoryAt:
    rest = sum(resting.values())
    levels = [rest + int(level) for level in changes.bytes(dict(values))] or [rest]
    index = max(range(len(levels)), key=levels.__getitem__)
    stepping = levels[-1] + step_bytes
    phase = FORWARD if index < changes.forward_end else BACKWARD
    if stepping > levels[index]:
        index, phase = len(levels) - 1, STEP
    alive = sorted(alive_at(changes, index + 1, values), key=lambda a: -a.bytes)
    split = dict(resting) | dict.fromkeys(("gradients", "activations", "temporaries"), 0)
    for found in alive:
        split[found.kind] += found.bytes
    if phase == STEP:
        split["temporaries"] += step_bytes
    return MemoryAt(
        levels=tuple(levels),
        forward_end=changes.forward_end,
        phase=phase,
        peak_bytes=max(levels[index], stepping if phase == STEP else 0),
        peak_index=index,
        split=split,
        alive=tuple(alive),
    )


def alive_at(changes: Timeline, count: int, values: Mapping[sympy.Symbol, int]) -> list[Alive]:
    numbers: Counter[tuple[str, str, str]] = Counter()
    bytes: Counter[tuple[str, str, str]] = Counter()
    for storage, times in changes.alive(count).items():
        key = kind_of(storage, changes), storage.path, storage.op
        numbers[key] += times
        bytes[key] += times * int(sympy.sympify(storage.bytes).xreplace(dict(values)))
    return [Alive(*key, numbers[key], bytes[key]) for key in numbers]


def kind_of(storage: Storage, changes: Timeline) -> str:
    if storage.kind == GRADIENT:
        return "gradients"
    return "activations" if storage in changes.saved else "temporaries"
