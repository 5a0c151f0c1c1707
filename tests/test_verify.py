"""Every rank of a mesh in one process equals the serial model, whatever the plan: the main numerical proof."""

from __future__ import annotations

import pytest
import torch

import autopar
from tests.planned import planned, tightest, traced

MODELS = ("gpt2", "llama", "bert", "vit")
MESHES = ("2", "4", "2x2", "2x4", "4x2")


@pytest.mark.slow
@pytest.mark.parametrize("budget", ["loose", "tightest"])
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", MODELS)
def test_all_ranks_equal_the_serial_run(name: str, mesh: str, budget: str) -> None:
    """Loss of 3 steps, outputs, every gradient and the weights after 3 AdamW steps, in float64."""
    case = traced(name)
    memory = None if budget == "loose" else tightest(name, mesh)
    plan, _, counted = planned(name, mesh, memory)
    assert any(c.count for c in plan.figures.collectives), "a plan that communicates nothing proves nothing"
    if memory is not None:
        assert counted.peak_bytes <= memory
    report = autopar.verify(case.model, mesh, kwargs=case.kwargs, plan=plan)
    assert report.ok, report.tensors[:3]
    assert {t.kind for t in report.tensors} == {"loss", "output", "gradient", "weight", "replicas"}


def test_verify_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Emission that forgets the gradient's all-reduce in I -> R gives other gradients."""
    from autopar.ops import collectives

    case = traced("gpt2")
    plan, _, _ = planned("gpt2", "2")
    assert any("copy" in str(n.target) for r in planned("gpt2", "2")[1].regions.values() for n in r.local.graph.nodes)
    monkeypatch.setitem(collectives.FUNCTIONS, "copy", forgetful_copy)
    report = autopar.verify(case.model, "2", kwargs=case.kwargs, plan=plan)
    assert not report.ok
    assert any(t.kind == "gradient" and t.relative_error > 1e-6 for t in report.tensors)


def forgetful_copy(x: torch.Tensor, axis: str, size: int) -> torch.Tensor:
    return x.view_as(x)
