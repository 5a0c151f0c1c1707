"""`backend="inductor"` on two processes: the numbers of the eager backend, each graph compiled once, collectives as sent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

import autopar
from autopar.api import plan_program
from autopar.codegen.backend import Inductor
from autopar.codegen.module import ParallelModule
from autopar.errors import BackendError, RankError
from autopar.ir.mesh import MeshSpec
from autopar.ir.plan import Plan
from autopar.runtime import compiled
from autopar.tracer import trace
from tests.hardware_toy import toy_hardware
from tests.models import gpt2
from tests.planned import tightest
from tests.processes import run_processes
from tests.training import Block, batch, tied

LAYERS, STEPS = 4, 3
COLLECTIVE = re.compile(r"^\s+(?:\w+ = )?torch\.ops\._c10d_functional\.(\w+?)_?\.default\(", re.MULTILINE)


def deep() -> nn.Module:
    """Four equal layers, in float64."""
    model = tied()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model.blocks = nn.ModuleList(Block() for _ in range(LAYERS)).double()
    return model


def with_checkpoints() -> Plan:
    """A plan for a bit less memory than the fastest one needs: some layers run norms and activation functions again."""
    program = trace(deep(), (), batch())
    search: dict[str, Any] = {"hardware": toy_hardware(), "gap": 0.05, "time_limit_s": 4.0}
    most = plan_program(program, MeshSpec.of("2"), **search)[0].peak_bytes
    assert most is not None
    plan = plan_program(program, MeshSpec.of("2"), memory=int(0.9 * most), **search)[0]
    assert any(c.redone for c in plan.regions["blocks.*"].classes)
    return plan


@pytest.mark.slow
def test_training_is_that_of_the_eager_backend(tmp_path: Path) -> None:
    with_checkpoints().save(tmp_path / "plan.json")
    run_processes(2, train_deep, str(tmp_path / "plan.json"))


def train_deep(rank: int, path: str) -> None:
    plan = Plan.load(path)
    no_compiler_on_one_rank(rank, plan)
    parallel = train_both(deep, batch(), plan, micro_batches=1)
    build = parallel.variants[0].emitted.build
    assert isinstance(build, Inductor)
    one_compilation_per_graph(build, parallel)
    for made in build.compilations:
        emitted, got = (collectives_of(graph) for graph in (made.emitted, made.got.graph))
        assert emitted == got
        assert COLLECTIVE.findall(made.code) == emitted, made.name
    assert any("reduce_scatter_tensor" in collectives_of(made.got.graph) for made in build.compilations)


def no_compiler_on_one_rank(rank: int, plan: Plan) -> None:
    """Said there, and known on the other rank, which has one."""
    mesh = init_device_mesh("cpu", plan.mesh.sizes, mesh_dim_names=plan.mesh.names)
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            patch.setattr("autopar.codegen.backend.cpp_compiler", lambda: None)
        expected, text = (RankError, r"rank 1 failed.*no C\+\+ compiler") if rank == 0 else (BackendError, r"install g\+\+")
        with pytest.raises(expected, match=text):
            autopar.compile(deep(), mesh, kwargs=batch(), plan=plan, backend="inductor")


def train_both(
    make: Any, kwargs: Mapping[str, Tensor], plan: Plan, micro_batches: int, *, rtol: float = 1e-10, atol: float = 1e-9
) -> ParallelModule:
    """Losses and weights after some steps are those of eager; returns what Inductor ran."""
    mesh = init_device_mesh("cpu", plan.mesh.sizes, mesh_dim_names=plan.mesh.names)
    eager, inductor = (autopar.compile(make(), mesh, kwargs=kwargs, plan=plan, backend=b) for b in ("eager", "inductor"))
    expected, losses = train(eager, kwargs, micro_batches), train(inductor, kwargs, micro_batches)
    torch.testing.assert_close(losses, expected, rtol=rtol, atol=0)
    weights = dict(eager.named_parameters())
    for name, weight in inductor.named_parameters():
        torch.testing.assert_close(
            weight.to_local(), weights[name].to_local(), rtol=100 * rtol, atol=atol, msg=lambda m, n=name: n + m
        )
    return inductor


def train(parallel: ParallelModule, kwargs: Mapping[str, Tensor], micro_batches: int) -> list[float]:
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=1e-2)
    losses = []
    for _ in range(STEPS):
        with parallel.no_sync():
            for _ in range(micro_batches - 1):
                parallel(**kwargs)["loss"].backward()
        loss = parallel(**kwargs)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def one_compilation_per_graph(build: Inductor, parallel: ParallelModule) -> None:
    """A forward and a backward for each class of calls; one more where some calls of a class let their reductions fly, or start
    the gathers of the next."""
    executor = parallel.variants[0].executor
    graphs = {leg.graph for leg in (*executor.legs.forward, *executor.legs.backward)}
    assert len(build.compilations) == len(graphs) < 2 * len(executor.steps)


def collectives_of(graph: torch.fx.Graph) -> list[str]:
    """Kinds of collectives and waits, in order."""
    targets = [n.target for n in graph.nodes if getattr(n.target, "namespace", "") == "_c10d_functional"]
    return [target._opname.removesuffix("_") for target in targets]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_gpt2_with_checkpoints_trains_as_with_the_eager_backend(tmp_path: Path) -> None:
    tightest("gpt2", "2", torch.float64)[0].save(tmp_path / "plan.json")
    run_processes(2, train_gpt2, str(tmp_path / "plan.json"))


def train_gpt2(rank: int, path: str) -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return gpt2(dtype=torch.float64)[0]

    # transformers computes the loss in float32
    train_both(make, gpt2(dtype=torch.float64)[1], Plan.load(path), micro_batches=2, rtol=1e-6, atol=1e-5)


def test_a_rank_that_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    monkeypatch.setattr(compiled, "agree", said.append)
    with pytest.raises(ZeroDivisionError), compiled.together("work"):
        raise ZeroDivisionError("no")
    with compiled.together("work"):
        pass
    assert said == [{"failure": "ZeroDivisionError: no"}, {"about": "work"}]
