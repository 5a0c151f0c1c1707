"""Seconds as people read them."""

from __future__ import annotations

from autopar.bytes import three_figures


def human_s(seconds: float) -> str:
    """Seconds in the unit that reads best.

    >>> human_s(0.0014), human_s(86e-6), human_s(-2.5)
    ('1.4 ms', '86 µs', '-2.5 s')
    """
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if abs(seconds) * scale >= 1 or unit == "µs":
            break
    return f"{three_figures(seconds * scale)} {unit}"
