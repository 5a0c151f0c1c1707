"""Numbers by place: well distributed, and the same for an element in whatever piece it is."""

from __future__ import annotations

import math

import pytest
import torch

from autopar.ops import counters
from autopar.ops.counters import Cut, drop, integers, keys_of_step

CPU = torch.device("cpu")
SHAPES = [(512, 1024), (64, 32, 96), (100_000, 3), (300_000,)]


def whole(*sizes: int) -> Cut:
    return Cut(sizes, (), ())


def key(seed: int = 0, step: int = 0, draw: int = 0) -> torch.Tensor:
    return keys_of_step(seed, step, draw + 1)[draw]


def deviation(bits: torch.Tensor, values: int) -> float:
    """By how many standard deviations chi squared of how often each value occurs is off."""
    expected = bits.numel() / values
    found = ((torch.bincount(bits.reshape(-1), minlength=values) - expected) ** 2 / expected).sum()
    return abs(float(found) - (values - 1)) / math.sqrt(2 * (values - 1))


@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_numbers_are_uniform_and_neighbours_independent(sizes: tuple[int, ...]) -> None:
    numbers = integers(key(), whole(*sizes), CPU)
    assert numbers.min() >= 0
    top, low = numbers >> 27, numbers & 15
    assert max(deviation(top, 16), deviation(low, 16)) < 5
    for distance in (1, 2, sizes[-1] // 2, sizes[-1], sizes[-1] + 1)[: 3 if len(sizes) == 1 else 5]:
        assert deviation(top[distance:] * 16 + top[:-distance], 256) < 5, distance
    ones = [float(((numbers >> bit) & 1).double().mean()) - 0.5 for bit in range(31)]
    assert max(map(abs, ones)) < 5 * 0.5 / math.sqrt(numbers.numel())


@pytest.mark.parametrize("other", [{"seed": 1}, {"step": 1}, {"draw": 1}], ids=str)
def test_seeds_steps_and_draws_are_independent(other: dict[str, int]) -> None:
    one, two = (integers(key(**which), whole(256, 256), CPU) >> 27 for which in ({}, other))
    assert deviation(one * 16 + two, 256) < 5


def test_rows_and_columns_meet_at_random() -> None:
    """Corners of rectangles are independent, which sums of a row's and a column's number would not be."""
    numbers = integers(key(), whole(512, 512), CPU).view(512, 512)
    sign = ((numbers >> 30) * 2 - 1).double()
    corners = sign[1:, 1:] * sign[:-1, 1:] * sign[1:, :-1] * sign[:-1, :-1]
    assert abs(float(corners.mean())) < 5 / math.sqrt(corners.numel())
    additive = (torch.arange(512).unsqueeze(1) * 7919 + torch.arange(512) * 104729) % 2**31
    bad = ((additive >> 30) * 2 - 1).double()
    assert abs(float((bad[1:, 1:] * bad[:-1, 1:] * bad[1:, :-1] * bad[:-1, :-1]).mean())) > 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_dropout_drops_as_often_as_it_should(dtype: torch.dtype, probability: float) -> None:
    x = torch.ones(300, 1000, dtype=dtype)
    y = drop(x, key(), probability, whole(300, 1000))
    assert y.dtype == dtype
    dropped = float((y == 0).double().mean())
    assert abs(dropped - probability) <= 5 * math.sqrt(probability * (1 - probability) / x.numel())
    kept = y[y != 0]
    if probability < 1:
        factor = torch.tensor(1 / (1 - probability), dtype=dtype)
        torch.testing.assert_close(kept, factor.expand_as(kept), rtol=1e-15 if dtype == torch.float64 else 0, atol=0)


def test_dropout_of_what_is_not_contiguous() -> None:
    x = torch.randn(30, 40)
    torch.testing.assert_close(
        drop(x.t(), key(), 0.5, whole(40, 30)), drop(x.t().contiguous(), key(), 0.5, whole(40, 30)), rtol=0, atol=0
    )


def test_small_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU a few rows at a time are made, elsewhere all at once."""
    x = torch.randn(30, 100)
    at_once = drop(x, key(), 0.3, whole(30, 100))
    monkeypatch.setattr(counters, "CHUNK", 256)
    torch.testing.assert_close(drop(x, key(), 0.3, whole(30, 100)), at_once, rtol=0, atol=0)


KINDS = {
    "bernoulli": ((0.3,), 0.3, math.sqrt(0.21)),
    "uniform": ((-1.0, 3.0), 1.0, 4 / math.sqrt(12)),
    "normal": ((2.0, 3.0), 2.0, 3.0),
    "exponential": ((2.0,), 0.5, 0.5),
    "integers": ((2.0, 12.0), 6.5, math.sqrt(99 / 12)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_mean_and_spread_of_each_kind(kind: str, dtype: torch.dtype) -> None:
    numbers, mean, spread = KINDS[kind]
    found = counters.DRAWN[kind](key(), whole(500, 1000), numbers, dtype, CPU).double()
    assert abs(float(found.mean()) - mean) < 5 * spread / math.sqrt(found.numel())
    assert abs(float(found.std()) / spread - 1) < 0.01
    if kind in ("uniform", "integers"):
        assert numbers[0] <= found.min()
        assert found.max() < numbers[1]


def test_a_permutation_has_every_number_once() -> None:
    found = counters.DRAWN["permutation"](key(), whole(1000), (), torch.int64, CPU)
    assert sorted(found.tolist()) == list(range(1000))
    assert found.tolist() != list(range(1000))


CUTS = [
    ((8, 16, 96), ((0, 2),)),
    ((8, 16, 96), ((1, 2), (1, 4))),
    ((8, 16, 96), ((2, 3),)),
    ((8, 16, 96), ((0, 4), (2, 2))),
    ((96,), ((0, 2), (0, 3))),
]


@pytest.mark.parametrize(("sizes", "cuts"), CUTS, ids=str)
def test_a_piece_has_the_numbers_of_the_whole(sizes: tuple[int, ...], cuts: tuple[tuple[int, int], ...]) -> None:
    """Whatever the mesh; so pieces differ, and replicas agree."""
    numbers = integers(key(), whole(*sizes), CPU)
    pieces = []
    for places in torch.cartesian_prod(*(torch.arange(parts) for _, parts in cuts)).view(-1, len(cuts)):
        cut = Cut(sizes, cuts, tuple(places))
        pieces.append(integers(key(), cut, CPU))
        torch.testing.assert_close(pieces[-1], cut.take(numbers).reshape(-1))
    assert len({tuple(piece[:8].tolist()) for piece in pieces}) == len(pieces)
