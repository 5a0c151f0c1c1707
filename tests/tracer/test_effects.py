"""Linear algebra whose checks read data: they are left out, and what that assumes is said."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import autopar
from autopar.ir.run import run_program
from autopar.tracer import trace
from tests.hardware_toy import toy_hardware
from tests.tracer.small import Function


class Solving(nn.Module):
    """Blocks with a positive definite matrix for each of the batch, inverted, factored and solved with."""

    def __init__(self, right: tuple[int, ...] = (6, 4), layers: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(layers))
        self.right = nn.Parameter(torch.randn(right))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            y = layer(x)
            a = y.mT @ y + torch.eye(6)
            x = x + y @ (torch.linalg.inv(a) + torch.linalg.cholesky(a) + torch.linalg.matrix_power(a, -2))
        return (torch.linalg.solve(a, x.mT).square().sum() + torch.linalg.solve(a, self.right).square().sum()) / 64


@pytest.mark.parametrize("right", [(6, 4), (6,), (8, 6)])
def test_each_matrix_by_itself(right: tuple[int, ...]) -> None:
    """Equal to the serial run where the batch is cut, with right sides for all matrices or one vector for each."""
    model, x = Solving(right), torch.randn(8, 5, 6)
    program = trace(model, (x,))
    ops = [text.split(" in torch.linalg.")[1] for text in program.assumptions]
    assert sorted(ops) == ["cholesky", "inv", "solve"]
    assert all(text.startswith("test_effects.py:") for text in program.assumptions)
    plan = autopar.plan(model, "2", (x,), hardware=toy_hardware(), gap=0.05, constraints=cut_batch())
    report = autopar.verify(model, "2", (x,), plan=plan)
    assert report.ok, report.tensors[:3]


def cut_batch() -> autopar.Constraints:
    return autopar.Constraints(pins=["op=linalg_inv_ex: batch=gpu", "op=linalg_cholesky_ex: batch=gpu"])


def test_as_many_matrices_as_rows() -> None:
    """Right sides of six rows that six matrices share are no batch of six."""
    model, x = Solving((6, 4)), torch.randn(6, 5, 6)
    report = autopar.verify(model, "2", (x,), hardware=toy_hardware())
    assert report.ok, report.tensors[:3]


@pytest.mark.parametrize(
    "function",
    [
        torch.linalg.inv,
        torch.linalg.cholesky,
        lambda a: torch.linalg.solve(a, a[..., 0]),
        lambda a: torch.linalg.solve(a, a[..., :2]),
    ],
)
def test_singular_matrices_give_nan(function: Callable[[Tensor], Tensor]) -> None:
    """And only these: the results of the others are torch's."""
    good = torch.eye(3) + 0.1
    model = Function(lambda x: function(x))
    x = torch.stack([good, -torch.ones(3, 3), 2 * good])
    found = run_program(trace(model, (x,)), dict(model.named_parameters()), (x,))
    assert found[1].isnan().all()
    assert torch.equal(found[::2], function(x[::2]))
