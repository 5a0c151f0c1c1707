"""Real processes over gloo: an ordinary training loop on the parallel module equals the serial one."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

import autopar
from autopar.errors import BudgetError, InputError, PlanError
from autopar.ir.mesh import MeshSpec
from autopar.ir.plan import Plan
from tests.models import gpt2
from tests.planned import planned, tightest
from tests.processes import run_processes

STEPS = 3


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["2", "2x2"])
def test_training_on_processes_equals_serial(mesh: str, tmp_path: Path) -> None:
    memory = int(tightest("gpt2", mesh, torch.float64) * 1.2)
    plan, _, _ = planned("gpt2", mesh, memory, torch.float64)
    plan.save(tmp_path / "plan.json")
    run_processes(MeshSpec.of(mesh).devices, train_both, str(tmp_path / "plan.json"))


def train_both(rank: int, path: str) -> None:
    """Other random weights on each rank: those of rank 0 must win. Clipping, AdamW, tied weights, state_dict."""
    plan = Plan.load(path)
    mesh = init_device_mesh("cpu", plan.mesh.sizes, mesh_dim_names=plan.mesh.names)
    torch.manual_seed(rank)
    model, kwargs = gpt2(dtype=torch.float64)
    serial = copy.deepcopy(model)
    for tensor in serial.state_dict().values():
        dist.broadcast(tensor, src=0)
    parallel = autopar.compile(model, mesh, kwargs=kwargs, plan=plan)
    assert all(isinstance(p, DTensor) for p in parallel.parameters())
    ours, theirs = (torch.optim.AdamW(m.parameters(), lr=1e-3) for m in (parallel, serial))
    for _ in range(STEPS):
        loss, expected = parallel(**kwargs).loss, serial(**kwargs).loss
        for value, optimizer, module in ((loss, ours, parallel), (expected, theirs, serial)):
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 0.5)
            optimizer.step()
        # Hugging Face casts logits to float32 before the loss
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    state = parallel.state_dict()
    assert set(state) == set(serial.state_dict())
    for name, tensor in serial.state_dict().items():
        ours_whole = state[name].full_tensor() if isinstance(state[name], DTensor) else state[name]
        torch.testing.assert_close(ours_whole, tensor, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_what_users_get_wrong_is_said_on_every_rank(tmp_path: Path) -> None:
    plan, _, _ = planned("gpt2", "2")
    plan.save(tmp_path / "plan.json")
    run_processes(2, misuse, str(tmp_path / "plan.json"))


def misuse(rank: int, path: str) -> None:
    plan = Plan.load(path)
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("gpu",))
    model, kwargs = gpt2()
    parallel = autopar.compile(model, mesh, kwargs=kwargs, plan=plan)
    with pytest.raises(InputError, match=r"input_ids is int64\[3, 16\], the plan is for int64\[8, 16\]"):
        parallel(**{name: tensor[:3] for name, tensor in kwargs.items()})
    loss = parallel(**kwargs).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="retain_graph"):
        loss.backward()
    with torch.no_grad():
        assert not parallel(**kwargs).loss.requires_grad
    on_meta, _ = gpt2(device="meta")
    with pytest.raises(InputError, match="on the meta device"):
        autopar.compile(on_meta, mesh, kwargs=kwargs, plan=plan)
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
