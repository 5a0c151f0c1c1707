"""Round numbers along an axis."""

from __future__ import annotations

import math


def ticks(highest: float, count: int = 4) -> list[float]:
    """About so many round numbers from 0 to `highest`, in steps of 1, 2 or 5 times a power of ten.

    >>> ticks(0.27), ticks(70)
    ([0.0, 0.1, 0.2], [0.0, 20.0, 40.0, 60.0])
    """
    if highest <= 0:
        return [0.0]
    wanted = highest / count
    size = 10.0 ** math.floor(math.log10(wanted))
    step = next(size * m for m in (1, 2, 5, 10) if size * m >= wanted * 0.8)
    return [round(i * step, 12) for i in range(math.floor(highest / step * (1 + 1e-9)) + 1)]


def percent(part: float, whole: float) -> float:
    """Of the whole, for positions in a style; two decimals, 0 of nothing."""
    return round(100 * part / whole, 2) if whole else 0.0


def share(part: float, whole: float) -> str:
    """In words: "44 %", "<1 %"."""
    if not whole:
        return "–"
    found = 100 * part / whole
    return "<1 %" if 0 < found < 1 else f"{found:.0f} %"
