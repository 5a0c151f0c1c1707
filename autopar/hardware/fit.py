"""From measured seconds to the figures of a hardware file, by least squares on relative errors.

Both models are linear once it is known which side of the roofline an op is on:

    op          s = flops / rate + launch    or    s = bytes / bandwidth + launch
    collective  s = rounds * latency + factor * bytes / bandwidth

Rows are divided by the measured seconds, so that microseconds count as much as seconds; what comes out negative is left out
and the rest solved again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autopar.hardware.device import FitQuality
from autopar.hardware.link import ALGORITHMS, USUAL, LinkFigures

ITERATIONS = 50
"""Ops change sides of the roofline a few times at most; more is a cycle between equally good answers."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class OpSample:
    """One op that was timed. `dtype` is the name whose rate its FLOPs run at."""

    flops: float
    bytes: float
    dtype: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class CollectiveSample:
    """One collective that was timed over `size` devices; `bytes` as in `Link.collective_s`."""

    kind: str
    bytes: float
    size: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """Figures of a device, and per figure how well the samples that it bounds are met: by dtype name, "memory", "launch"."""

    flops_per_s: Mapping[str, float]
    bytes_per_s: float
    launch_s: float
    quality: Mapping[str, FitQuality]


def fit_roofline(samples: Sequence[OpSample]) -> Roofline:
    """The roofline that meets the samples best; each dtype with FLOPs gets a rate.

    Starts from the best rate and bandwidth seen, lets every sample choose its side, solves, and repeats until none changes, or
    the same sides come back; of all figures on the way those with the least sum of squared relative errors count.
    """
    dtypes = sorted({s.dtype for s in samples if s.flops})
    inverse = np.array([min(s.seconds / s.flops for s in samples if s.dtype == d and s.flops) for d in dtypes], dtype=float)
    moved = [s.seconds / s.bytes for s in samples if s.bytes and not s.flops]
    assert moved, "a roofline needs an op that only moves bytes"
    seconds = np.array([s.seconds for s in samples])
    x = np.array([*inverse, min(moved), seconds.min()])
    seen: set[tuple[int, ...]] = set()
    tried: list[Array] = []
    for _ in range(ITERATIONS):
        sides = tuple(side(s, dtypes, x) for s in samples)
        if sides in seen:
            break
        seen.add(sides)
        rows = np.array([row(s, k, len(x)) for s, k in zip(samples, sides, strict=True)])
        solved = least_squares(rows, seconds)
        x = np.where((solved > 0) | (np.arange(len(x)) == len(x) - 1), solved, x)
        tried.append(x)
    x = min(tried, key=lambda found: float(np.square(predict(samples, dtypes, found) / seconds - 1).sum()))
    predicted = predict(samples, dtypes, x)
    groups = [*dtypes, "memory", "launch"]
    bound = [group(s, k, dtypes, x) for s, k in zip(samples, (side(s, dtypes, x) for s in samples), strict=True)]
    quality = {
        name: quality_of(predicted[chosen], np.array([samples[i].seconds for i in chosen]))
        for name in groups
        if (chosen := [i for i, b in enumerate(bound) if b == name])
    }
    rates = {dtype: float(1 / x[i]) for i, dtype in enumerate(dtypes)}
    return Roofline(flops_per_s=rates, bytes_per_s=float(1 / x[-2]), launch_s=float(x[-1]), quality=quality)


def predict(samples: Sequence[OpSample], dtypes: Sequence[str], x: Array) -> Array:
    return np.array([row(s, side(s, dtypes, x), len(x)) @ x for s in samples])


def side(sample: OpSample, dtypes: Sequence[str], x: Array) -> int:
    """Index of the unknown that bounds a sample: its dtype's rate, or the bandwidth (next to last)."""
    if not sample.flops:
        return len(x) - 2
    own = dtypes.index(sample.dtype)
    return own if sample.flops * x[own] >= sample.bytes * x[-2] else len(x) - 2


def row(sample: OpSample, bound: int, unknowns: int) -> Array:
    found = np.zeros(unknowns)
    found[bound] = sample.flops if bound < unknowns - 2 else sample.bytes
    found[-1] = 1.0
    return found


def group(sample: OpSample, bound: int, dtypes: Sequence[str], x: Array) -> str:
    """Under which figure a sample's error is reported: what takes most of its predicted time."""
    time = row(sample, bound, len(x)) * x
    return "launch" if time[-1] > time[bound] else dtypes[bound] if bound < len(dtypes) else "memory"


def fit_collective(samples: Sequence[CollectiveSample]) -> tuple[LinkFigures, FitQuality]:
    """Latency and bandwidth of one link, from collectives of one kind or of several, by their usual algorithms."""
    algorithms = [ALGORITHMS[s.kind][USUAL[s.kind]] for s in samples]
    rows = np.array(
        [[a.rounds(s.size), a.factor(s.size) * s.bytes] for a, s in zip(algorithms, samples, strict=True)], dtype=float
    )
    seconds = np.array([s.seconds for s in samples])
    x = least_squares(rows, seconds)
    if x[1] <= 0:
        largest = int(np.argmax(rows[:, 1]))
        x = np.array([0.0, seconds[largest] / rows[largest, 1]])  # no slope to be seen: all of the time is the bytes'
    return LinkFigures(bytes_per_s=float(1 / x[1]), latency_s=float(x[0])), quality_of(rows @ x, seconds)


def least_squares(rows: Array, seconds: Array) -> Array:
    """x >= 0 with rows @ x close to `seconds` by relative error; an x that would be negative is 0."""
    weighted = rows / seconds[:, None]
    scale = np.abs(weighted).max(axis=0)
    scale[scale == 0] = 1.0
    kept = list(range(rows.shape[1]))
    x = np.zeros(rows.shape[1])
    while kept:
        solved = np.linalg.lstsq((weighted / scale)[:, kept], np.ones(len(seconds)), rcond=None)[0]
        if solved.min() >= 0:
            x[kept] = solved
            break
        del kept[int(solved.argmin())]
    found: Array = x / scale
    return found


def quality_of(predicted: Array, measured: Array) -> FitQuality:
    errors = np.abs(predicted / measured - 1)
    return FitQuality(points=len(errors), median_error=float(np.median(errors)), worst_error=float(errors.max()))
