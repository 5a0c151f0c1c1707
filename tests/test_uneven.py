"""Vocabularies that the mesh does not divide, cut all the same: all ranks in one process, against the serial run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

import autopar
from autopar.ir.constraints import Constraints
from autopar.ir.mesh import MeshSpec
from autopar.ir.plan import Plan
from tests.hardware_toy import toy_hardware
from tests.uneven import BERT_CUT, CUT, VOCAB, bert, gpt2, tokens

SEARCH: dict[str, Any] = {"hardware": toy_hardware(), "gap": 0.02, "time_limit_s": 8.0}


def uneven(plan: Plan) -> set[str]:
    """Parameters and values that lie in pieces of different sizes."""
    shapes = {name: state.shape for name, state in plan.state.items()}
    resting = {name for name, state in plan.state.items() if not state.placement.divides(shapes[name], plan.mesh.sizes)}
    axes = plan.mesh.sizes
    logits = {n for n, p in plan.boundaries.items() if 2 in p.states and VOCAB % axes[p.states.index(2)]}
    return resting | logits


@pytest.mark.parametrize("mesh", ["2", pytest.param("4", marks=pytest.mark.slow), "node=2,gpu=2", "node=2,gpu=3"])
def test_tied_embeddings(mesh: str) -> None:
    """Losses, logits, gradients and weights after three AdamW steps, weight decay included."""
    report = autopar.verify(gpt2(), mesh, kwargs=tokens(), constraints=CUT, **SEARCH)
    assert report.ok, report
    assert report.max_relative_error < 1e-9
    assert "transformer.wte.weight" in uneven(report.plan)
    loss = next(u for region in report.plan.regions.values() for u in region.units.values() if u.kind == "loss")
    assert loss.roles[-1] == "tensor"


@pytest.mark.parametrize(
    ("model", "pins", "names"), [(bert, BERT_CUT, {"bert.embeddings.word_embeddings.weight", "cls.predictions.bias"})]
)
def test_a_head_with_bias(model: Callable[[], nn.Module], pins: Constraints, names: set[str]) -> None:
    report = autopar.verify(model(), "2", kwargs=tokens(), constraints=pins, **SEARCH)
    assert report.max_relative_error < 1e-9, report
    assert uneven(report.plan) & names


def test_padding_has_a_price() -> None:
    """Bytes at rest are those of the padded piece: 25 rows on each of 4 devices, not 97 / 4."""
    plan = autopar.plan(gpt2(), MeshSpec.of("4"), kwargs=tokens(), constraints=CUT, **SEARCH)
    wte = plan.state["transformer.wte.weight"]
    assert wte.placement.local_shape(wte.shape, plan.mesh.sizes) == (25, 16)
    gathered = [c for c in plan.figures.collectives if c.kind in ("all_gather", "reduce_scatter")]
    assert gathered is not None
