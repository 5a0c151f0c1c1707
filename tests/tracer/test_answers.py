"""Code that asks for the values of tensors: what is answered in a trace, what is assumed, and what stays an error."""

from __future__ import annotations

import ast
import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import autopar
from autopar.errors import InputError, TraceError
from autopar.tracer import trace
from autopar.tracer.capture import warn_assumed
from autopar.tracer.checks import parts
from tests.tracer.asking import (
    clamped_if_infinite_by_comparison,
    clamped_if_infinite_or_nan,
    clamped_if_not_finite,
    clamped_if_one_of_many,
    counted,
    doubled,
    inside,
    lasting,
    overwritten,
    with_a_mask_of_infinities,
    with_a_mask_of_ones,
    within_limits,
)
from tests.tracer.small import Function


def loss(function: Callable[[Tensor], Tensor]) -> nn.Module:
    return Function(lambda x: function(x).sum())


def ops(model: nn.Module) -> list[str]:
    regions = trace(model, (torch.randn(4),)).regions.values()
    return [str(node.target) for region in regions for node in region.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize(
    ("function", "notes"),
    [
        (clamped_if_not_finite, 1),
        (clamped_if_infinite_or_nan, 1),
        (clamped_if_one_of_many, 1),
        (within_limits, 3),
        (with_a_mask_of_ones, 0),
        (clamped_if_infinite_by_comparison, 1),
        (with_a_mask_of_infinities, 0),
    ],
)
def test_what_is_known_or_assumed(function: Callable[[Tensor], Tensor], notes: int) -> None:
    """The graph is that of the code without the guard; each line that needed an assumption is noted."""
    program = trace(loss(function), (torch.randn(4),))
    assert ops(loss(function)) == ops(loss(doubled))
    assert len(program.assumptions) == notes
    assert all("asking.py:" in text for text in program.assumptions)


def test_assumptions_are_in_the_plan_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    warn_assumed.cache_clear()
    with caplog.at_level(logging.WARNING, logger="autopar"):
        plans = [autopar.plan(loss(clamped_if_not_finite), "2", (torch.randn(4),), cache=False) for _ in range(2)]
    assert plans[0].notes == plans[1].notes
    assert any("`if not torch.isfinite(x).all():`) finds only finite numbers" in note for note in plans[0].notes)
    assert sum("finds only finite numbers" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("function", [overwritten, inside, lasting])
def test_what_is_not_known(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(TraceError, match=r"branches or sizes a tensor on data at asking\.py:\d+ \("):
        trace(loss(function), (torch.randn(4),))


def test_assume() -> None:
    """By line, by code, for a while; the error says what to write, and where the value is read."""
    with pytest.raises(TraceError) as caught:
        ops(loss(counted))
    said = str(caught.value)
    assert "(`return x * 2 if many > 2 else x`), with a value that is read at asking.py:" in said
    line = counted.__code__.co_firstlineno + 1
    assert f'autopar.assume("asking.py:{line}", value)' in said
    for where in (f"asking.py:{line}", f"tracer/asking.py:{line}", "(x > 0).sum().item()"):
        with autopar.assume(where, 3):
            assert ops(loss(counted)) == ops(loss(doubled))
            with autopar.assume(where, 1):
                assert ops(loss(counted)) == ops(loss(lambda x: x))
            assert trace(loss(counted), (torch.randn(4),)).assumptions[0].endswith("gets 3 of a tensor, as autopar.assume says")
    for where in ("asking.py:1", f"other/asking.py:{line}", "something else"):
        with autopar.assume(where, 3), pytest.raises(TraceError):
            ops(loss(counted))


def test_assume_comes_before_what_is_taken_to_be_finite() -> None:
    with autopar.assume("if not torch.isfinite(x).all()", False):
        assert "aten.clamp.default" in ops(loss(clamped_if_not_finite))


@pytest.mark.parametrize(("where", "value"), [("", True), ("x.py:3", [1]), ("x.py:3", None)])
def test_malformed(where: str, value: object) -> None:
    with pytest.raises(InputError, match="assume"):
        autopar.assume(where, value)  # type: ignore[arg-type]


class Told(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, flags: Tensor) -> Tensor:
        return self.linear(x) if flags.any() else torch.tanh(self.linear(x))


class Stack(nn.Module):
    """Equal blocks that are told different things by tensors of equal shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Told() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x, torch.zeros(3) if i % 2 else torch.ones(3))
        return x.sum()


def test_an_answer_is_not_taken_for_that_of_an_equal_block() -> None:
    model, x = Stack(), torch.randn(2, 4)
    programs = [trace(model, (x,), blocks_once=once) for once in (True, False)]
    assert programs[0].fingerprint == programs[1].fingerprint
    for program in programs:
        called = [node for call in program.calls for node in program.regions[call.region].graph.nodes]
        assert sum(str(node.target) == "aten.tanh.default" for node in called) == 2


def test_every_part_of_a_condition() -> None:
    test = ast.parse("a and not (b or not c)", mode="eval").body
    assert [truth for _, truth in parts(test, False)] == [False, True, False]
