"""A model that cannot be traced is told where and what to do, without torch's own pages."""

from __future__ import annotations

import re

import pytest
import torch

from autopar.errors import TraceError
from autopar.ir.run import run_program
from autopar.tracer import trace
from tests.tracer.small import Function


def branches(x):
    return x if x.sum() > 0 else -x


def test_data_dependent_branch() -> None:
    with pytest.raises(TraceError, match=r"test_failures\.py:\d+ \(`return x if x\.sum\(\) > 0") as caught:
        trace(Function(branches), (torch.randn(4),))
    assert "torch.where" in str(caught.value)
    assert "torch.cond" in str(caught.value)
    assert caught.value.__cause__ is not None
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("function", [lambda x: x[x > 0], lambda x: x * x.sum().item()])
def test_data_dependent_size_or_number(function) -> None:
    with pytest.raises(TraceError, match=r"on data at test_failures\.py:\d+ \(`@pytest.mark.parametrize.*x\[x > 0\]"):
        trace(Function(function), (torch.randn(4),))


def counts(x):
    return x * torch.bincount(x.long(), minlength=9).sum()


def distinct(x):
    values, places = torch.unique_consecutive(x, return_inverse=True)
    return values.sum() + places.sum()


def sorted_and_distinct(x):
    return torch.unique(x).sum()


def repeated(x):
    return x.repeat_interleave(x.long())


def classes(x):
    return torch.nn.functional.one_hot(x.long()).sum()


@pytest.mark.parametrize(
    ("function", "line", "name", "instead"),
    [
        (counts, "torch.bincount(x.long", "bincount", "index_add"),
        (distinct, "values, places = torch.unique_consecutive", "unique_consecutive", "mask"),
        (sorted_and_distinct, "return torch.unique(x)", "unique", "mask"),
        (repeated, "return x.repeat_interleave", "repeat_interleave", "give output_size="),
        (classes, "return torch.nn.functional.one_hot", "one_hot", "give num_classes="),
    ],
)
def test_functions_whose_results_are_as_large_as_data_say(function, line: str, name: str, instead: str) -> None:
    """The error names the line and the function, and says what to write instead."""
    with pytest.raises(TraceError) as caught:
        trace(Function(function), (torch.tensor([1.0, 2, 2, 0]),))
    text = str(caught.value)
    assert re.search(rf"test_failures\.py:\d+ \(`[^`]*{re.escape(line)}", text), text
    assert f"how large the result of torch.{name} is" in text
    assert instead in text
    assert "assume" not in text


def test_counts_as_the_error_says() -> None:
    x = torch.tensor([1, 2, 2, 0])
    model = Function(lambda x: (i := x.long()).new_zeros(9).index_add(0, i, torch.ones_like(i)))
    assert torch.equal(run_program(trace(model, (x,)), dict(model.named_parameters()), (x,)), torch.bincount(x, minlength=9))


def test_code_that_torch_cannot_trace() -> None:
    with pytest.raises(TraceError, match=r"cannot trace the model at test_failures\.py:\d+ \(`.*numpy"):
        trace(Function(lambda x: x.detach().numpy()), (torch.randn(4),))


def test_a_module_that_is_cast_in_forward() -> None:
    class Casts(Function):
        def forward(self, x):
            return super().to(torch.float64).weight * x

    with pytest.raises(TraceError, match=r"casts or moves .*test_failures\.py:\d+ \(`return super\(\).*cast the module"):
        trace(Casts(None), (torch.ones(2),))


def test_wrong_arguments() -> None:
    with pytest.raises(TraceError, match=r"do not fit Function\.forward: missing a required argument: 'x'"):
        trace(Function(torch.sum), ())
    with pytest.raises(TraceError, match="unexpected keyword argument 'z'"):
        trace(Function(torch.sum), (torch.ones(2),), {"z": 1})


def test_a_changed_input() -> None:
    class Writes(Function):
        def forward(self, x):
            x.add_(1)
            return x * self.weight

    with pytest.raises(TraceError, match=r"of 'x'.*clone it"):
        trace(Writes(None), (torch.ones(2),))


def test_several_devices() -> None:
    model = Function(torch.sum)
    model.register_buffer("far", torch.ones(2, device="meta"))
    with pytest.raises(TraceError, match="several devices"):
        trace(model, (torch.ones(2),))
