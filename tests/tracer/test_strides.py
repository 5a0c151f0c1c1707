"""Reads of memory by position mean what they meant for the model's own tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import autopar
from autopar.errors import TraceError
from tests.hardware_toy import toy_hardware


class Overlapping(nn.Module):
    """Chunks that overlap by half, as in Longformer, of a tensor whose dims do not lie in their order; and torch's `cat` leaves
    out what has no elements."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.before(x).transpose(0, 1)
        stride = rows.stride()
        chunks = rows.as_strided((2, 4, rows.shape[1], 8), (2 * stride[0], *stride))
        chunks = torch.cat([torch.empty(0), chunks, chunks.repeat(1, 1, 1, 1)], 1)
        return self.after(chunks).square().mean()  # type: ignore[no-any-return]


def test_chunks_that_overlap_are_those_of_the_model() -> None:
    report = autopar.verify(Overlapping(), "2", (torch.randn(6, 8, 6).transpose(0, 1).contiguous(),), hardware=toy_hardware())
    assert report.ok, report.tensors[:3]
    assert any(role for unit in report.plan.regions["model"].units.values() for role in unit.roles)


def test_memory_around_a_tensor_cannot_be_read() -> None:
    class Peeks(Overlapping):
        def forward(self, x: Tensor) -> Tensor:
            return self.after(self.before(x)[:, 1:].as_strided((8, 2, 8), (48, 8, 1))).square().mean()  # type: ignore[no-any-return]

    with pytest.raises(TraceError, match=r"reads memory by position \(as_strided at test_strides\.py:\d+\).*part of another"):
        autopar.verify(Peeks(), "2", (torch.randn(8, 6, 6),))
