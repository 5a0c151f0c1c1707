"""A model that cannot be traced is told where and what to do, without torch's own pages."""

from __future__ import annotations

import pytest
import torch

from autopar.errors import TraceError
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


def test_code_that_torch_cannot_trace() -> None:
    with pytest.raises(TraceError, match=r"cannot trace the model at test_failures\.py:\d+ \(`.*numpy"):
        trace(Function(lambda x: x.detach().numpy()), (torch.randn(4),))


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
