from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopar import bytes as byte_counts
from autopar.bytes import UNITS, human, parse_bytes
from autopar.errors import InputError


def test_examples_of_the_docstrings() -> None:
    result = doctest.testmod(byte_counts)
    assert result.attempted >= 3
    assert result.failed == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("70GiB", 70 * 2**30),
        ("70 gib", 70 * 2**30),
        ("512MB", 512_000_000),
        ("0.5KiB", 512),
        (".5kb", 500),
        ("1.5e9B", 1_500_000_000),
        ("1e3B", 1000),
        ("1073741824B", 2**30),
        (4096, 4096),
        (1.5e9, 1_500_000_000),
        ("9007199254740993B", 9007199254740993),  # not through a float
    ],
)
def test_accepted_forms(text: str | int | float, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text", ["", "GiB", "70 Gi", "70G", "70GiBs", "-1GB", "0B", "0.5B", "1,5GB", "nan", "inf", "1e", "1e999B", "0", "1e999"]
)
def test_anything_else_names_the_accepted_forms(text: str) -> None:
    with pytest.raises(InputError, match=r"ive bytes as 70GiB.*512MB.*1073741824B"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "likely"), [("70", "70GiB"), (" 0.5 ", "0.5GiB"), ("75161927680", "75161927680B"), ("7e10", "7e10B")]
)
def test_text_without_a_unit_is_no_budget(text: str, likely: str) -> None:
    with pytest.raises(InputError, match=rf"has no unit, did you mean {likely}\?"):
        parse_bytes(text)


@pytest.mark.parametrize("value", [0, -5, True, float("nan"), float("inf"), None, [1]])
def test_numbers_that_are_no_byte_counts(value: object) -> None:
    with pytest.raises(InputError, match="no positive number of bytes"):
        parse_bytes(value)  # type: ignore[arg-type]


@given(st.integers(1, 2**60), st.sampled_from(sorted(UNITS)))
def test_whole_numbers_are_exact_in_every_unit(count: int, unit: str) -> None:
    assert parse_bytes(f"{count}{unit}") == count * UNITS[unit]


@given(st.integers(1, 2**50))
def test_human_keeps_three_figures(count: int) -> None:
    assert parse_bytes(human(count)) == pytest.approx(count, rel=0.006)
