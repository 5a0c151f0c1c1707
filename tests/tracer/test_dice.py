"""Random numbers of Python and numpy are constants of a trace, which is said."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autopar.tracer import trace
from autopar.verification import verify


class Draws(nn.Module):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.source = source

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
            if self.source == "Python":
                x = x * random.random()
            elif self.source == "numpy":
                x = torch.where(torch.from_numpy(np.random.rand(8, 4) > 0.5), x, 0)
            else:
                x = x * torch.rand_like(x)
        return x.square().mean()


@pytest.mark.parametrize("source", ["Python", "numpy"])
def test_numbers_of_the_host_are_assumed_to_stay(source: str) -> None:
    model, x = Draws(source), torch.randn(8, 4)
    program = trace(model, (x,))
    assert program.assumptions == (f"what Draws draws from {source}'s random numbers is the same in every step",)
    assert verify(model, "2", (x,)).ok, "with the numbers of the trace"


def test_numbers_of_torch_are_not() -> None:
    assert not trace(Draws("torch"), (torch.randn(8, 4),)).assumptions
