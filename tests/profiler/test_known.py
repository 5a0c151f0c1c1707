"""What a profile takes for granted of data that it does not have."""

from __future__ import annotations

import pytest
import torch

import autopar
from autopar.errors import TraceError
from tests.tracer.asking import clamped_if_infinite_by_comparison, clamped_if_infinite_or_nan, clamped_if_not_finite, doubled
from tests.tracer.small import Function


@pytest.mark.parametrize("function", [clamped_if_not_finite, clamped_if_infinite_or_nan, clamped_if_infinite_by_comparison])
def test_numbers_are_finite(function) -> None:  # type: ignore[no-untyped-def]
    """No clamp is counted: what is saved for backward is what the code without the guard saves."""
    with torch.device("meta"):
        ours, plain = (
            autopar.profile(Function(lambda x, f=f: f(x).square().sum()), (torch.empty(64),)) for f in (function, doubled)
        )
    assert ours.saved_bytes == plain.saved_bytes


def test_other_questions_are_errors() -> None:
    with torch.device("meta"), pytest.raises(TraceError, match="asks for the data"):
        autopar.profile(Function(lambda x: (x if (x > 0).any() else -x).sum()), (torch.empty(64),))
