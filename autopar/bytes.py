"""Byte budgets as people write them, and byte counts as people read them."""

from __future__ import annotations

import math
import re

from autopar.errors import InputError

UNITS: dict[str, int] = (
    {"b": 1} | {f"{p}b": 1000**i for i, p in enumerate("kmgt", 1)} | {f"{p}ib": 1024**i for i, p in enumerate("kmgt", 1)}
)
FORMS = "give bytes as 70GiB (1024-based), 512MB (1000-based) or 1073741824B; from Python also as a plain number"
LIKELY_BYTES = 2**20
"""A number without unit below this is hardly meant in bytes."""
TEXT = re.compile(r"(?P<number>\d+(\.\d*)?(e[+-]?\d+)?|\.\d+(e[+-]?\d+)?)\s*(?P<unit>[kmgt]?i?b)?", re.IGNORECASE)


def parse_bytes(value: str | int | float) -> int:
    """Whole bytes, rounded down; raises InputError with the accepted forms. Text needs a unit, a number is bytes.

    >>> parse_bytes("70GiB") == 70 * 2**30, parse_bytes("512MB"), parse_bytes("1.5e9B"), parse_bytes(4096)
    (True, 512000000, 1500000000, 4096)
    """
    number = _parse_text(value) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number) or number < 1:
        raise InputError(f"{value!r} is no positive number of bytes: {FORMS}")
    return int(number)


def _parse_text(text: str) -> int | float:
    match = TEXT.fullmatch(text.strip())
    if match and match["unit"] is None:
        likely = f"{match['number']}{'GiB' if float(match['number']) < LIKELY_BYTES else 'B'}"
        raise InputError(f"{text!r} has no unit, did you mean {likely}? {FORMS[0].upper()}{FORMS[1:]}")
    unit = UNITS.get(match["unit"].lower()) if match else None
    if match is None or unit is None:
        raise InputError(f"{text!r} is no byte count: {FORMS}")
    number: str = match["number"]
    if number.isdigit():
        return int(number) * unit
    return float(number) * unit


def human(count: float) -> str:
    """Three significant figures in a 1024-based unit, whole numbers left as they are.

    >>> human(70 * 2**30), human(1500173), human(12)
    ('70 GiB', '1.43 MiB', '12 B')
    """
    unit, scaled = "B", float(count)
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if abs(scaled) < 999.5:
            break
        unit, scaled = larger, scaled / 1024
    return f"{three_figures(scaled)} {unit}"


def three_figures(number: float) -> str:
    """At least the whole part, and as many decimals as three figures need.

    >>> [three_figures(n) for n in (1234.5, 123.4, 12.345, 1.2345, 0.5)]
    ['1234', '123', '12.3', '1.23', '0.5']
    """
    decimals = 2 - math.floor(math.log10(abs(number))) if number else 0
    text = f"{number:.{min(max(decimals, 0), 3)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
