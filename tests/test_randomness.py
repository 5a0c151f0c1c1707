"""Models with dropout: numbers as of a serial run, or the same on every mesh and under every plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn import functional

import autopar
from autopar.codegen.all_ranks import Trajectory, run_all_ranks
from autopar.codegen.emit import emit
from autopar.codegen.module import ParallelModule
from autopar.codegen.randomness import Randomness, shared_randomness
from autopar.errors import BudgetError
from autopar.ir.plan import Plan
from autopar.ir.run import run_program, zip_inputs
from autopar.ir.widen import widen, widened
from autopar.runtime.checkpoint import Checkpoints
from autopar.tracer import trace
from autopar.verification import initial_state, optimizer
from tests.hardware_toy import toy_hardware
from tests.models import bert, gpt2
from tests.processes import run_processes

MODELS = {"gpt2": gpt2, "bert": bert}
DROP = 0.2
CPU = torch.device("cpu")


QUICKLY: dict[str, Any] = {"gap": 0.05, "time_limit_s": 8.0}


def planned(name: str, mesh: str, memory: int | None = None, layers: int = 2) -> Plan:
    model, kwargs = MODELS[name](drop=DROP, layers=layers)
    return autopar.plan(model, mesh, kwargs=kwargs, memory=memory, hardware=toy_hardware(), **QUICKLY)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["2", "2x2"])
@pytest.mark.parametrize("name", MODELS)
def test_dropout_as_in_the_serial_run(name: str, mesh: str) -> None:
    """In attention, embeddings and residuals; losses, outputs, gradients and weights of three steps."""
    model, kwargs = MODELS[name](drop=DROP)
    report = autopar.verify(model, mesh, kwargs=kwargs, plan=planned(name, mesh))
    assert report.ok, report.tensors[:3]


class Draws(nn.Module):
    """One of each way in which models draw numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.dropout(self.linear(x), 0.3)
        y = y + torch.rand_like(y) * torch.randn_like(y) + torch.rand(8, 16) + torch.randn(8, 1)
        y = y * torch.bernoulli(torch.sigmoid(y)) + torch.bernoulli(y.detach(), 0.3) + torch.empty_like(y).bernoulli_(0.5)
        y = y + functional.dropout1d(y.unsqueeze(-1), 0.2).squeeze(-1) + functional.alpha_dropout(y, 0.1, True)
        y = y + torch.empty_like(y).uniform_(-1, 2) + torch.empty_like(y).normal_(1, 2) + functional.gumbel_softmax(y)
        y = y + torch.randint(0, 5, (8, 16)) + torch.randint_like(y.detach(), 2, 7) + torch.normal(0.0, 1.0, (8, 16))
        return y[torch.randperm(8)].square().mean()


def test_every_way_to_draw_as_in_the_serial_run() -> None:
    report = autopar.verify(Draws(), "2x2", (torch.randn(8, 8),), hardware=toy_hardware())
    assert report.ok, report.tensors[:3]


class Turned(nn.Module):
    """Draws in other orders, depending on how its input lies."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.dropout(x.transpose(2, 3) * self.scale, 0.3)


class Laid(nn.Module):
    """What is drawn lies in memory otherwise than its dims: a permuted tensor, channels last, an expanded one, a copy that a
    program does not make, and two blocks that are equal but for how their inputs lie."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.image = nn.Linear(8, 16), nn.Conv2d(4, 6, 3, padding=1)
        self.blocks = nn.ModuleList(Turned() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.dropout(self.first(x).transpose(1, 2), 0.3)  # [4, 16, 6]
        y = functional.dropout(y.transpose(1, 2).contiguous().view(4, 6, 4, 4), 0.2)
        y = y + functional.dropout(y.mean(0, keepdim=True).expand(4, 6, 4, 4), 0.4)
        y = self.blocks[1](self.blocks[0](y))
        y = functional.dropout(self.image(y[:, :4].to(memory_format=torch.channels_last)), 0.3)
        y = y + torch.rand_like(y) + torch.empty_like(y).normal_() + torch.bernoulli(y.detach(), 0.3)
        return y.square().mean()


def test_numbers_of_tensors_that_lie_otherwise_as_in_the_serial_run() -> None:
    """In one process and cut, against the program; and the program is the model that nobody traced, bit for bit."""
    model, x = Laid(), torch.randn(4, 6, 8)
    for mesh in ("1", "2x2"):
        report = autopar.verify(model, mesh, (x,), hardware=toy_hardware(), steps=2)
        assert report.ok, report.tensors[:3]
    program = trace(model, (x,), {})
    for dtype in (torch.float32, torch.float64):
        model, of_dtype = model.to(dtype), program if dtype == torch.float32 else widened(program)
        torch.manual_seed(3)
        expected = model(x.to(dtype))
        torch.manual_seed(3)
        assert torch.equal(run_program(of_dtype, dict(model.named_parameters()), (x.to(dtype),)), expected)


def run(name: str, plan: Plan, randomness: Randomness, steps: int = 2) -> Trajectory:
    model, kwargs = MODELS[name](drop=DROP)
    program = widened(trace(model, (), kwargs))
    inputs = {name: widen(tensor) for name, tensor in zip_inputs(program, (), kwargs)}
    return run_all_ranks(emit(program, plan), initial_state(model, program), inputs, steps, optimizer, randomness)


@pytest.mark.slow
def test_numbers_are_the_same_on_every_mesh_and_under_every_plan() -> None:
    """One device, two, four; with everything kept, or as much as possible redone in backward. Another seed: other numbers."""
    plans = [planned("gpt2", mesh) for mesh in ("1", "2", "2x2")]
    least = next(p for p in (tight(plans[1], share) for share in (0.95, 0.92)) if p is not None)
    model, kwargs = gpt2(drop=DROP)
    emitted = emit(trace(model, (), kwargs), least)
    assert any(u.sites and u.name in h.redone for r in emitted.regions.values() for u in r.local.units for h in r.classes)
    first, *others = (run("gpt2", plan, Randomness(CPU, 7)) for plan in (*plans, least))
    for other in others:
        torch.testing.assert_close(other.losses, first.losses, rtol=1e-10, atol=0)
        torch.testing.assert_close(other.gradients, first.gradients, rtol=1e-8, atol=1e-10)
        assert other.replica_difference == 0.0
    assert run("gpt2", plans[0], Randomness(CPU, 8)).losses[0] != first.losses[0]
    continued = Randomness(CPU)
    continued.load_state_dict({"seed": 7, "step": 1})
    assert run("gpt2", plans[0], continued, steps=1).losses[0] != first.losses[0]


def tight(plan: Plan, share: float) -> Plan | None:
    """One that needs a share of the memory, if there is one."""
    try:
        return planned("gpt2", str(plan.mesh), memory=int(plan.peak_bytes * share))
    except BudgetError:
        return None


@pytest.mark.slow
def test_training_with_dropout_on_processes(tmp_path: Path) -> None:
    planned("gpt2", "2", layers=1).save(tmp_path / "plan.json")
    run_processes(2, train, str(tmp_path / "plan.json"))


def train(rank: int, path: str) -> None:
    plan = Plan.load(path)
    mesh = init_device_mesh("cpu", plan.mesh.sizes, mesh_dim_names=plan.mesh.names)
    as_the_plain_model(rank, plan, mesh)
    reproducible(rank, plan, mesh, Path(path).parent / "checkpoints")
    accumulated(plan, mesh)


def as_the_plain_model(rank: int, plan: Plan, mesh: DeviceMesh) -> None:
    """An ordinary loop, and torch's own generator: losses are those of the model that nobody compiled."""
    model, kwargs = gpt2(drop=DROP, layers=1)
    parallel = autopar.compile(model, mesh, kwargs=kwargs, plan=plan, random="serial")
    torch.manual_seed(5 if rank == 0 else 6)  # rank 0's counts
    ours, left = losses(parallel, kwargs), torch.get_rng_state()
    torch.manual_seed(5)
    theirs = losses(model, kwargs)
    assert torch.equal(torch.get_rng_state(), left), "a serial run leaves the generator elsewhere"
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)


def losses(model: nn.Module, kwargs: dict[str, Any], steps: int = 3) -> list[float]:
    stepper = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    for _ in range(steps):
        loss = model(**kwargs).loss
        loss.backward()
        stepper.step()
        stepper.zero_grad()
        found.append(loss.item())
    return found


def reproducible(rank: int, plan: Plan, mesh: DeviceMesh, folder: Path) -> None:
    """From torch.manual_seed of rank 0, or a seed that is given; a run goes on from where a checkpoint was written."""

    def module(manual_seed: int, **options: Any) -> ParallelModule:
        model, kwargs = gpt2(drop=DROP, layers=1)
        torch.manual_seed(manual_seed + rank)
        return autopar.compile(model, mesh, kwargs=kwargs, plan=plan, **QUICKLY, **options)

    _, kwargs = gpt2(drop=DROP, layers=1)
    first = module(1)
    seed = first.randomness.seed
    found = losses(first, kwargs, steps=4)
    assert first.randomness.state_dict() == {"seed": seed, "step": 4}
    half = module(1)
    assert losses(half, kwargs, steps=2) == found[:2]
    Checkpoints(folder).save(2, half)
    later = module(9, seed=seed)
    assert losses(later, kwargs, steps=1) == found[:1]
    later.randomness.load_state_dict({"seed": 0, "step": 0})
    assert losses(later, kwargs, steps=1) != found[1:2]
    Checkpoints(folder).load(later)
    assert losses(later, kwargs, steps=2) == found[2:]
    torch.manual_seed(9 + rank)
    assert shared_randomness(mesh).seed != seed
    assert first.eval()(**kwargs).loss.item() == first(**kwargs).loss.item()
    assert first.randomness.step == 4


def accumulated(plan: Plan, mesh: DeviceMesh) -> None:
    """Gradients of two micro-batches, the first one's reduced with the second's: each with masks of its own."""
    model, kwargs = gpt2(drop=DROP, layers=1)
    parallel = autopar.compile(model, mesh, kwargs=kwargs, plan=plan, seed=3)
    found = []
    for sync in (True, False):
        parallel.randomness.load_state_dict({"seed": 3, "step": 0})
        parallel.set_requires_gradient_sync(sync)
        parallel(**kwargs).loss.backward()
        parallel.set_requires_gradient_sync(True)
        parallel(**kwargs).loss.backward()
        found.append([p.grad.full_tensor() for p in parallel.parameters()])  # type: ignore[union-attr]
        parallel.zero_grad()
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
