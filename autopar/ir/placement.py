"""Placements: where the pieces of a tensor are, as one letter per mesh axis.

The letters and their gradients are those of the `spmd_types` package:

=====  ==========  ========================================================  ========
state  name        meaning on one mesh axis                                  gradient
=====  ==========  ========================================================  ========
S(d)   shard       each device holds one piece of dim d                      S(d)
R      replicate   each device holds the same value                          P
I      invariant   as R, and so is the gradient                              I
P      partial     the value is the sum of what the devices hold             R
=====  ==========  ========================================================  ========

A tensor dim may be sharded by several axes. Their nesting order is part of the placement: the first named axis cuts the
dim into its coarsest pieces, each further one cuts these pieces.

Pieces are equal. Where the innermost axis of a dim does not divide what it cuts, they are those of `torch.chunk` and of
`DTensor`: all of ceil(n / size) elements but the last, which is shorter, never empty, and padded to the others' size.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

REPLICATE, INVARIANT, PARTIAL = "R", "I", "P"
DUAL = {REPLICATE: PARTIAL, PARTIAL: REPLICATE, INVARIANT: INVARIANT}

State = str | int
"""On one axis: an int d for S(d), or one of "R", "I", "P"."""

MOST_PADDING = 1 / 8
"""Of a dim's elements: placements with more are not searched."""


def piece_size(n: int, cuts: Sequence[int], *, ragged: bool = True) -> int | None:
    """How many elements a device holds of n that are cut into so many pieces, each of these into so many, and so on; None if
    they cannot be. If `ragged`, the last cut may be uneven, as long as no piece is empty.

    >>> piece_size(24, (2, 4)), piece_size(22, (2, 4)), piece_size(21, (2, 4)), piece_size(9, (4,)), piece_size(10, (4,))
    (3, 3, None, None, 3)
    """
    for place, count in enumerate(cuts, 1):
        size = -(-n // count)
        if size * count != n and (not ragged or place < len(cuts) or size * (count - 1) >= n):
            return None
        n = size
    return n


@dataclass(frozen=True)
class Placement:
    """One state per mesh axis, and for dims that several axes share the nesting order, outermost axis first.

    `order` lists all axes that shard something, outer before inner; between different dims it has no meaning and is kept
    in mesh order so that equal placements compare equal.

    >>> str(Placement((0, "R"))), str(Placement((0, 0))), str(Placement((0, 0), order=(1, 0)))
    ('S(0), R', 'S(0), S(0)', 'S(0), S(0) nested 1 0')
    """

    states: tuple[State, ...]
    order: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        sharding = tuple([axis for axis, state in enumerate(self.states) if isinstance(state, int)])
        order = self.order
        if not order or order == sharding:
            object.__setattr__(self, "order", sharding)
            return
        if tuple(sorted(order)) != sharding:
            raise ValueError(f"order {order} must name exactly the sharding axes {list(sharding)} of {self.states}")
        # Canonical: only the relative order of axes that share a dim carries meaning.
        nested = {state: [a for a in order if self.states[a] == state] for state in self.states if isinstance(state, int)}
        canonical = tuple(nested[state].pop(0) for axis, state in enumerate(self.states) if isinstance(state, int))
        object.__setattr__(self, "order", canonical)

    @cached_property
    def hash(self) -> int:
        return hash((self.states, self.order))

    def __hash__(self) -> int:
        return self.hash

    def __reduce__(self) -> tuple[object, ...]:
        """Without the cached hash: hashes of letters differ from process to process."""
        return Placement, (self.states, self.order)

    def __str__(self) -> str:
        return self.text

    @cached_property
    def text(self) -> str:
        """The placement in letters, as `parse` reads it."""
        text = ", ".join(f"S({s})" if isinstance(s, int) else s for s in self.states)
        in_mesh_order = all(list(self.axes_of(d)) == sorted(self.axes_of(d)) for d in self.sharded_dims())
        return text if in_mesh_order else f"{text} nested {' '.join(map(str, self.order))}"

    @classmethod
    def parse(cls, text: str) -> Placement:
        """Read back what `str` wrote; raises ValueError on anything else."""
        body, _, nesting = text.partition(" nested ")
        states: list[State] = []
        for word in body.split(", ") if body else []:
            if word in (REPLICATE, INVARIANT, PARTIAL):
                states.append(word)
            elif word.startswith("S(") and word.endswith(")") and word[2:-1].isdigit():
                states.append(int(word[2:-1]))
            else:
                raise ValueError(f"{word!r} in placement {text!r} is none of S(dim), R, I, P")
        return cls(tuple(states), tuple(int(axis) for axis in nesting.split()))

    @classmethod
    def whole(cls, axes: int) -> Placement:
        """I on every axis: the whole tensor on every device."""
        return cls((INVARIANT,) * axes)

    def axes_of(self, dim: int) -> tuple[int, ...]:
        """The axes that shard `dim`, outermost first."""
        return tuple(axis for axis in self.order if self.states[axis] == dim)

    def sharded_dims(self) -> tuple[int, ...]:
        return tuple(sorted({state for state in self.states if isinstance(state, int)}))

    def replace(self, axis: int, state: State) -> Placement:
        """The placement with another state on `axis`; a new shard nests innermost in its dim."""
        states = (*self.states[:axis], state, *self.states[axis + 1 :])
        order = tuple(a for a in self.order if a != axis)
        return Placement(states, (*order, axis) if isinstance(state, int) else order)

    def gradient(self) -> Placement:
        return Placement(tuple(s if isinstance(s, int) else DUAL[s] for s in self.states), self.order)

    def parts(self, dim: int, sizes: Sequence[int]) -> int:
        """Into how many pieces `dim` is cut on a mesh with these axis sizes."""
        return math.prod(sizes[axis] for axis, state in enumerate(self.states) if state == dim)

    def divides(self, shape: Sequence[int], sizes: Sequence[int]) -> bool:
        """Whether every sharded dim exists and is cut evenly."""
        return all(d < len(shape) and shape[d] % self.parts(d, sizes) == 0 for d in self.sharded_dims())

    def fits(self, shape: Sequence[int], sizes: Sequence[int], ragged: Collection[int] | None = None) -> bool:
        """Whether every sharded dim exists and can be cut so; only dims in `ragged` (None: all) unevenly."""
        return all(
            d < len(shape)
            and piece_size(shape[d], [sizes[a] for a in self.axes_of(d)], ragged=ragged is None or d in ragged) is not None
            for d in self.sharded_dims()
        )

    def local_shape(self, shape: Sequence[int], sizes: Sequence[int]) -> tuple[int, ...]:
        """The shape of one device's piece of a tensor of the given global shape, padding included: the same on all devices."""
        return tuple(-(-n // self.parts(d, sizes)) for d, n in enumerate(shape))

    def local_fraction(self, sizes: Sequence[int]) -> float:
        return 1.0 / math.prod(sizes[axis] for axis, state in enumerate(self.states) if isinstance(state, int))

    def local_share(self, shape: Sequence[int], sizes: Sequence[int]) -> float:
        """What one device holds of a tensor's elements; with padding more than `local_fraction`."""
        padded = [n * self.parts(d, sizes) for d, n in enumerate(self.local_shape(shape, sizes))]
        return self.local_fraction(sizes) * (math.prod(padded) / math.prod(shape) if padded != list(shape) else 1.0)


def placements(
    shape: Sequence[int],
    sizes: Sequence[int],
    letters: Sequence[str] = (REPLICATE, INVARIANT, PARTIAL),
    ragged: Collection[int] = (),
) -> tuple[Placement, ...]:
    """All placements of a tensor of this shape, axes nesting in mesh order, every dim cut evenly; those in `ragged` also
    unevenly, with little padding."""
    return _placements(divisors(shape, sizes, ragged), tuple(sizes), tuple(letters), frozenset(ragged))


def divisors(shape: Sequence[int], sizes: Sequence[int], ragged: Collection[int] = ()) -> tuple[int, ...]:
    """What of a shape decides how it may be cut on a mesh with these axis sizes: shapes that share it have equal placements.

    Each dim's greatest common divisor with the number of devices, which has the divisors that products of axis sizes can be;
    of dims that may be cut unevenly their size.

    >>> divisors((128, 8192, 14336, 3), (8, 8)), divisors((50257, 768), (8,), ragged=(0,))
    ((64, 64, 64, 1), (50257, 8))
    """
    devices = math.prod(sizes)
    common = [math.gcd(n, devices) if n else 0 for n in shape]
    return tuple(n if d in ragged and common[d] != devices else common[d] for d, n in enumerate(shape))


@lru_cache(maxsize=64)
def _placements(
    shape: tuple[int, ...], sizes: tuple[int, ...], letters: tuple[str, ...], ragged: frozenset[int]
) -> tuple[Placement, ...]:
    options: list[tuple[State, ...]] = [()]
    for size in sizes:
        choices: list[State] = [d for d, n in enumerate(shape) if (n % size == 0 or d in ragged) and n >= size]
        choices += letters
        options = [(*done, state) for done in options for state in choices]
    return tuple(p for p in map(Placement, options) if p.fits(shape, sizes, ragged) and pads_little(p, shape, sizes))


def pads_little(placement: Placement, shape: Sequence[int], sizes: Sequence[int]) -> bool:
    """Whether no dim is padded by more than `MOST_PADDING` of its elements."""
    local = placement.local_shape(shape, sizes)
    return all(local[d] * placement.parts(d, sizes) <= shape[d] * (1 + MOST_PADDING) for d in placement.sharded_dims())
