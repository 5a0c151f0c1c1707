"""Experts of transformers that are a loop over those that were chosen, which no trace can follow: with a rule for their class,
as the error says and docs/rules.md shows, they are one op of a plan."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn import functional

import autopar
from autopar.errors import TraceError
from autopar.ir.opaque import CLASSES
from tests.hardware_toy import toy_hardware
from tests.models import Built
from tests.zoo_more import setup

EXPERTS = "op=SwitchTransformersExperts*"
SPARSE = "num_experts=4 expert_capacity=6 num_sparse_encoder_layers=1 num_sparse_decoder_layers=1"
PAGE = Path(__file__).parents[1] / "docs" / "rules.md"


def switch() -> Built:
    """Of a sparse layer in encoder and decoder each, with tokens that find no room with their expert."""
    return setup(f"SwitchTransformersForConditionalGeneration padded {SPARSE}")[1].build(batch=8, layers=1)


@pytest.fixture
def rule() -> Iterator[None]:
    """As it stands in the docs."""
    block = next(text for text in PAGE.read_text().split("```python\n") if "SwitchTransformersExperts" in text)
    before = dict(CLASSES)
    exec(block.partition("```")[0], {"autopar": autopar})
    assert CLASSES.keys() - before.keys()
    yield
    for kind in CLASSES.keys() - before.keys():
        del CLASSES[kind]


def test_without_a_rule_the_error_names_the_loop_and_the_way_out() -> None:
    model, batch = switch()
    with pytest.raises(TraceError, match=r"for expert_idx in expert_hit.*`@autopar\.op_rule` .*on the class of its module"):
        autopar.plan(model, "2", kwargs=batch)


@pytest.mark.usefixtures("rule")
def test_the_rule_is_what_the_experts_do() -> None:
    """Cut along tokens and along the hidden dim, gradients of each expert's weights included."""
    from transformers import SwitchTransformersConfig
    from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersExperts

    config = SwitchTransformersConfig(d_model=6, d_ff=12, num_experts=4, dropout_rate=0.0)
    chosen = functional.one_hot(torch.arange(12).remainder(3).unsqueeze(1), 4)
    proof = autopar.check_rule(SwitchTransformersExperts(config), torch.randn(12, 6), chosen, torch.rand(12, 1))
    assert "cut   t, h" in str(proof)


@pytest.mark.parametrize(
    ("mesh", "pins"),
    [
        pytest.param("2", [f"{EXPERTS}: tensor=gpu"], marks=pytest.mark.slow),
        pytest.param("2x2", [f"{EXPERTS}: batch=node", f"{EXPERTS}: tensor=gpu"], marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("rule")
def test_a_model_with_it_is_planned_and_equal_to_one_device(mesh: str, pins: list[str]) -> None:
    model, batch = switch()
    constraints = autopar.Constraints(pins=pins)
    report = autopar.verify(model, mesh, kwargs=batch, hardware=toy_hardware(), constraints=constraints)
    assert report.max_relative_error <= 1e-9, report.tensors[:3]
