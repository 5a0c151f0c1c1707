"""Writes by a mask are choices for each element, where what is written needs no positions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from autopar.errors import TraceError
from autopar.tracer import trace
from autopar.verification import verify
from tests.hardware_toy import toy_hardware

torch.manual_seed(0)
MASK = torch.rand(8, 6) > 0.5
Write = Callable[[Tensor, Tensor, Tensor], Tensor | None]
"""Of hidden states [8, 6, 4], the input, alike, and a weight [4]."""


def token(h: Tensor, x: Tensor, w: Tensor) -> None:
    h[x[:, :, 0] > 0] = w


def constant_mask(h: Tensor, x: Tensor, w: Tensor) -> None:
    h[MASK] = w


def one_row(h: Tensor, x: Tensor, w: Tensor) -> None:
    h[x[:, :, 0] > 0] = w.unsqueeze(0)


def later_dims(h: Tensor, x: Tensor, w: Tensor) -> None:
    h[:, x[0] > 0] = x[:, :1, 0]


def middle_dim(h: Tensor, x: Tensor, w: Tensor) -> None:
    h[:, MASK[0]] = w


def of_another(h: Tensor, x: Tensor, w: Tensor) -> None:
    y = x * w
    h[MASK] = y[MASK]


def changed(h: Tensor, x: Tensor, w: Tensor) -> None:
    mask = x[:, :, 0] > 0
    h[mask] = (h[mask] * w - x[mask]).neg() + 1


def increased(h: Tensor, x: Tensor, w: Tensor) -> None:
    h[MASK] += 2


def added(h: Tensor, x: Tensor, w: Tensor) -> Tensor:
    return h.index_put((x[:, :, 0] > 0,), w, accumulate=True)


def elements(h: Tensor, x: Tensor, w: Tensor) -> None:
    h[x > 0] = w[:1]


class Writes(nn.Module):
    def __init__(self, write: Write) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.weight = nn.Parameter(torch.randn(4))
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        found = self.write(h, x, self.weight)
        return (h if found is None else found).square().mean()


@pytest.mark.parametrize(
    "write", [token, constant_mask, one_row, later_dims, middle_dim, of_another, changed, increased, added, elements]
)
def test_what_is_written_is_chosen_for_each_element(write: Write) -> None:
    model, x = Writes(write), torch.randn(8, 6, 4)
    targets = {str(n.target) for region in trace(model, (x,)).regions.values() for n in region.graph.nodes}
    assert "aten.where.self" in targets
    assert not targets & {"aten.index_put.default", "aten.index.Tensor"}
    report = verify(model, "2x2", (x,), hardware=toy_hardware())
    assert report.ok, report


def logarithm(h: Tensor, x: Tensor, w: Tensor) -> None:
    """Of the others it is not finite, and neither is its gradient."""
    mask = x[:, :, 0] > 0
    h[mask] = (h[mask].square() + x[mask][:, :1]).log()


def by_another_mask(h: Tensor, x: Tensor, w: Tensor) -> None:
    h[MASK] = x[MASK.roll(1, 0)]


def number(h: Tensor, x: Tensor, w: Tensor) -> Tensor:
    return h * h[MASK].shape[0]


@pytest.mark.parametrize("write", [logarithm, by_another_mask, number])
def test_what_needs_the_positions_is_an_error(write: Write) -> None:
    with pytest.raises(TraceError, match="sizes a tensor on data"):
        trace(Writes(write), (torch.randn(8, 6, 4),))
