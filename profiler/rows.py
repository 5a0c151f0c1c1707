"""The same figures seen by op, by module and by type of region."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal

import sympy
from torch import nn

from autopar.hardware import Hardware
from autopar.profiler.step import Recording
from autopar.profiler.tape import MADE, BlockCall, Kernel, Size, Tape
from autopar.profiler.timeline import Timeline

REST = "rest of the model"
"""The region of all that is not in a repeated block."""


@dataclass(frozen=True, kw_only=True)
class OpRow:
    """One kernel of one module, with how often a step runs it; `one` has its figures for one run."""

    region: str
    path: str
    op: str
    phase: str
    dtype: str
    calls: int
    one: Kernel

    @property
    def flops(self) -> sympy.Expr:
        return sympy.sympify(self.calls * self.one.flops)

    @property
    def bytes(self) -> sympy.Expr:
        return sympy.sympify(self.calls * self.one.bytes)

    @property
    def intensity(self) -> sympy.Expr:
        """FLOPs of any kind per byte moved."""
        return (
            sympy.sympify(self.one.flops + self.one.other_flops) / self.one.bytes if self.one.bytes != 0 else sympy.Integer(0)
        )


@dataclass(frozen=True, kw_only=True)
class OpAt:
    """A row of ops at one size, all its calls together. `seconds` and what `bound` them are None without hardware."""

    row: OpRow
    flops: int
    other_flops: int
    bytes: int
    seconds: float | None
    bound: Literal["compute", "memory", "launch"] | None

    @property
    def intensity(self) -> float:
        """FLOPs of any kind per byte moved."""
        return (self.flops + self.other_flops) / self.bytes if self.bytes else 0.0


def op_at(row: OpRow, one: tuple[float, float, float], hardware: Hardware | None) -> OpAt:
    """`one` call's FLOPs of products, other FLOPs and bytes."""
    flops, other, moved = one
    seconds, bound = None, None
    if hardware is not None:
        seconds = row.calls * hardware.time_s(flops + other, moved, row.dtype)
        parts = {
            "compute": hardware.matmul_s(flops + other, row.dtype),
            "memory": moved / hardware.bytes_per_s,
            "launch": hardware.launch_s,
        }
        bound = max(parts, key=parts.__getitem__)
    return OpAt(
        row=row,
        flops=row.calls * int(flops),
        other_flops=row.calls * int(other),
        bytes=row.calls * int(moved),
        seconds=seconds,
        bound=bound,  # type: ignore[arg-type]
    )


@dataclass(frozen=True, kw_only=True)
class Figures:
    parameters: int
    forward_flops: sympy.Expr
    backward_flops: sympy.Expr
    moved_bytes: sympy.Expr
    saved_bytes: sympy.Expr


@dataclass(frozen=True, kw_only=True)
class ModuleRow(Figures):
    """A module with all that it holds; equal members of a repeated block together, their index a star. "" is the model.

    `calls`: how many modules this row stands for.
    """

    path: str
    calls: int

    @property
    def depth(self) -> int:
        return self.path.count(".") + 1 if self.path else 0


@dataclass(frozen=True, kw_only=True)
class RegionRow(Figures):
    """A type of block with all its `calls`, or all that is in none."""

    region: str
    calls: int


class Paths:
    """Module paths with the index of a repeated block's member as a star, and the region that they belong to."""

    def __init__(self, recording: Recording) -> None:
        self.blocks = {path: kind.path for kind in recording.blocks for path, _ in kind.members}
        self.members = {kind.path: len(kind.members) for kind in recording.blocks}
        self.known: dict[str, tuple[str, str]] = {}

    def region(self, path: str) -> str:
        return self._find(path)[0]

    def starred(self, path: str) -> str:
        return self._find(path)[1]

    def calls(self, starred: str) -> int:
        """How many modules have this path with a star."""
        return next((self.members[p] for p in prefixes(starred) if p in self.members), 1)

    def _find(self, path: str) -> tuple[str, str]:
        if path not in self.known:
            self.known[path] = next(
                ((self.blocks[p], self.blocks[p] + path[len(p) :]) for p in prefixes(path) if p in self.blocks), (REST, path)
            )
        return self.known[path]


def prefixes(path: str) -> Iterator[str]:
    """A module's path and those of what holds it, the model's own ("") last."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""


def op_rows(recording: Recording) -> list[OpRow]:
    paths = Paths(recording)
    counts: Counter[tuple[str, str, Kernel]] = Counter()
    for tape in (recording.forward, recording.backward):
        for kernel, path, calls in executions(tape) if tape is not None else ():
            assert tape is not None
            counts[tape.phase, paths.region(path), replace(kernel, path=paths.starred(path))] += calls
    return [
        OpRow(region=region, path=k.path, op=k.op, phase=phase, dtype=k.dtype, calls=calls, one=k)
        for (phase, region, k), calls in counts.items()
    ]


def executions(tape: Tape) -> Iterator[tuple[Kernel, str, int]]:
    """(kernel, its module's path, how often it runs), blocks' kernels in the place of the block's first call."""
    calls: Counter[Tape] = Counter(event.tape for event in tape.events if isinstance(event, BlockCall))
    written: set[Tape] = set()
    for event in tape.events:
        if isinstance(event, Kernel):
            yield event, event.path, 1
        elif isinstance(event, BlockCall) and event.tape not in written:
            written.add(event.tape)
            for kernel in event.tape.kernels:
                yield kernel, kernel.path, calls[event.tape]


def module_rows(recording: Recording, ops: Iterable[OpRow], changes: Timeline, model: nn.Module) -> list[ModuleRow]:
    """In order of the model's own `named_modules`, the model first."""
    paths = Paths(recording)
    order = dict.fromkeys(paths.starred(name) for name, _ in model.named_modules())
    table = _Table(lambda path: [p for p in prefixes(path) if p in order])
    table.fill(paths, ops, changes, model, lambda path: path)
    return [ModuleRow(path=path, calls=paths.calls(path), **table.figures(path)) for path in order if path in table.rows]


def region_rows(recording: Recording, ops: Iterable[OpRow], changes: Timeline, model: nn.Module) -> list[RegionRow]:
    paths = Paths(recording)
    table = _Table(lambda region: [region])
    blocks = {kind.path: len(kind.members) for kind in recording.blocks}
    table.fill(paths, ops, changes, model, lambda path: next((b for b in prefixes(path) if b in blocks), REST))
    return [RegionRow(region=r, calls=n, **table.figures(r)) for r, n in {**blocks, REST: 1}.items()]


class _Table:
    """Sums by row; `rows_of` says which rows a place counts for."""

    def __init__(self, rows_of: Callable[[str], list[str]]) -> None:
        self.rows_of = rows_of
        self.rows: dict[str, dict[str, Counter[Size]]] = {}

    def fill(
        self, paths: Paths, ops: Iterable[OpRow], changes: Timeline, model: nn.Module, place: Callable[[str], str]
    ) -> None:
        for row in ops:
            where = place(row.path)
            self.add(where, f"{row.phase}_flops", row.one.flops, row.calls)
            self.add(where, "moved_bytes", row.one.bytes, row.calls)
        for storage, count in changes.saved.items():
            if storage.kind == MADE:
                self.add(place(paths.starred(storage.path)), "saved_bytes", storage.bytes, count)
        for name, parameter in model.named_parameters():
            self.add(place(paths.starred(name.rpartition(".")[0])), "parameters", parameter.numel(), 1)

    def add(self, where: str, what: str, size: Size, count: int) -> None:
        for row in self.rows_of(where):
            self.rows.setdefault(row, {}).setdefault(what, Counter())[size] += count

    def figures(self, row: str) -> Mapping[str, sympy.Expr]:
        sums = self.rows.get(row, {})
        return {f.name: sympy.Add(*(size * n for size, n in sums.get(f.name, Counter()).items())) for f in fields(Figures)}
