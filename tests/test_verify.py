"""Every rank of a mesh in one process equals the serial model, whatever the plan: the main numerical proof."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.autograd.function import once_differentiable

import autopar
from autopar.ops import collectives
from tests.hardware_toy import toy_hardware
from tests.models import MODELS as BUILD
from tests.planned import GAP, TIME_LIMIT_S, planned, tightest, traced
from tests.zoo import ZOO

MODELS = ("gpt2", "llama", "bert", "vit")
MESHES = ("2", "4", "2x2", "2x4", "4x2")
MORE = pytest.mark.exhaustive
CASES = [
    pytest.param(name, mesh, budget, marks=() if name == "gpt2" or mesh == "2x2" else MORE)
    for name in MODELS
    for mesh in MESHES
    for budget in ("loose", "tightest")
]
"""All models on one mesh, one model on all meshes; the rest are more of both."""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mesh", "budget"), CASES)
def test_all_ranks_equal_the_serial_run(name: str, mesh: str, budget: str) -> None:
    """Loss of 3 steps, outputs, every gradient and the weights after 3 AdamW steps, in float64."""
    case = traced(name)
    plan, _, counted = planned(name, mesh) if budget == "loose" else tightest(name, mesh)
    assert any(c.count for c in plan.figures.collectives), "a plan that communicates nothing proves nothing"
    assert plan.budget_bytes is None or counted.peak_bytes <= plan.budget_bytes
    report = autopar.verify(case.model, mesh, kwargs=case.kwargs, plan=plan)
    assert report.ok, report.tensors[:3]
    assert {t.kind for t in report.tensors} == {"loss", "output", "gradient", "weight", "replicas"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mesh", "sizes"),
    [
        ("gpt2", "2x2x2", {}),
        ("llama", "3x2", {"batch": 6, "seq": 12}),
        pytest.param("llama", "2x2x2", {}, marks=MORE),
        pytest.param("gpt2", "3", {"batch": 6, "seq": 12}, marks=MORE),
        pytest.param("llama", "3", {"batch": 6, "seq": 12}, marks=MORE),
        pytest.param("gpt2", "3x2", {"batch": 6, "seq": 12}, marks=MORE),
    ],
)
def test_three_axes_and_any_sizes(name: str, mesh: str, sizes: dict[str, int]) -> None:
    model, kwargs = BUILD[name](**sizes)
    loose = autopar.plan(model, mesh, kwargs=kwargs, hardware=toy_hardware(), gap=GAP, time_limit_s=TIME_LIMIT_S)
    assert {c.axis for c in loose.figures.collectives if c.count} == set(loose.mesh.names)
    report = autopar.verify(model, mesh, kwargs=kwargs, plan=loose)
    assert report.ok, report.tensors[:3]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "pins"),
    [
        ("2x2", ()),
        ("2", ("op=autopar.experts: tensor=gpu",)),
        ("2", ("op=autopar.experts: expert=gpu",)),
        ("2x2", ("op=autopar.experts: expert=*",)),
        pytest.param("2", (), marks=MORE),
        pytest.param("2x2", ("op=autopar.experts: tensor=gpu",), marks=MORE),
        pytest.param("4", ("op=autopar.experts: expert=gpu",), marks=MORE),
        pytest.param("2x4", ("op=autopar.experts: expert=gpu, tensor=node",), marks=MORE),
    ],
)
def test_mixtures_of_experts(mesh: str, pins: tuple[str, ...]) -> None:
    """Cut as is best, by experts or by their hidden dim, and by tokens and experts, so that tokens travel."""
    model, kwargs = ZOO["mixtral"].build()
    constraints = autopar.Constraints(pins=pins)
    hardware = toy_hardware()
    plan = autopar.plan(model, mesh, kwargs=kwargs, hardware=hardware, gap=GAP, time_limit_s=20, constraints=constraints)
    report = autopar.verify(model, mesh, kwargs=kwargs, plan=plan)
    assert report.ok, report.tensors[:3]


def gpt_oss() -> tuple[Any, dict[str, Any]]:
    """Two layers of four experts, all parameters random (it makes biases zero)."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "head_dim": 8, "num_attention_heads": 4, "num_key_value_heads": 2}
    mixture = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}
    config = transformers.GptOssConfig(**sizes, **mixture, vocab_size=64, pad_token_id=0, eos_token_id=1, use_cache=False)
    generator = torch.Generator().manual_seed(0)
    model = transformers.GptOssForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1, generator=generator)
    ids = torch.randint(0, 64, (8, 8), generator=generator)
    return model, {"input_ids": ids, "labels": ids}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "pin"),
    [("2x2", "expert=*"), pytest.param("2", "tensor=gpu", marks=MORE), pytest.param("2", "expert=gpu", marks=MORE)],
)
def test_experts_with_biases_and_interleaved_gates(mesh: str, pin: str) -> None:
    model, kwargs = gpt_oss()
    constraints = autopar.Constraints(pins=[f"op=autopar.experts: {pin}"])
    search: dict[str, Any] = {"hardware": toy_hardware(), "gap": GAP, "time_limit_s": 20}
    report = autopar.verify(model, mesh, kwargs=kwargs, constraints=constraints, **search)
    assert report.ok, report.tensors[:3]
    biases = [t for t in report.tensors if "experts" in t.name and t.name.endswith("bias") and t.kind == "gradient"]
    assert len(biases) == 4


def test_verify_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gathers that give back half of the gradient: the forward is right, the training is not."""
    case = traced("gpt2")
    plan, _, _ = planned("gpt2", "2")
    assert any(c.kind == "all_gather" for c in plan.figures.collectives)
    monkeypatch.setitem(collectives.FUNCTIONS, "gather", stingy_gather)
    report = autopar.verify(case.model, "2", kwargs=case.kwargs, plan=plan)
    assert not report.ok
    wrong = {t.kind for t in report.tensors if t.relative_error > 1e-6}
    assert {"gradient", "weight"} <= wrong
    assert "output" not in wrong


class Stingy(torch.autograd.Function):
    """As `collectives.Gather`, in the same memory, but the gradient is a mean over the axis, not a sum."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dim: int, axis: str, size: int) -> torch.Tensor:
        ctx.constants = dim, axis, size
        return collectives.all_gather(x, dim, axis, size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        dim, axis, size = ctx.constants
        pieces = grad.contiguous() if dim == 0 else collectives.split(grad, dim, size).flatten(0, 1)
        return collectives.wait(collectives.c10d.reduce_scatter_tensor(pieces, "avg", size, axis)), None, None, None


def stingy_gather(x: torch.Tensor, dim: int, axis: str, size: int) -> torch.Tensor:
    return collectives.run(Stingy, x, dim, axis, size)
