"""Random numbers as a function of where they stand: integer hashes of a key and of an element's place in the whole tensor.

No generator, no hidden state. An element gets the same number whichever device computes it, on whatever mesh, however often:
pieces of a tensor differ and replicas agree by construction. Sums and products wrap around, as integers do on every device.

A tensor is seen as rows and columns. Places of rows and of columns are hashed with 64 bits, which costs little, there being
few of them; the two meet in each element in a dozen 32-bit operations that vectorise (on a CPU in half of the time of
torch's own `dropout`). For simulations of physics or for secrets there are better generators.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

KEY_NUMBERS = 4
"""Per draw: a row's and a column's key, twice, for draws that need more than 31 bits."""
COLUMNS = 64
"""Rows are at least so long, where the tensor has so many elements."""
CHUNK, CHUNK_ELSEWHERE = 2**17, 2**24
"""Elements that are computed at a time: on a CPU they stay in its cache, elsewhere memory that no plan counts is little."""
WEYL, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""Of splitmix64."""
MIX_32 = 0x2C1B3C6D
LOW_HALF = 0xFFFFFFFF


def signed(value: int) -> int:
    """The low 64 bits, as torch writes them."""
    return (value + 2**63) % 2**64 - 2**63


def mixed(value: int) -> int:
    """splitmix64's finalizer: any change of a number changes half of the bits."""
    value = ((value ^ (value >> 30)) * MIX_1) % 2**64
    value = ((value ^ (value >> 27)) * MIX_2) % 2**64
    return value ^ (value >> 31)


def keys_of_step(seed: int, step: int, count: int) -> Tensor:
    """The keys of `count` draws: int64 [count, KEY_NUMBERS], all different for all seeds and steps."""
    base = mixed(mixed(seed % 2**64) + step * WEYL)
    place = torch.arange(count * KEY_NUMBERS).mul_(signed(WEYL)).add_(signed(base))
    return hashed(place).view(count, KEY_NUMBERS)


def hashed(place: Tensor) -> Tensor:
    """Mixes int64 in place, as splitmix64 does but for the distances of its shifts."""
    place.bitwise_xor_((place >> 32).bitwise_and_(LOW_HALF)).mul_(signed(MIX_1))
    place.bitwise_xor_((place >> 32).bitwise_and_(LOW_HALF)).mul_(signed(MIX_2))
    return place.bitwise_xor_((place >> 32).bitwise_and_(LOW_HALF))


@dataclass(frozen=True)
class Cut:
    """Which piece of a whole tensor this is: the sizes of the loops that the whole is made of, slowest first, and the devices
    that cut them: per mesh axis, outermost first, the loop's number and how many parts it is cut into, and which of them is
    here (0-dim tensors)."""

    sizes: Sequence[int]
    cuts: Sequence[tuple[int, int]]
    places: Sequence[Tensor]

    def parts(self, loop: int) -> int:
        return math.prod(parts for of, parts in self.cuts if of == loop)

    def place(self, loop: int) -> Tensor:
        """Which of a cut loop's parts is here."""
        mine = [(parts, place) for (of, parts), place in zip(self.cuts, self.places, strict=True) if of == loop]
        found = mine[0][1]
        for parts, place in mine[1:]:
            found = found * parts + place
        return found

    def take(self, whole: Tensor) -> Tensor:
        """The piece of a whole tensor, its dims being the loops; reads the places on the host."""
        piece = whole.reshape(list(self.sizes))
        for loop in dict.fromkeys(of for of, _ in self.cuts):
            size = self.sizes[loop] // self.parts(loop)
            piece = piece.narrow(loop, int(self.place(loop)) * size, size)
        return piece

    def split(self) -> int:
        """How many loops make up a row's place; the others that of a column."""
        at, columns = len(self.sizes), 1
        while at > 0 and columns < COLUMNS:
            at -= 1
            columns *= self.sizes[at]
        return at

    def indices(self, start: int, stop: int, device: torch.device) -> Tensor:
        """Places in the whole tensor, along some of the loops, of the elements that are here: int64, one dim."""
        found, uncut = None, 1
        for loop in range(start, stop):
            parts = self.parts(loop)
            if parts == 1:
                uncut *= self.sizes[loop]
                continue
            if uncut > 1:
                found, uncut = within(found, torch.arange(uncut, device=device), uncut), 1
            local = self.sizes[loop] // parts
            here = torch.arange(local, device=device).add_(self.place(loop), alpha=local)
            found = within(found, here, self.sizes[loop])
        if uncut > 1 or found is None:
            found = within(found, torch.arange(uncut, device=device), uncut)
        return found


def within(outer: Tensor | None, inner: Tensor, size: int) -> Tensor:
    """Places along two nested loops, of which the inner one goes to `size`."""
    return inner if outer is None else torch.add(inner, outer.unsqueeze(1), alpha=size).view(-1)


class Bits:
    """31 random bits for each element of a piece, by rows: `rows` of `columns` int32 that are not negative."""

    def __init__(self, key: Tensor, cut: Cut, device: torch.device) -> None:
        at = cut.split()
        rows, columns = cut.indices(0, at, device), cut.indices(at, len(cut.sizes), device)
        self.rows, self.columns = len(rows), len(columns)
        place = torch.cat((torch.add(key[0], rows, alpha=signed(WEYL)), torch.add(key[1], columns, alpha=signed(WEYL))))
        low, high = hashed(place).view(torch.int32).view(-1, 2).t().contiguous()
        self.row, self.factor = low[: self.rows].unsqueeze(1), (high[: self.rows] | 1).unsqueeze(1)
        self.column, self.offset = low[self.rows :], high[self.rows :]

    def fill(self, out: Tensor, start: int, stop: int) -> Tensor:
        """The bits of some rows, into an int32 tensor [stop - start, columns]."""
        torch.bitwise_xor(self.row[start:stop], self.column, out=out)
        out.mul_(self.factor[start:stop]).add_(self.offset)
        high = out >> 15
        out.bitwise_xor_(high.bitwise_and_(0x1FFFF)).mul_(MIX_32)
        return out.bitwise_xor_(torch.bitwise_right_shift(out, 16, out=high))

    def chunks(self, device: torch.device) -> Iterator[tuple[int, int]]:
        step = max(1, (CHUNK if device.type == "cpu" else CHUNK_ELSEWHERE) // max(self.columns, 1))
        for start in range(0, self.rows, step):
            yield start, min(start + step, self.rows)


def drop(x: Tensor, key: Tensor, probability: float, cut: Cut) -> Tensor:
    """x * mask / (1 - probability), with a mask that is 0 where the element's number is below the probability."""
    bits = Bits(key, cut, x.device)
    flat, out = x.reshape(bits.rows, bits.columns), torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows, threshold = out.view(bits.rows, bits.columns), round(probability * 2**31)
    factor = 0.0 if probability >= 1 else 1 / (1 - probability)
    inside, after = (1.0, factor) if x.dtype == torch.float64 else (factor, 1.0)
    (pattern,) = struct.unpack("=i", struct.pack("=f", inside))
    for start, stop in bits.chunks(x.device):
        kept = rows[start:stop]
        number = kept.view(torch.int32) if x.dtype == torch.float32 else torch.empty_like(kept, dtype=torch.int32)
        # all ones where kept (threshold - 1 - number < 0); of these the bits of the factor, read as a float
        bits.fill(number, start, stop).neg_().add_(threshold - 1).bitwise_right_shift_(31).bitwise_and_(pattern)
        torch.mul(flat[start:stop], number.view(torch.float32), out=kept)
    return out if after == 1 else out.mul_(after)


def integers(key: Tensor, cut: Cut, device: torch.device) -> Tensor:
    """31 bits as int64, one dim."""
    bits = Bits(key, cut, device)
    out = torch.empty((bits.rows, bits.columns), dtype=torch.int32, device=device)
    for start, stop in bits.chunks(device):
        bits.fill(out[start:stop], start, stop)
    return out.view(-1).long()


def wide_integers(key: Tensor, cut: Cut, device: torch.device) -> Tensor:
    """62 bits as int64, one dim."""
    return integers(key, cut, device).bitwise_left_shift_(31).bitwise_or_(integers(key[2:], cut, device))


DIGITS = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}
"""Binary digits of a number below one that each dtype holds without rounding."""


def uniform(key: Tensor, cut: Cut, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Multiples of 2**-digits in [0, 1)."""
    digits = DIGITS[dtype]
    number = wide_integers(key, cut, device) >> (62 - digits) if digits > 31 else integers(key, cut, device) >> (31 - digits)
    return number.to(dtype).mul_(2.0**-digits)


def normal(key: Tensor, cut: Cut, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Box and Muller's transform, in float32 or better."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    digits = 31 if dtype == torch.float64 else 24
    radius = (integers(key, cut, device) >> (31 - digits)).to(wide).mul_(-(2.0**-digits)).log1p_().mul_(-2).sqrt_()
    angle = (integers(key[2:], cut, device) >> (31 - digits)).to(wide).mul_(2 * math.pi * 2.0**-digits)
    return radius.mul_(angle.cos_()).to(dtype)


Drawn = Callable[[Tensor, Cut, Sequence[float], torch.dtype, torch.device], Tensor]


def bernoulli(key: Tensor, cut: Cut, numbers: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    return (integers(key, cut, device) < round(numbers[0] * 2**31)).to(dtype)


def between(key: Tensor, cut: Cut, numbers: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Integers from the first number to below the second."""
    low, high = map(int, numbers)
    return (wide_integers(key, cut, device).remainder_(high - low) + low).to(dtype)


DRAWN: dict[str, Drawn] = {
    "bernoulli": bernoulli,
    "uniform": lambda key, cut, at, dtype, dev: uniform(key, cut, dtype, dev).mul_(at[1] - at[0]).add_(at[0]),
    "normal": lambda key, cut, at, dtype, dev: normal(key, cut, dtype, dev).mul_(at[1]).add_(at[0]),
    "exponential": lambda key, cut, at, dtype, dev: uniform(key, cut, dtype, dev).neg_().log1p_().neg_().div_(at[0]),
    "integers": between,
    "permutation": lambda key, cut, at, dtype, dev: wide_integers(key, cut, dev).argsort().to(dtype),
}
"""Kind of draw -> the numbers of a piece, one dim."""
