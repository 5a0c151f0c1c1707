"""Real processes over gloo: an ordinary training loop on the parallel module equals the serial one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

import autopar
from autopar.codegen.all_ranks import Trajectory
from autopar.codegen.emit import emit
from autopar.codegen.module import ParallelModule
from autopar.errors import BudgetError, InputError, PlanError
from autopar.ir.mesh import MeshSpec
from autopar.ir.plan import Plan
from autopar.ir.run import zip_inputs
from autopar.ir.widen import widened
from autopar.tracer import trace
from autopar.verification import EPS, LEARNING_RATE, TOLERANCE, compare, run_serial
from tests.models import gpt2
from tests.planned import planned, tightest
from tests.processes import run_processes

STEPS = 3


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [pytest.param("2", marks=pytest.mark.exhaustive), "2x2"])
def test_training_on_processes_equals_serial(mesh: str, tmp_path: Path) -> None:
    plan, _, _ = tightest("gpt2", mesh, torch.float64)
    plan.save(tmp_path / "plan.json")
    run_processes(MeshSpec.of(mesh).devices, train_both, str(tmp_path / "plan.json"))


def train_both(rank: int, path: str) -> None:
    """Other random weights on each rank: those of rank 0 must win."""
    torch.manual_seed(rank)
    parallel = trained_as_serial(*gpt2(dtype=torch.float64), Plan.load(path))

    clipped = torch.nn.utils.clip_grad_norm_(parallel.parameters(), 0.5)
    norm = clipped.full_tensor() if isinstance(clipped, DTensor) else clipped
    again = torch.stack([g.square().sum() for g in whole_tensors({n: p.grad for n, p in parallel.named_parameters()}).values()])
    assert norm > 0.5
    torch.testing.assert_close(again.sum().sqrt(), torch.tensor(0.5, dtype=torch.float64), rtol=1e-5, atol=0)


def trained_as_serial(model: nn.Module, kwargs: dict[str, torch.Tensor], plan: Plan) -> ParallelModule:
    """The model after an ordinary loop, in float64 throughout, which must have gone as the serial one does."""
    mesh = init_device_mesh("cpu", plan.mesh.sizes, mesh_dim_names=plan.mesh.names)
    program = widened(trace(model, (), kwargs))
    parallel = ParallelModule(emit(program, plan), model, mesh)
    assert all(isinstance(p, DTensor) for p in parallel.parameters())
    buffers = dict(model.named_buffers())  # also those that no checkpoint has
    state = whole_tensors({**buffers, **parallel.state_dict()})
    serial = run_serial(program, {name: state[name] for name in program.state}, dict(zip_inputs(program, (), kwargs)), STEPS)

    optimizer = torch.optim.AdamW(parallel.parameters(), lr=LEARNING_RATE, eps=EPS)
    losses, gradients = [], {}
    for step in range(STEPS):
        loss = parallel(**kwargs).loss
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            gradients = whole_tensors({n: p.grad for n, p in parallel.named_parameters() if p.grad is not None})
        optimizer.step()
        losses.append(loss.item())
    weights = whole_tensors({**buffers, **parallel.state_dict()})
    ours = Trajectory(losses=losses, outputs=serial.outputs, gradients=gradients, weights=weights)
    assert set(parallel.state_dict()) == set(model.state_dict())
    worst = compare(ours, serial, program)[0]
    assert worst.relative_error <= TOLERANCE, worst
    return parallel


def whole_tensors(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone() for name, t in tensors.items()}


@pytest.mark.slow
def test_what_users_get_wrong_is_said_on_every_rank(tmp_path: Path) -> None:
    plan, _, _ = planned("gpt2", "2")
    plan.save(tmp_path / "plan.json")
    run_processes(2, misuse, str(tmp_path / "plan.json"))


def misuse(rank: int, path: str) -> None:
    plan = Plan.load(path)
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("gpu",))
    model, kwargs = gpt2()
    parallel = autopar.compile(model, mesh, kwargs=kwargs, plan=plan, replan=False)
    with pytest.raises(InputError, match=r"input_ids is int64\[8, 16\] in the plan and int64\[3, 16\]"):
        parallel(**{name: tensor[:3] for name, tensor in kwargs.items()})
    loss = parallel(**kwargs).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="retain_graph"):
        loss.backward()
    with torch.no_grad():
        assert not parallel(**kwargs).loss.requires_grad
    on_meta, _ = gpt2(device="meta")
    without_values = autopar.compile(on_meta, mesh, kwargs=kwargs, plan=plan)
    with pytest.raises(InputError, match=r"wte.weight and \d+ more of the model have no values: they were on the meta device"):
        without_values(**kwargs)
    named = init_device_mesh("cpu", (2,), mesh_dim_names=("other",))
    with pytest.raises(PlanError, match="other"):
        autopar.compile(model, named, kwargs=kwargs, plan=plan)
    waiting = autopar.compile(model, mesh, hardware="cpu", memory="1GiB")
    with pytest.raises(InputError, match="before the first batch"):
        torch.optim.SGD(waiting.parameters(), lr=0.1)
    planned_by_rank_0 = waiting(**kwargs).loss
    torch.testing.assert_close(planned_by_rank_0, parallel(**kwargs).loss)
    assert set(waiting.state_dict()) == set(parallel.state_dict())
    with pytest.raises(BudgetError, match="smallest budget"):
        autopar.compile(model, mesh, kwargs=kwargs, memory=1, time_limit_s=5)
    if rank == 0:
        assert "gather" in parallel.forward_graph.transformer_h.code or "copy" in parallel.forward_graph.transformer_h.code
