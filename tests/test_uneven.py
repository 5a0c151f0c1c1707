"""Vocabularies that the mesh does not divide, cut all the same: all ranks in one process, against the serial run.

`verify` also holds what the plan predicts (FLOPs, bytes of collectives, peak) against the graphs that run.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import autopar
from autopar.codegen import all_ranks
from autopar.ir.consistent import contradictions
from autopar.ir.placement import Placement
from autopar.ir.plan import Plan
from tests.hardware_toy import toy_hardware
from tests.uneven import BERT_CUT, CUT, VOCAB, bert, gpt2, tied, tokens

SEARCH: dict[str, Any] = {"hardware": toy_hardware(), "gap": 0.02, "time_limit_s": 8.0}
WTE = "transformer.wte.weight"


def roles_of(plan: Plan, kind: str) -> list[tuple[str | None, ...]]:
    """Of all units of a kind."""
    return [unit.roles for region in plan.regions.values() for unit in region.units.values() if unit.kind == kind]


def uneven(plan: Plan) -> set[str]:
    """Parameters that rest in pieces of different sizes."""
    return {name for name, s in plan.state.items() if not s.placement.divides(s.shape, plan.mesh.sizes)}


@pytest.mark.parametrize("mesh", ["2", pytest.param("4", marks=pytest.mark.slow), "node=2,gpu=2", "node=2,gpu=3"])
def test_tied_embeddings(mesh: str) -> None:
    """Losses, logits, gradients and weights after three AdamW steps, weight decay included."""
    report = autopar.verify(gpt2(), mesh, kwargs=tokens(), constraints=CUT, **SEARCH)
    assert report.max_relative_error < 1e-9, report
    assert WTE in uneven(report.plan)
    assert [roles[-1] for roles in roles_of(report.plan, "loss")] == ["tensor"]


def test_a_head_with_bias() -> None:
    report = autopar.verify(bert(), "2", kwargs=tokens(), constraints=BERT_CUT, **SEARCH)
    assert report.max_relative_error < 1e-9, report
    assert "cls.predictions.bias" in uneven(report.plan)


def test_the_search_cuts_a_vocabulary_where_that_pays() -> None:
    """One row of an odd number of tokens: nothing else of the head divides."""
    ids = torch.randint(VOCAB, (1, 7), generator=torch.Generator().manual_seed(0))
    report = autopar.verify(tied(), "2", kwargs={"tokens": ids, "labels": ids}, **SEARCH)
    assert report.max_relative_error < 1e-9, report
    assert roles_of(report.plan, "loss") == [("tensor",)]


def test_numbers_in_the_padding_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights whose padding is not zero at rest: the values are right, the report is not ok."""
    fill = all_ranks.with_padding

    def with_ones(piece: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        padded = torch.where(fill(torch.ones_like(piece), shape) == 0, 1, fill(piece, shape))
        return padded.to(piece.dtype)

    monkeypatch.setattr(all_ranks, "with_padding", with_ones)
    report = autopar.verify(gpt2(), "2", kwargs=tokens(), constraints=CUT, **SEARCH)
    wrong = {t.name for t in report.tensors if t.relative_error > 1e-9}
    assert wrong == {"copies on different devices"}


def test_what_must_not_be_uneven_is_named() -> None:
    plan = autopar.plan(gpt2(), "2", kwargs=tokens(), constraints=CUT, **SEARCH)
    assert not list(contradictions(plan))
    table, ids = plan.state[WTE], plan.inputs["input_ids"]
    turned = table.model_copy(update={"shape": (16, VOCAB), "placement": Placement((1,))})
    odd = ids.model_copy(update={"shape": (13, 8), "placement": Placement((0,))})
    damaged = plan.model_copy(
        update={
            "state": {**plan.state, WTE: turned},
            "inputs": {**plan.inputs, "input_ids": odd},
            "boundaries": {**plan.boundaries, "input_ids": odd.placement},
        }
    )
    assert dict(contradictions(damaged)) == {
        f"state.{WTE}.placement": "[S(1)] does not divide [16, 97]",
        "inputs.input_ids.placement": "[S(0)] does not divide [13, 8]",
    }
