"""Mixed precision on real processes, against what torch's own makes of the same policy: FSDP2, and autocast on one device."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

import autopar
from tests.hardware_toy import toy_hardware
from tests.models import MODELS
from tests.planned import GAP, TIME_LIMIT_S
from tests.processes import run_processes
from tests.test_precision import BF16, FP32, ZERO3, Sum, halves

RATE, STEPS = 0.5, 3


@pytest.mark.slow
def test_policies_do_what_fsdp2_makes_of_them() -> None:
    run_processes(2, compare_policies)


def compare_policies(rank: int) -> None:
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("gpu",))
    for reduce in (FP32, BF16):
        gradients_are_added_up_alike(mesh, reduce)
    for name in ("gpt2", "llama"):
        training_is_alike(mesh, name)
    autocast_is_the_plain_one(mesh)


def compiled(model: nn.Module, mesh: DeviceMesh, args: tuple[Any, ...] = (), **options: Any) -> nn.Module:
    given: dict[str, Any] = {"hardware": toy_hardware(), "gap": GAP, "time_limit_s": TIME_LIMIT_S}
    return autopar.compile(model, mesh, args, **given | options)


def gradients_are_added_up_alike(mesh: DeviceMesh, reduce: torch.dtype) -> None:
    """256 + 1 is 257 in float32 and 256 in bfloat16. FSDP2 has the mean over ranks, half of that."""
    policy = MixedPrecisionPolicy(param_dtype=BF16, reduce_dtype=reduce)
    ours = compiled(Sum(), mesh, (halves(),), precision=policy, constraints=ZERO3)
    theirs = fully_shard(Sum(), mesh=mesh, mp_policy=policy)
    ours(halves()).backward()
    theirs(halves()[mesh.get_rank() : mesh.get_rank() + 1]).backward()
    found, expected = (gradient_of(model.weight) for model in (ours, theirs))
    assert found.dtype == expected.dtype == FP32
    assert torch.equal(found, 2 * expected), (reduce, found, expected)
    assert found[0].item() == (257 if reduce == FP32 else 256)


def gradient_of(parameter: Any) -> Tensor:
    assert isinstance(parameter.grad, DTensor)
    return parameter.grad.full_tensor()


def training_is_alike(mesh: DeviceMesh, name: str) -> None:
    """Losses, outputs' dtypes, and how far each weight has moved after a few steps: alike but for rounding in bfloat16."""
    torch.manual_seed(0)
    model, batch = MODELS[name]()
    policy = MixedPrecisionPolicy(param_dtype=BF16, reduce_dtype=FP32)
    ours = compiled(copy.deepcopy(model), mesh, kwargs=batch, precision=policy)
    theirs = fully_shard(copy.deepcopy(model), mesh=mesh, mp_policy=policy)
    half = {key: t.chunk(2)[mesh.get_rank()] for key, t in batch.items()}
    steppers = [torch.optim.SGD(m.parameters(), lr=RATE) for m in (ours, theirs)]
    for _ in range(STEPS):
        results = ours(**batch), theirs(**half)
        losses = [result.loss.detach().clone() for result in results]
        torch.distributed.all_reduce(losses[1])
        torch.testing.assert_close(losses[0], losses[1] / 2, rtol=5e-3, atol=0)
        assert results[0].logits.dtype == results[1].logits.dtype
        for result, stepper in zip(results, steppers, strict=True):
            stepper.zero_grad()
            result.loss.backward()
            stepper.step()
    initial, expected = dict(model.named_parameters()), dict(theirs.named_parameters())
    assert {p.dtype for p in ours.parameters()} == {FP32}
    for key, parameter in ours.named_parameters():
        there, here = whole(expected[key]) - initial[key].detach(), whole(parameter) - initial[key].detach()
        error = (here - there).norm() / there.norm().clamp(min=1e-3)
        assert error < 0.05, (name, key, error)


def whole(parameter: Any) -> Tensor:
    return parameter.detach().full_tensor()  # type: ignore[no-any-return]


def autocast_is_the_plain_one(mesh: DeviceMesh) -> None:
    torch.manual_seed(0)
    model, batch = MODELS["gpt2"]()
    with torch.autocast("cpu", dtype=BF16):
        ours = compiled(copy.deepcopy(model), mesh, kwargs=batch)
        results = ours(**batch), model(**batch)
    assert results[0].logits.dtype == results[1].logits.dtype == BF16
    torch.testing.assert_close(results[0].loss, results[1].loss, rtol=2e-3, atol=0)
    for result in results:
        result.loss.backward()
    expected = dict(model.named_parameters())
    for key, parameter in ours.named_parameters():
        gradient, there = gradient_of(parameter), expected[key].grad
        assert there is not None
        assert gradient.dtype == there.dtype == FP32
        assert (gradient - there).norm() / there.norm() < 0.02 or there.norm() < 1e-4, key
