"""Collective times against formulas written out by hand, and against each other."""

import pytest

from autopar.hardware import Link
from autopar.hardware.link import RING_ROUNDS
from autopar.ir.conversion import ALL_GATHER, ALL_REDUCE, ALL_TO_ALL, COLLECTIVES, REDUCE_SCATTER

LINK = Link(name="test", bytes_per_s=100.0, latency_s=0.5)


@pytest.mark.parametrize(
    ("kind", "seconds"),
    [
        (ALL_GATHER, 3 * 0.5 + 0.75 * 800 / 100),
        (REDUCE_SCATTER, 3 * 0.5 + 0.75 * 800 / 100),
        (ALL_REDUCE, 2 * (3 * 0.5 + 0.75 * 800 / 100)),
        (ALL_TO_ALL, 3 * 0.5 + 0.75 * 800 / 100),
    ],
)
def test_ring_formulas(kind: str, seconds: float) -> None:
    assert LINK.collective_s(kind, 800.0, 4) == pytest.approx(seconds)


@pytest.mark.parametrize(("kind", "sent"), [(ALL_GATHER, 600), (REDUCE_SCATTER, 600), (ALL_REDUCE, 1200), (ALL_TO_ALL, 600)])
def test_sent_bytes(kind: str, sent: float) -> None:
    assert LINK.sent_bytes(kind, 800.0, 4) == pytest.approx(sent)


@pytest.mark.parametrize("kind", COLLECTIVES)
def test_one_device_sends_nothing(kind: str) -> None:
    assert LINK.collective_s(kind, 800.0, 1) == LINK.sent_bytes(kind, 800.0, 1) == 0.0


def test_every_collective_of_the_conversion_table_has_a_price() -> None:
    assert set(RING_ROUNDS) == set(COLLECTIVES)


@pytest.mark.parametrize("wrong", [{"bytes_per_s": 0.0}, {"latency_s": -1.0}])
def test_impossible_links_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="'test'"):
        Link(**{"name": "test", "bytes_per_s": 1.0, "latency_s": 0.0} | wrong)
