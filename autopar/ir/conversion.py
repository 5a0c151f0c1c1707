"""Conversions: how a tensor gets from one placement to another, one collective (or none) on one mesh axis at a time.

The table is the design's: each row fixes what runs forward and, through the gradients of the placements, what must run
backward. A dim that several axes shard is a stack: a conversion pushes or pops its innermost axis only.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from autopar.ir.placement import INVARIANT, PARTIAL, REPLICATE, Placement, State, divisors, placements

ALL_GATHER, REDUCE_SCATTER, ALL_REDUCE, ALL_TO_ALL = "all_gather", "reduce_scatter", "all_reduce", "all_to_all"
COLLECTIVES = (ALL_GATHER, REDUCE_SCATTER, ALL_REDUCE, ALL_TO_ALL)

Lengths = tuple[int | None, int | None]
EVEN: Lengths = (None, None)


@dataclass(frozen=True)
class ConversionKind:
    """One row of the table: state letters before and after, collectives forward and backward (None: local work only)."""

    name: str
    before: str
    after: str
    forward: str | None
    backward: str | None


TABLE = (
    ConversionKind("gather", "S", "R", ALL_GATHER, REDUCE_SCATTER),
    ConversionKind("gather_invariant", "S", "I", ALL_GATHER, None),
    ConversionKind("copy", "I", "R", None, ALL_REDUCE),
    ConversionKind("reduce", "P", "I", ALL_REDUCE, None),
    ConversionKind("reduce_replicate", "P", "R", ALL_REDUCE, ALL_REDUCE),
    ConversionKind("reduce_scatter", "P", "S", REDUCE_SCATTER, ALL_GATHER),
    ConversionKind("slice", "I", "S", None, ALL_GATHER),
    ConversionKind("exchange", "S", "S", ALL_TO_ALL, ALL_TO_ALL),
    ConversionKind("slice_replicate", "R", "S", None, None),
    ConversionKind("forget", "R", "I", None, None),
)
KINDS = {(kind.before, kind.after): kind for kind in TABLE}

# P -> R is P -> I -> R, and R is only ever made by a conversion from S or I, so the last two lead nowhere that a search
# could not reach at the same cost without them. Kept in the table (and runnable) for whoever writes plans by hand.
SEARCHED = tuple(kind for kind in TABLE if kind.name not in ("reduce_replicate", "slice_replicate", "forget"))


def letter(state: State) -> str:
    return "S" if isinstance(state, int) else state


@dataclass(frozen=True)
class Conversion:
    """`before` to `after`, which differ on one mesh axis only."""

    before: Placement
    after: Placement

    def __post_init__(self) -> None:
        if len(self.changed) != 1:
            raise ValueError(f"a conversion changes one axis: {self.before} -> {self.after}")
        axis = self.axis
        old, new = self.before.states[axis], self.after.states[axis]
        if (letter(old), letter(new)) not in KINDS:
            raise ValueError(f"no conversion {self.before} -> {self.after}")
        if isinstance(old, int) and self.before.axes_of(old)[-1] != axis:
            raise ValueError(f"{self.before} -> {self.after} would scramble shards: axis {axis} is not innermost in dim {old}")
        if self.before.replace(axis, new) != self.after:
            raise ValueError(f"{self.before} -> {self.after} would scramble shards: a new shard nests innermost")

    @cached_property
    def changed(self) -> list[int]:
        return [a for a, (old, new) in enumerate(zip(self.before.states, self.after.states, strict=True)) if old != new]

    @cached_property
    def axis(self) -> int:
        return self.changed[0]

    @cached_property
    def kind(self) -> ConversionKind:
        return KINDS[letter(self.before.states[self.axis]), letter(self.after.states[self.axis])]

    @property
    def dims(self) -> tuple[int | None, int | None]:
        """The sharded dim before and after; None where the state is no shard."""
        old, new = self.before.states[self.axis], self.after.states[self.axis]
        return old if isinstance(old, int) else None, new if isinstance(new, int) else None

    def between(self, shape: Sequence[int], sizes: Sequence[int]) -> tuple[int, ...]:
        """What a device would hold of a tensor of this shape if the axis cut nothing."""
        held = list(shape)
        for axis, state in enumerate(self.before.states):
            if isinstance(state, int) and axis != self.axis:
                held[state] = -(-held[state] // sizes[axis])
        return tuple(held)

    def lengths(self, shape: Sequence[int], sizes: Sequence[int]) -> Lengths:
        """Of the sharded dim before and after, what there is of it without this axis, if the axis cuts that unevenly; None if
        evenly, or where the state is no shard."""
        held = self.between(shape, sizes)
        old, new = (None if d is None or held[d] % sizes[self.axis] == 0 else held[d] for d in self.dims)
        return old, new

    def sent(self, kind: str, shape: Sequence[int], sizes: Sequence[int]) -> int:
        """How many elements a collective of this kind carries, forward or backward: those of the whole tensor with its padding,
        of an all-to-all those of one device's piece."""
        size, held = sizes[self.axis], list(self.between(shape, sizes))
        for dim in self.dims:
            if dim is not None:
                held[dim] = -(-held[dim] // size) * size
        return math.prod(held) // (size if kind == ALL_TO_ALL else 1)


@dataclass(frozen=True, kw_only=True)
class Moves:
    """How many copies on the device a conversion makes: of what it is made from, of what it makes, of the smaller of them."""

    source: int = 0
    target: int = 0
    smaller: int = 0


def moves(conversion: Conversion, kind: str | None, *, back: bool = False, lengths: Lengths = EVEN) -> Moves:
    """Beside the collective of this kind, forward or `back` in backward; `lengths` are those of the conversion.

    Collectives work on dim 0. Another dim is moved there before it is scattered, and back after it was gathered. What is cut
    unevenly is padded before.
    """
    old, new = reversed(conversion.dims) if back else conversion.dims
    pads = lengths[0 if back else 1] is not None
    if kind == ALL_GATHER:
        return Moves(target=old != 0)
    if kind == REDUCE_SCATTER:
        return Moves(source=(new != 0) + pads)
    if kind == ALL_TO_ALL:
        return Moves(source=(new != 0) + pads, target=old != 0)
    slices = kind is None and (old is None) != (new is None)
    return Moves(source=int(slices and pads), smaller=int(slices))


def conversions_from(
    before: Placement, shape: Sequence[int], sizes: Sequence[int], *, differentiable: bool = True
) -> Iterator[Conversion]:
    """Every conversion worth searching that leads from `before` to a placement that cuts the shape evenly.

    Of a tensor without gradient only S and I are told apart (R equals I, and nothing is P).
    """
    for axis, size in enumerate(sizes):
        old = before.states[axis]
        if isinstance(old, int) and before.axes_of(old)[-1] != axis:
            continue
        for kind in SEARCHED:
            if kind.before != letter(old) or (not differentiable and REPLICATE in (kind.before, kind.after)):
                continue
            news: list[State] = (
                [kind.after] if kind.after != "S" else [d for d, n in enumerate(shape) if n >= size and d != old]
            )
            for new in news:
                after = before.replace(axis, new)
                if after.divides(shape, sizes) and in_mesh_order(after):
                    yield Conversion(before, after)


def conversions(
    shape: Sequence[int],
    sizes: Sequence[int],
    letters: Sequence[str],
    *,
    differentiable: bool = True,
    ragged: Collection[int] = (),
) -> tuple[Conversion, ...]:
    """`conversions_from` each of these placements (those with dims in `ragged` cut unevenly among them) to another of them;
    found once for all shapes that cut alike."""
    return _conversions(divisors(shape, sizes, ragged), tuple(sizes), tuple(letters), differentiable, frozenset(ragged))


@lru_cache(maxsize=64)
def _conversions(
    shape: tuple[int, ...], sizes: tuple[int, ...], letters: tuple[str, ...], differentiable: bool, ragged: frozenset[int]
) -> tuple[Conversion, ...]:
    at = {placement.states: placement for placement in placements(shape, sizes, letters, ragged)}
    onward: dict[str, list[State]] = {kind.before: [] for kind in TABLE}
    for kind in SEARCHED:
        if differentiable or REPLICATE not in (kind.before, kind.after):
            onward[kind.before] += [kind.after] if kind.after != "S" else list(range(len(shape)))
    found = []
    for states, before in at.items():
        for axis, old in enumerate(states):
            outer, inner = states[:axis], states[axis + 1 :]
            if isinstance(old, int) and old in inner:
                continue
            for new in onward[letter(old)]:
                if new != old and not (isinstance(new, int) and new in inner) and (after := at.get((*outer, new, *inner))):
                    found.append(Conversion(before, after))
    return tuple(found)


def in_mesh_order(placement: Placement) -> bool:
    """Whether axes that share a dim nest in mesh order: the only nesting that plans use (DTensor's own default too)."""
    return all(list(placement.axes_of(d)) == sorted(placement.axes_of(d)) for d in placement.sharded_dims())


__all__ = [
    "COLLECTIVES",
    "INVARIANT",
    "KINDS",
    "PARTIAL",
    "REPLICATE",
    "TABLE",
    "Conversion",
    "ConversionKind",
    "Moves",
    "conversions",
    "conversions_from",
    "moves",
]
