"""Padding is refused where the loss would count what was added."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autopar.errors import InputError
from autopar.runtime.padding import padded, require_ignored
from autopar.tracer import trace
from tests.planned import traced
from tests.training import Tied, batch


class Head(Tied):
    """`loss` of the logits, the labels and the tokens."""

    def __init__(self, loss: Any, mixed: bool = False) -> None:
        super().__init__()
        self.loss = loss
        self.mix = nn.BatchNorm1d(8) if mixed else nn.Identity()

    def forward(self, tokens: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.mix(self.embed(tokens)))
        return {"loss": self.loss(logits.flatten(0, 1), labels, tokens)}


def entropy(logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
    return nn.functional.cross_entropy(logits, labels.flatten(), **options)


def refusal(model: nn.Module, ignore: int = -100) -> str:
    try:
        require_ignored(trace(model, (), batch()), ("labels",), ignore)
    except InputError as error:
        return str(error)
    return ""


def test_losses_that_ignore_labels() -> None:
    for name in ("gpt2", "llama", "bert", "vit"):
        require_ignored(traced(name).program, ("labels",), -100)
    assert refusal(Tied()) == ""
    assert refusal(Head(lambda o, y, _: entropy(o, y, ignore_index=0, reduction="sum")), ignore=0) == ""


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Head(lambda o, y, _: o.square().mean()), r"the loss ends in .*aten.mean.*cannot ignore"),
        (Head(lambda o, y, _: entropy(o, y) + o.mean()), r"the loss ends in .*aten.add"),
        (Head(lambda o, y, _: entropy(o, y, ignore_index=0)), r"ignores labels of 0, and padding gets -100: pass ignore=0"),
        (Head(lambda o, y, t: entropy(o, t)), r"targets of the loss come from input tokens, not from labels"),
        (Head(lambda o, y, _: entropy(o, y * 2)), r"targets of the loss come from .*aten.mul"),
        (Head(lambda o, y, _: entropy(o, y), mixed=True), r"batch_norm.* mixes the rows"),
    ],
    ids=["mean", "sum of two", "another number", "tokens", "computed", "batch norm"],
)
def test_losses_that_do_not(model: nn.Module, said: str) -> None:
    with pytest.raises(InputError, match=said):
        require_ignored(trace(model, (), batch()), ("labels",), -100)


def test_padded_repeats_from_the_first() -> None:
    assert torch.equal(padded(3, 8), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]))
    assert torch.equal(padded(8, 8), torch.arange(8))
