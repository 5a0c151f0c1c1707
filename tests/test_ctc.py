"""Models that are trained on CTC loss, which torch cannot trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import autopar
from autopar.errors import TraceError
from autopar.ir.ctc import CTC_TARGETS
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


class Masked(Spoken):
    """Its targets are those labels that are neither padding nor blank, as models of `transformers` select them."""

    def __init__(self, select: Callable[[Tensor, Tensor], Tensor] = Tensor.masked_select, **options: Any) -> None:
        super().__init__(**options)
        self.select = select

    def loss(self, log_probs: Tensor, labels: Tensor, *lengths: Tensor) -> Tensor:
        mask = (labels != -100) & (labels != self.options.get("blank", 0))
        given = lengths or (INPUTS, mask.sum(-1))
        return functional.ctc_loss(log_probs, self.select(labels, mask), *given, **self.options)


def batch(rank: int = 2) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(1, CLASSES, (BATCH, LONGEST), generator=generator)
    if rank == 1:
        targets = torch.cat([row[:n] for row, n in zip(targets, TARGETS, strict=True)])
    return torch.randn(BATCH, STEPS, 6, generator=generator), targets, INPUTS, TARGETS


LABELS = torch.tensor([[1, 0, 2, 3, -100], [4, 5, 6, 1, 2], [-100, -100, 3, -100, -100], [3, 0, 3, 2, 2]])
"""With blanks and padding in between."""
MASKED = (batch()[0], LABELS)
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
    "masked": (Masked(), MASKED),
    "masked, by sequence": (Masked(reduction="none", blank=3), MASKED),
    "masked, summed": (Masked(reduction="sum", zero_infinity=True), MASKED),
    "masked by an index": (Masked(lambda labels, mask: labels[mask].int()), MASKED),
    "masked by a function": (Masked(lambda labels, mask: torch.masked_select(labels, mask)), MASKED),
    "masked bytes": (Masked(lambda labels, mask: labels[mask].long()), (MASKED[0], LABELS.to(torch.int8))),
    "masked, with lengths": (Masked(), (*MASKED, INPUTS, torch.tensor([4, 3, 1, 5]))),
    "masked, in one row": (Masked(), (MASKED[0], LABELS.reshape(1, -1), INPUTS, TARGETS)),
    "masked, flat": (Masked(), (MASKED[0], LABELS.flatten(), INPUTS, TARGETS)),
    "masked, single": (Masked(), (SINGLE[0], torch.tensor([1, 0, 2, -100, 3]), *SINGLE[2:])),
    "masked, nothing": (Masked(zero_infinity=True), (MASKED[0], torch.full_like(LABELS, -100))),
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


@pytest.mark.parametrize(
    ("how", "mesh"), [("", "2x2"), (", by sequence", "2"), (", summed", "2x2"), (" by an index", "2"), (", with lengths", "4")]
)
def test_sequences_with_masked_targets_are_cut(how: str, mesh: str) -> None:
    model, inputs = CASES[f"masked{how}"]
    rows = "with lengths" not in how
    pins = autopar.Constraints(pins=["op=ctc_loss: batch=*", *["op=ctc_targets: batch=*"] * rows])
    report = autopar.verify(model, mesh, inputs, hardware=toy_hardware(), constraints=pins)
    assert report.max_relative_error <= 1e-9, report.tensors[:3]


class Counted(Masked):
    """With lengths of its own making."""

    def __init__(self, lengths: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.lengths = lengths

    def forward(self, x: Tensor, targets: Tensor, *lengths: Tensor) -> Tensor:
        return super().forward(x, targets, INPUTS, self.lengths(targets))


@pytest.mark.parametrize(
    ("lengths", "cut"),
    [
        (lambda labels: ((labels != -100) & (labels != 0)).sum(1), True),
        (lambda labels: ((labels != -100) & (labels != 0)).int().sum(-1, keepdim=True).flatten().int(), True),
        (lambda labels: ((labels != -100) & (labels != 0)).sum(0)[:BATCH], False),
        (lambda labels: ((labels != -100) & (labels != 0)).reshape(LONGEST, BATCH).sum(0), False),
        (lambda labels: (labels > 0).sum(1), False),
        (lambda labels: ((labels != -100) & (labels != 1)).sum(1), False),
        (lambda labels: TARGETS, False),
    ],
)
def test_targets_are_cut_by_rows_if_lengths_are_those_of_each_row(lengths: Callable[[Tensor], Tensor], cut: bool) -> None:
    program = trace(Counted(lengths), MASKED)
    (found,) = (node for region in program.regions.values() for node in region.graph.nodes if node.target is CTC_TARGETS)
    assert found.args[3:] == (True, cut)


@pytest.mark.parametrize("lost", [False, True], ids=["alone", "beside the loss"])
@pytest.mark.parametrize(
    "use",
    [
        lambda targets: targets,
        lambda targets: targets.sum(),
        lambda targets: targets.float().mean(),
        lambda targets: targets.shape[0],
        lambda targets: len(targets),
        lambda targets: torch.ones(7)[targets].sum(),
        lambda targets: targets[0] + targets[-1],
        lambda targets: 1.0 if targets.numel() > 12 else 2.0,
        lambda targets: functional.one_hot(targets, CLASSES),
        lambda targets: torch.zeros(CLASSES).index_add(0, targets, torch.ones(len(targets))),
        lambda targets: functional.ctc_loss(torch.zeros(12, 4, CLASSES), targets + 0, INPUTS, TARGETS),
        lambda targets: functional.ctc_loss(torch.zeros(12, 4, CLASSES), targets.reshape(4, -1), INPUTS, TARGETS),
    ],
)  # fmt: skip
def test_other_uses_of_what_a_mask_selects_are_refused(use: Callable[[Tensor], Any], lost: bool) -> None:
    class Other(Spoken):
        def forward(self, x: Tensor, labels: Tensor, *lengths: Tensor) -> Any:
            selected = labels.masked_select(labels > 0)
            loss = self.linear(x).square().mean()
            if lost:
                log_probs = functional.log_softmax(self.linear(x), -1).transpose(0, 1)
                loss = functional.ctc_loss(log_probs, selected, INPUTS, (labels > 0).sum(-1))
            return loss, use(selected)

    with pytest.raises(TraceError, match=r"sizes a tensor on data.* at test_ctc\.py:\d+ \(`selected = labels\.masked_select"):
        trace(Other(), MASKED)


def test_lengths_that_are_not_those_of_the_selected_targets_are_an_error() -> None:
    """As in `ctc_loss` itself, which is told their number."""
    for lengths in (TARGETS - 1, torch.tensor([0, 7, 2, 4])):
        with pytest.raises(ValueError, match="13 targets of a CTC loss were selected, for sequences of"):
            CTC_TARGETS(LABELS, LABELS > 0, lengths, True)
    found = CTC_TARGETS(LABELS, LABELS > 0, TARGETS, True)
    assert found.tolist() == [[1, 2, 3, 0, 0], [4, 5, 6, 1, 2], [3, 0, 0, 0, 0], [3, 3, 2, 2, 0]]


def test_profiled_as_if_targets_filled_their_room() -> None:
    """Saved are the linear's result as log-probabilities, and log-alpha, [batch, steps, 2 longest + 1], beside some numbers."""
    model, inputs = CASES["tensors"]
    wanted = 4 * BATCH * STEPS * (CLASSES + 2 * LONGEST + 1)
    assert 0 <= autopar.profile(model, inputs).saved_bytes - wanted <= 100
