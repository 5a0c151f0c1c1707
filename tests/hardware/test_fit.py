"""Fits find the parameters that made synthetic timings, exactly; and say so where timings follow no such model."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from autopar.hardware import Link
from autopar.hardware.calibrate import bad_fits
from autopar.hardware.fit import CollectiveSample, OpSample, Roofline, fit_collective, fit_roofline
from autopar.ir.conversion import ALL_REDUCE, COLLECTIVES
from tests.hardware_toy import toy_hardware

RATES = {"float32": 80e9, "bfloat16": 24e9, "float16": 1e9}
BANDWIDTH, LAUNCH = 12e9, 5e-6


def op_s(flops: float, bytes: float, dtype: str, rates: dict[str, float], bandwidth: float, launch: float) -> float:
    return max(flops / rates[dtype], bytes / bandwidth) + launch


def timings(rates: dict[str, float], bandwidth: float, launch: float, noise: float = 0.0) -> list[OpSample]:
    """As calibration takes them: a tiny op, streams, and square matmuls, the smallest of which are bound by memory."""
    chance = random.Random(0)
    ops = [(0.0, 48.0, "float32"), *((0.0, 2.0**e, "float32") for e in (25, 26, 27))]
    ops += [(2.0 * n**3, 12.0 * n**2, dtype) for dtype in rates for n in (16, 32, 256, 512, 1024, 2048)]
    return [
        OpSample(
            flops=flops,
            bytes=bytes,
            dtype=dtype,
            seconds=op_s(flops, bytes, dtype, rates, bandwidth, launch) * chance.uniform(1 - noise, 1 + noise),
        )
        for flops, bytes, dtype in ops
    ]


def test_a_roofline_is_recovered() -> None:
    found = fit_roofline(timings(RATES, BANDWIDTH, LAUNCH))
    assert dict(found.flops_per_s) == pytest.approx(RATES, rel=1e-9)
    assert found.bytes_per_s == pytest.approx(BANDWIDTH, rel=1e-9)
    assert found.launch_s == pytest.approx(LAUNCH, rel=1e-9)
    assert set(found.quality) == {*RATES, "memory", "launch"}
    assert max(q.worst_error for q in found.quality.values()) < 1e-9
    assert sum(q.points for q in found.quality.values()) == len(timings(RATES, BANDWIDTH, LAUNCH))


@example(rates=(434758710874112.0, 1273707160768.25), bandwidth=1273707160764.0, launch=1e-07)  # sides that come back
@given(rates=st.tuples(*[st.floats(1e9, 1e15)] * 2), bandwidth=st.floats(1e9, 1e13), launch=st.floats(1e-7, 1e-4))
def test_any_device_is_met(rates: tuple[float, float], bandwidth: float, launch: float) -> None:
    """Sizes may leave a figure open (all matmuls bound by memory); what was measured is met all the same."""
    samples = timings({"float32": rates[0], "bfloat16": rates[1]}, bandwidth, launch)
    found = fit_roofline(samples)
    for s in samples:
        predicted = op_s(s.flops, s.bytes, s.dtype, dict(found.flops_per_s), found.bytes_per_s, found.launch_s)
        assert predicted == pytest.approx(s.seconds, rel=1e-6)


def test_noise_is_reported_in_its_size() -> None:
    found = fit_roofline(timings(RATES, BANDWIDTH, LAUNCH, noise=0.1))
    assert dict(found.flops_per_s) == pytest.approx(RATES, rel=0.1)
    medians = [q.median_error for name, q in found.quality.items() if q.points > 1]
    assert all(0.01 < median < 0.15 for median in medians)
    assert all(q.worst_error < 0.25 for q in found.quality.values())


def test_a_machine_that_is_no_roofline_fits_badly() -> None:
    samples = [s if s.flops < 1e8 else replace_s(s, s.seconds * (4 if i % 2 else 0.25)) for i, s in enumerate(timings_of_one())]
    quality = fit_roofline(samples).quality["float32"]
    assert quality.median_error > 0.25
    assert lines(fit_roofline(samples))
    assert not lines(fit_roofline(timings_of_one()))


def timings_of_one() -> list[OpSample]:
    return timings({"float32": 80e9}, BANDWIDTH, LAUNCH)


def replace_s(sample: OpSample, seconds: float) -> OpSample:
    return OpSample(flops=sample.flops, bytes=sample.bytes, dtype=sample.dtype, seconds=seconds)


def lines(found: Roofline) -> list[str]:
    """What a user is told about the fit."""
    from dataclasses import replace

    return list(bad_fits(replace(toy_hardware(), fit=dict(found.quality))))


LINK = Link(name="test", bytes_per_s=1e9, latency_s=1e-4)


def collectives(kinds: tuple[str, ...], size: int, noise: float = 0.0) -> list[CollectiveSample]:
    chance = random.Random(0)
    return [
        CollectiveSample(
            kind=kind,
            bytes=bytes,
            size=size,
            seconds=LINK.collective_s(kind, bytes, size) * chance.uniform(1 - noise, 1 + noise),
        )
        for kind in kinds
        for bytes in (2.0**e for e in range(10, 26, 3))
    ]


@pytest.mark.parametrize("kinds", [*((kind,) for kind in COLLECTIVES), COLLECTIVES])
@pytest.mark.parametrize("size", [2, 4, 7])
def test_latency_and_bandwidth_are_recovered(kinds: tuple[str, ...], size: int) -> None:
    figures, quality = fit_collective(collectives(kinds, size))
    assert figures.bytes_per_s == pytest.approx(LINK.bytes_per_s, rel=1e-9)
    assert figures.latency_s == pytest.approx(LINK.latency_s, rel=1e-9)
    assert quality.worst_error < 1e-9
    assert quality.points == 6 * len(kinds)


def test_noisy_collectives() -> None:
    figures, quality = fit_collective(collectives(COLLECTIVES, 4, noise=0.3))
    assert figures.bytes_per_s == pytest.approx(LINK.bytes_per_s, rel=0.2)
    assert 0.05 < quality.median_error < 0.3


def test_a_small_message_counts_as_much_as_a_large_one() -> None:
    """Least squares on seconds would give the latency away for a thousandth of the largest message."""
    samples = collectives((ALL_REDUCE,), 2)
    off = [
        CollectiveSample(kind=s.kind, bytes=s.bytes, size=s.size, seconds=s.seconds * (1.02 if s.bytes > 2**24 else 1))
        for s in samples
    ]
    assert fit_collective(off)[0].latency_s == pytest.approx(LINK.latency_s, rel=0.02)


@pytest.mark.parametrize("seconds", [(5e-4, 4e-4, 3e-4), (1e-6, 4e-4, 3e-3)])
def test_figures_are_never_impossible(seconds: tuple[float, ...]) -> None:
    """Falling times have no bandwidth, steeply rising ones no latency: the fit is bad, and its figures still of this world."""
    samples = [
        CollectiveSample(kind=ALL_REDUCE, bytes=bytes, size=2, seconds=s)
        for bytes, s in zip((1e3, 1e5, 1e6), seconds, strict=True)
    ]
    figures, quality = fit_collective(samples)
    Link(name="test", bytes_per_s=figures.bytes_per_s, latency_s=figures.latency_s)
    assert quality.worst_error > 0.2
