"""Collective times against formulas written out by hand, and against each other."""

import pytest

from autopar.hardware import ALGORITHMS, Link, LinkFigures, load
from autopar.hardware.link import USUAL
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
    assert set(ALGORITHMS) == set(USUAL) == set(COLLECTIVES)
    assert all(USUAL[kind] in ALGORITHMS[kind] for kind in COLLECTIVES)


@pytest.mark.parametrize(
    ("kind", "algorithm", "rounds", "sent"),
    [
        (ALL_REDUCE, "tree", 6, 1600),
        (ALL_REDUCE, "halving", 6, 1400),
        (ALL_REDUCE, "direct", 2, 1400),
        (ALL_GATHER, "tree", 3, 700),
        (ALL_GATHER, "direct", 1, 700),
        (REDUCE_SCATTER, "tree", 3, 700),
        (ALL_TO_ALL, "direct", 1, 700),
        (ALL_TO_ALL, "ring", 7, 2800),
        (ALL_TO_ALL, "tree", 3, 1200),
    ],
)
def test_other_algorithms_over_eight_devices(kind: str, algorithm: str, rounds: int, sent: float) -> None:
    link = Link(name="test", bytes_per_s=100.0, latency_s=0.5, algorithms={kind: algorithm})
    assert link.sent_bytes(kind, 800.0, 8) == pytest.approx(sent)
    assert link.collective_s(kind, 800.0, 8) == pytest.approx(rounds * 0.5 + sent / 100)
    assert link.collective_s(kind, 800.0, 1) == link.sent_bytes(kind, 800.0, 1) == 0.0


@pytest.mark.parametrize(("kind", "algorithm"), [(kind, name) for kind in COLLECTIVES for name in ALGORITHMS[kind]])
def test_no_algorithm_beats_what_must_be_sent(kind: str, algorithm: str) -> None:
    """Of n pieces a device lacks n - 1, and a message of any kind takes a round."""
    for n in range(2, 20):
        found = ALGORITHMS[kind][algorithm]
        assert found.rounds(n) >= 1
        assert found.factor(n) >= (2 if kind == ALL_REDUCE else 1) * (n - 1) / n


@pytest.mark.parametrize(("kind", "algorithm"), [(kind, name) for kind in COLLECTIVES for name in ALGORITHMS[kind]])
def test_formulas_say_what_is_computed(kind: str, algorithm: str) -> None:
    found = ALGORITHMS[kind][algorithm]
    for n in (2, 4, 8):
        texts = [t.replace("log2(n)", "log2 n").replace("2(", "2*(").replace("2 log", "2*log") for t in found.formulas]
        assert [eval(t.replace("log2 n", "L"), {"n": n, "L": n.bit_length() - 1}) for t in texts] == [
            found.rounds(n),
            found.factor(n),
        ]


def test_a_mesh_of_cables_reaches_its_bandwidth_with_all_peers_only() -> None:
    mesh = Link(name="test", bytes_per_s=700.0, latency_s=0.0, peers=7)
    switch = Link(name="test", bytes_per_s=700.0, latency_s=0.0)
    assert mesh.collective_s(ALL_GATHER, 800.0, 8) == switch.collective_s(ALL_GATHER, 800.0, 8)
    assert mesh.collective_s(ALL_GATHER, 800.0, 2) == pytest.approx(400 / 100)


def test_figures_of_one_collective_replace_those_of_all() -> None:
    own = {ALL_GATHER: LinkFigures(bytes_per_s=10.0, latency_s=2.0)}
    link = Link(name="test", bytes_per_s=100.0, latency_s=0.5, figures=own)
    assert link.collective_s(ALL_GATHER, 800.0, 4) == pytest.approx(3 * 2.0 + 600 / 10)
    assert link.collective_s(ALL_REDUCE, 800.0, 4) == LINK.collective_s(ALL_REDUCE, 800.0, 4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"bytes_per_s": 0.0},
        {"latency_s": -1.0},
        {"algorithms": {"all_reduce": "magic"}},
        {"algorithms": {"broadcast": "ring"}},
        {"figures": {"all_reduce": LinkFigures(bytes_per_s=0.0, latency_s=0.0)}},
        {"peers": 0},
    ],
)
def test_impossible_links_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="'test'"):
        Link(**{"name": "test", "bytes_per_s": 1.0, "latency_s": 0.0} | wrong)  # type: ignore[arg-type]


def test_what_fills_a_bucket_shares_its_latency() -> None:
    link = load("h100-sxm").links["intra_node"]
    bucket = link.bucket_bytes(8)
    parts = [link.collective_s(ALL_REDUCE, bucket / 4, 8, buckets=True) for _ in range(4)]
    assert sum(parts) == pytest.approx(link.collective_s(ALL_REDUCE, bucket, 8))
    assert parts[0] < link.collective_s(ALL_REDUCE, bucket / 4, 8)
    large = 2 * bucket
    assert link.collective_s(ALL_REDUCE, large, 8, buckets=True) == link.collective_s(ALL_REDUCE, large, 8)
