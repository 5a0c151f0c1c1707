"""Modules that are cast while they run: to what they are, which is nothing, or to something else, which is an error."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import autopar
from autopar.errors import TraceError
from autopar.tracer import trace
from tests.hardware_toy import toy_hardware
from tests.tracer.same import snapshot

Change = Callable[[nn.Module], nn.Module]


class Router(nn.Module):
    """As in Switch Transformers."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.classifier, self.norm, self.change = nn.Linear(8, 8), nn.BatchNorm1d(8), change

    def forward(self, x: Tensor) -> Tensor:
        self.classifier = self.change(self.classifier)
        return x + self.classifier(x)


class Routed(nn.Module):
    def __init__(self, change: Change, whole: bool = False) -> None:
        super().__init__()
        self.layers, self.whole = nn.ModuleList(Router(change) for _ in range(4)), whole

    def forward(self, x: Tensor) -> Tensor:
        if self.whole:
            self.to(torch.float32)
        for layer in self.layers:
            x = layer(x)
        return x.square().mean()


def kept(module: nn.Module) -> nn.Module:
    return module


X = torch.randn(4, 8)
IDLE: dict[str, Change] = {
    "dtype": lambda module: module.to(torch.float32),
    "float": lambda module: module.float(),
    "device": lambda module: module.to("cpu"),
    "device and dtype": lambda module: module.to(device=torch.device("cpu"), dtype=torch.float32),
    "tensor": lambda module: module.to(X),
    "type": lambda module: module.type(torch.float32),
}
REAL: dict[str, Change] = {
    "dtype": lambda module: module.to(torch.float64),
    "half": lambda module: module.half(),
    "device": lambda module: module.to("meta"),
    "new memory": lambda module: module.to_empty(device="cpu"),
    "doubled": lambda module: module._apply(lambda tensor: tensor * 2),
}


@pytest.mark.parametrize("how", IDLE)
@pytest.mark.parametrize("once", [True, False], ids=["once", "in full"])
def test_a_cast_to_what_it_is_does_nothing(how: str, once: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The program is that without the cast; the model remains as it was, and equal blocks are still traced once."""
    models = [Routed(IDLE[how]), Routed(kept)]
    before = snapshot(models[0])
    with caplog.at_level(logging.DEBUG, logger="autopar"):
        programs = [trace(model, (X,), blocks_once=once) for model in models]
    assert programs[0].fingerprint == programs[1].fingerprint
    assert snapshot(models[0]) == before
    assert sum("is traced in full" in record.message for record in caplog.records) == once


def test_a_model_that_casts_itself() -> None:
    model = Routed(kept, whole=True)
    assert trace(model, (X,)).fingerprint == trace(Routed(kept), (X,)).fingerprint
    assert autopar.verify(model, "2", (X,), hardware=toy_hardware()).ok


@pytest.mark.parametrize("how", REAL)
def test_a_cast_to_something_else_is_an_error(how: str) -> None:
    with pytest.raises(TraceError, match=r"casts or moves .*test_casts\.py:\d+ \(`.*cast the module"):
        trace(Routed(REAL[how]), (X,))
