"""What users can get wrong, and what they are told: each is one readable error with what to do next."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import autopar
from autopar.errors import BudgetError, HardwareError, InputError, MeshError, PlanError, TraceError, UnshardableError
from autopar.ops.units import unknown_draws
from autopar.tracer import trace
from tests.models import gpt2, mlp
from tests.planned import planned, traced


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.linear(x).sum() > 0:
            return x.sum()
        return self.linear(x).sum()


class Odd(nn.Module):
    """No size but 7."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(7, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).square().mean()


def test_data_dependent_branch_names_the_line_and_the_usual_fixes() -> None:
    with pytest.raises(TraceError, match=r"test_errors\.py:\d+") as caught:
        autopar.plan(Branches(), "2", (torch.randn(4, 8),))
    assert "torch.cond" in str(caught.value)
    assert "torch.where" in str(caught.value)


def test_mesh_larger_than_any_dim() -> None:
    with pytest.raises(UnshardableError, match=r"axis gpu of mesh 2 has 2 devices, and no dim of .* \(sizes \[7\]\)"):
        autopar.plan(Odd(), "2", (torch.randn(7, 7),))
    model, kwargs = mlp(device="meta")
    with pytest.raises(UnshardableError, match="4096 devices"):
        autopar.plan(model, "4096", kwargs=kwargs)


def test_dims_that_do_not_divide_get_another_strategy() -> None:
    """A batch of 7 on 2 devices: the batch stays whole, something else is cut."""
    model = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8))

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(x).square().mean()

    report = autopar.verify(WithLoss(), "2", (torch.randn(7, 8),), hardware=toy())
    cut = {f for r in report.plan.regions.values() for u in r.units.values() for f in u.roles if f}
    assert cut
    assert "batch" not in cut
    assert report.ok


def toy() -> object:
    from tests.hardware_toy import toy_hardware

    return toy_hardware()


def test_budget_too_small_names_the_smallest_and_what_binds() -> None:
    with pytest.raises(BudgetError) as caught:
        planned("gpt2", "2", 1000)
    error = caught.value
    assert error.smallest_bytes > 1000
    assert len(error.binding) == 3
    assert all(name in str(error) for name, _ in error.binding)
    _, _, counted = planned("gpt2", "2", int(error.smallest_bytes * 1.1))
    assert counted.peak_bytes <= error.smallest_bytes * 1.1


def test_plan_of_another_model_mesh_or_version(tmp_path: Path) -> None:
    plan, _, _ = planned("gpt2", "2")
    case = traced("llama")
    with pytest.raises(PlanError, match="another program: state"):
        autopar.verify(case.model, "2", kwargs=case.kwargs, plan=plan)
    with pytest.raises(PlanError, match=r"the plan is for mesh 2 .* this one is 2x2"):
        autopar.verify(traced("gpt2").model, "2x2", kwargs=traced("gpt2").kwargs, plan=plan)
    model, kwargs = gpt2(batch=4, device="meta")
    with pytest.raises(PlanError, match=re.escape("input input_ids is int64[8, 16] in the plan and int64[4, 16] in the model")):
        autopar.verify(model, "2", kwargs=kwargs, plan=plan)
    path = tmp_path / "plan.json"
    plan.save(path)
    assert autopar.Plan.load(path) == plan
    path.write_text(path.read_text().replace('"version": 1', '"version": 999'))
    with pytest.raises(PlanError, match="version 999"):
        autopar.Plan.load(path)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"hardware": "abacus"}, HardwareError, "h100-sxm"),
        ({"memory": "lots"}, InputError, "GiB"),
        ({"optimizer": "magic"}, InputError, "adamw"),
    ],
)
def test_options(options: dict[str, str], error: type[Exception], message: str) -> None:
    model, kwargs = mlp(device="meta")
    with pytest.raises(error, match=message):
        autopar.plan(model, "2", kwargs=kwargs, **options)


@pytest.mark.parametrize("mesh", ["0", "2x", "two", "2x0", "a=2,a=2", ()])
def test_mesh_syntax(mesh: object) -> None:
    with pytest.raises(MeshError):
        autopar.MeshSpec.of(mesh)  # type: ignore[arg-type]


@torch.library.custom_op("autopar_tests::running", mutates_args=())
def running(x: torch.Tensor) -> torch.Tensor:
    """Squashed sums over all elements so far: no dim may be cut, and summands do not add up."""
    return x.flatten().cumsum(0).tanh().view(x.shape)


@running.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def running_backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
    (y,) = ctx.saved_tensors
    return (grad * (1 - y * y)).flatten().flip(0).cumsum(0).flip(0).view(grad.shape)


running.register_autograd(running_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(output))


def test_unknown_op_is_kept_whole_and_named_once(caplog: pytest.LogCaptureFixture) -> None:
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return running(self.linear(x)).square().mean()

    with caplog.at_level("WARNING", logger="autopar"):
        report = autopar.verify(Sums(), "2", (torch.randn(4, 8),), hardware=toy())
    assert report.ok
    assert sum("running" in r.message for r in caplog.records) == 1
    assert any("op_rule" in r.message for r in caplog.records)


def test_random_ops_that_nobody_can_draw_are_refused_by_name() -> None:
    class Leaky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)
            self.leak = nn.RReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.leak(self.linear(x)).square().mean()

    x = torch.randn(4, 8)
    with pytest.raises(InputError, match=r"drawn by aten\.rrelu\S* at leak .*model\.eval\(\)"):
        autopar.verify(Leaky(), "2", (x,))
    assert not unknown_draws(trace(Leaky().eval(), (x,)))


def test_a_returned_cache_says_how_to_turn_it_off() -> None:
    model, kwargs = gpt2()
    model.config.use_cache = True
    with pytest.raises(TraceError, match=r"use_cache = False"):
        autopar.plan(model, "2", kwargs=kwargs)


def test_an_op_that_torch_cannot_run_without_data_is_named() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            return self.linear(x).square().mean() + torch.histc(ids, bins=4, min=0, max=3).sum()

    with pytest.raises(TraceError, match=r"histc"):
        autopar.plan(Counts(), "2", (torch.randn(4, 8), torch.zeros(4, dtype=torch.int32)))
