"""Models that are trained on CTC loss, which torch cannot trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import autopar
from autopar.ir.run import run_program
from autopar.tracer import trace
from tests.hardware_toy import toy_hardware

BATCH, STEPS, LONGEST, CLASSES = 4, 12, 5, 7
INPUTS, TARGETS = torch.tensor([12, 11, 12, 9]), torch.tensor([3, 5, 1, 4])


class Spoken(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.linear, self.options = nn.Linear(6, CLASSES), options

    def forward(self, x: Tensor, targets: Tensor, *lengths: Tensor) -> Tensor:
        log_probs = functional.log_softmax(self.linear(x), -1)
        log_probs = log_probs.transpose(0, 1) if x.ndim == 3 else log_probs
        return self.loss(log_probs, targets, *lengths).sum()

    def loss(self, log_probs: Tensor, targets: Tensor, *lengths: Tensor) -> Tensor:
        given = lengths or (tuple(INPUTS.tolist()), TARGETS.tolist())
        return functional.ctc_loss(log_probs, targets, *given, **self.options)


class ByModule(Spoken):
    def loss(self, log_probs: Tensor, targets: Tensor, *lengths: Tensor) -> Tensor:
        return nn.CTCLoss(**self.options)(log_probs, targets, *lengths)


class ByNumber(Spoken):
    def loss(self, log_probs: Tensor, targets: Tensor, *lengths: Tensor) -> Tensor:
        return torch.ctc_loss(log_probs, targets, *lengths, 0, 2)


def batch(rank: int = 2) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(1, CLASSES, (BATCH, LONGEST), generator=generator)
    if rank == 1:
        targets = torch.cat([row[:n] for row, n in zip(targets, TARGETS, strict=True)])
    return torch.randn(BATCH, STEPS, 6, generator=generator), targets, INPUTS, TARGETS


SINGLE = (torch.randn(STEPS, 6), torch.tensor([1, 2, 3]), torch.tensor(STEPS), torch.tensor(3))
CASES: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {
    "tensors": (Spoken(), batch()),
    "numbers": (Spoken(), batch()[:2]),
    "by sequence": (Spoken(reduction="none", blank=2), batch()),
    "summed": (Spoken(reduction="sum"), batch()),
    "one after the other": (Spoken(), batch(1)),
    "too short": (Spoken(zero_infinity=True), (*batch()[:2], torch.tensor([12, 3, 12, 9]), TARGETS)),
    "module": (ByModule(reduction="mean"), batch()),
    "function of torch": (ByNumber(), batch()),
    "single": (Spoken(reduction="none"), SINGLE),
}


@pytest.mark.parametrize("case", CASES)
def test_traced_as_it_is(case: str) -> None:
    """Loss and gradients of the traced program are those of torch, bit for bit."""
    model, inputs = CASES[case]
    program = trace(model, inputs)
    parameters = dict(model.named_parameters())
    found, wanted = (step(parameters, loss) for loss in (run_program(program, parameters, inputs), model(*inputs)))
    assert all(map(torch.equal, found, wanted))


def step(parameters: dict[str, Tensor], loss: Tensor) -> tuple[Tensor, ...]:
    return loss.detach(), *torch.autograd.grad(loss, list(parameters.values()))


def test_sequences_are_cut() -> None:
    model, inputs = CASES["tensors"]
    pins = autopar.Constraints(pins=["op=ctc_loss: batch=gpu"])
    plan = autopar.plan(model, "2", inputs, hardware=toy_hardware(), constraints=pins)
    report = autopar.verify(model, "2", inputs, plan=plan)
    assert report.ok, report.tensors[:3]


def test_profiled_as_if_targets_filled_their_room() -> None:
    """Saved are the linear's result as log-probabilities, and log-alpha, [batch, steps, 2 longest + 1], beside some numbers."""
    model, inputs = CASES["tensors"]
    wanted = 4 * BATCH * STEPS * (CLASSES + 2 * LONGEST + 1)
    assert 0 <= autopar.profile(model, inputs).saved_bytes - wanted <= 100
