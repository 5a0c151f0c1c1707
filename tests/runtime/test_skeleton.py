"""A copy without weights gives the same program; one whose model cannot be copied is the model."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from autopar.runtime.skeleton import skeleton
from autopar.tracer import trace
from tests.models import MLP, mlp


class Tied(MLP):
    def __init__(self) -> None:
        super().__init__(2, 64)
        self.blocks[0][0].weight = self.blocks[1][0].weight
        self.register_buffer("scale", torch.ones(64).expand(8, 64))
        self.offset = torch.arange(64.0)  # no buffer: a constant of the code

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        return super().forward(x * self.scale + self.offset, y)


def test_a_skeleton_traces_as_the_model_does() -> None:
    model, kwargs = Tied(), mlp()[1]
    bare = skeleton(model)
    assert [t.untyped_storage().nbytes() for t in (*bare.parameters(), *bare.buffers())] == [0] * 10
    assert [p.shape for p in bare.parameters()] == [p.shape for p in model.parameters()]
    assert bare.blocks[0][0].weight is bare.blocks[1][0].weight  # type: ignore[union-attr,index]
    assert trace(bare, (), kwargs).fingerprint == trace(model, (), kwargs).fingerprint


def test_what_cannot_be_copied_stays(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Linear(2, 2)
    model.lock = threading.Lock()  # type: ignore[assignment]
    assert skeleton(model) is model
    assert "Linear cannot be copied" in caplog.text
