"""Integer and boolean tensors as functions of the index: affine forms, and half-planes where these are at least 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


class Unknown(Exception):
    """Nothing is known of the node."""


@dataclass(frozen=True)
class Affine:
    """The integer at index i is constant + sum of slopes[d] * i[d]; a slope of a dim of size one is 0."""

    constant: int
    slopes: tuple[int, ...]

    def __add__(self, other: Affine) -> Affine:
        left, right = aligned(self.slopes, other.slopes)
        return Affine(self.constant + other.constant, tuple(a + b for a, b in zip(left, right, strict=True)))

    def __mul__(self, factor: int) -> Affine:
        return Affine(self.constant * factor, tuple(a * factor for a in self.slopes))

    @property
    def is_constant(self) -> bool:
        return not any(self.slopes)

    def bounds(self, shape: Sequence[Any]) -> tuple[float, float]:
        """Least and largest value over a tensor; infinite where sizes are symbols."""
        ends = [s * (n - 1) if isinstance(n, int) else s * float("inf") for s, n in zip(self.slopes, shape, strict=True) if s]
        return self.constant + sum(e for e in ends if e < 0), self.constant + sum(e for e in ends if e > 0)


@dataclass(frozen=True)
class Where:
    """The flag at an index is true where all the affine forms are at least 0; `rank` dims. No forms: true everywhere."""

    rank: int
    forms: frozenset[Affine]


Known = Affine | Where


def aligned(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Slopes of tensors that broadcast: dims in front have slope 0."""
    rank = max(len(left), len(right))
    return (0,) * (rank - len(left)) + left, (0,) * (rank - len(right)) + right


def is_zero(found: Known | None) -> bool:
    """Whether it is the number 0 everywhere."""
    return isinstance(found, Affine) and found.is_constant and found.constant == 0


def simplified(found: Known, shape: Sequence[Any]) -> Known:
    """Slopes of dims of size one are 0; forms that hold everywhere are dropped, one that holds nowhere stands for all."""
    if isinstance(found, Affine):
        (_, slopes) = aligned((0,) * len(shape), found.slopes)
        return Affine(found.constant, tuple(0 if n == 1 else s for s, n in zip(slopes, shape, strict=True)))
    forms = {simplified(form, shape) for form in found.forms}
    kept = {form for form in forms if isinstance(form, Affine) and form.bounds(shape)[0] < 0}
    if any(form.bounds(shape)[1] < 0 for form in kept):
        return Where(len(shape), frozenset({Affine(-1, (0,) * len(shape))}))
    return Where(len(shape), frozenset(kept))


def truth_of(found: Where) -> bool:
    """Of flags that are alike everywhere."""
    if found.forms and not all(f.is_constant for f in found.forms):
        raise Unknown
    return all(f.constant >= 0 for f in found.forms)
