"""Gradients of micro-batches that wait for the last one: equal to the serial sum, and nothing is sent for them before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

import autopar
from autopar.codegen.accumulate import GradientSync, add_up
from autopar.codegen.backend import Runs
from autopar.codegen.emit import emit
from autopar.codegen.executor import Executor, Pass, run_graph
from autopar.codegen.module import ParallelModule
from autopar.codegen.shards import coordinate_of, piece
from autopar.codegen.shards import whole as put_together
from autopar.ir.constraints import Constraints
from autopar.ir.conversion import Conversion
from autopar.ir.local_ranks import local_ranks
from autopar.ir.placement import Placement
from autopar.ir.plan import Plan
from autopar.ir.program import Program
from autopar.ir.run import zip_inputs
from autopar.torch_private import by_rank, coordinates, rank_map
from autopar.tracer import trace
from tests.processes import run_processes
from tests.sent import Sent
from tests.training import DDP, FREE, batch, plan_for, tied, whole

EXACT = {"rtol": 0.0, "atol": 1e-9}
PLANS = {"ddp": DDP, "free": FREE}


@pytest.mark.slow
def test_micro_batches_reduce_once_on_processes(tmp_path: Path) -> None:
    for name, constraints in PLANS.items():
        plan_for(tied(), batch(), constraints=constraints).save(tmp_path / f"{name}.json")
    run_processes(2, accumulate, str(tmp_path))


def accumulate(rank: int, folder: str) -> None:
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("gpu",))
    for name in PLANS:
        plan, model = Plan.load(f"{folder}/{name}.json"), tied()
        parallel = autopar.compile(model, mesh, kwargs=batch(), plan=plan)
        micro_batches(name, parallel, model, plan)
        if name == "ddp":
            switched_by_hand(parallel, model)
            forgotten(parallel, model)
        failed(parallel, model)


def micro_batches(name: str, parallel: ParallelModule, model: nn.Module, plan: Plan) -> None:
    once = sent_by_backward(parallel, batch(9))
    assert once == planned_backward(plan)
    parallel.zero_grad()
    for step in range(3):
        with parallel.no_sync():
            while_off = sent_by_backward(parallel, batch(step))
        assert while_off == once - reductions(plan, parallel.program)
        held = sum(s.numel() * s.element_size() for s in waiting(parallel))
        assert held == parallel.accumulation_bytes
    if name == "ddp":
        assert not while_off
        assert parallel.accumulation_bytes == sum(p.numel() * 8 for p in model.parameters()) + model.embed.weight.numel() * 8  # type: ignore[operator,union-attr]
        assert all(p.grad is None for p in parallel.parameters())
    assert sent_by_backward(parallel, batch(3)) == once, "the last micro-batch sends as much as any"
    assert not waiting(parallel)
    assert_gradients(parallel, model, range(4))
    assert sent_by_backward(parallel, batch(4)) == once
    assert_gradients(parallel, model, range(5))


def switched_by_hand(parallel: ParallelModule, model: nn.Module) -> None:
    """As with FSDP2: the flag counts when backward runs."""
    parallel.zero_grad()
    parallel.set_requires_gradient_sync(False)
    loss = parallel(**batch(0))["loss"]
    parallel(**batch(1))["loss"].backward()
    parallel.set_requires_gradient_sync(True)
    loss.backward()
    assert_gradients(parallel, model, range(2))


def forgotten(parallel: ParallelModule, model: nn.Module) -> None:
    """What waits is a gradient: `zero_grad` of the module drops it."""
    with parallel.no_sync():
        parallel(**batch(7))["loss"].backward()
    parallel.zero_grad()
    parallel(**batch(0))["loss"].backward()
    assert_gradients(parallel, model, range(1))


def failed(parallel: ParallelModule, model: nn.Module) -> None:
    """A backward that fails in the middle leaves nothing behind: no part of a sum, and nothing that is still on its way."""
    executor = parallel.variants[0].executor
    unwaited = work_registry_size()

    def fail(i: int, phase: Pass, graph: Runs, boxed: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        if i == 0:
            raise ZeroDivisionError
        return run_graph(i, phase, graph, boxed)

    for enabled in (True, False):
        parallel.zero_grad()
        parallel.set_requires_gradient_sync(False)
        if not enabled:
            parallel(**batch(7))["loss"].backward()
        parallel.set_requires_gradient_sync(enabled)
        loss = parallel(**batch(7))["loss"]
        executor.run_graph = fail
        with pytest.raises(ZeroDivisionError):
            loss.backward()
        executor.run_graph = run_graph
        parallel.set_requires_gradient_sync(True)
        assert not waiting(parallel)
        parallel(**batch(0))["loss"].backward()
        assert_gradients(parallel, model, range(1))
        assert work_registry_size() == unwaited == 0


def work_registry_size() -> int:
    """How many functional collectives nobody has waited for."""
    return int(torch._C._distributed_c10d._get_work_registry_size())  # type: ignore[attr-defined]


def waiting(parallel: ParallelModule) -> list[torch.Tensor]:
    return [s for u in parallel._gradient_sync.unreduced.values() for sums in u.sums.values() for s in sums]


def assert_gradients(parallel: nn.Module, model: nn.Module, steps: range) -> None:
    model.zero_grad()
    for step in steps:
        model(**batch(step))["loss"].backward()
    for name, theirs in model.named_parameters():
        ours = parallel.get_parameter(name).grad
        assert ours is not None
        assert theirs.grad is not None
        torch.testing.assert_close(whole(ours), theirs.grad, **EXACT, msg=lambda m, n=name: f"{n}: {m}")


def test_sums_on_two_axes_and_of_another_program_are_reduced() -> None:
    """All ranks in one process. What another executor (of another batch shape, say) left waiting is reduced as well."""
    plan = plan_for(tied(), batch(), mesh="2x2", constraints=Constraints(pins=("**: batch=node", "**: zero3=node")))
    program = trace(tied(), (), batch())
    emitted, sizes = emit(program, plan), plan.mesh.sizes
    state = {name: tensor.detach() for name, tensor in tied().state_dict().items()}

    trained = {name for name, s in program.state.items() if s.kind == "parameter"}
    batches = [dict(zip_inputs(program, (), batch(step))) for step in range(4)]

    def scatter(tensor: torch.Tensor, placement: Placement) -> torch.Tensor:
        return rank_map(lambda rank: piece(tensor, placement, coordinate_of(rank, sizes), sizes).clone())

    def together(tensor: torch.Tensor, name: str) -> torch.Tensor:
        return put_together(by_rank(tensor), plan.state[name].placement, sizes)

    with local_ranks(plan.mesh) as mesh:
        groups = {name: mesh.get_group(name).group_name for name in plan.mesh.names}
        executors = [Executor(emitted, groups, coordinates(mesh)) for _ in range(2)]
        local = {name: scatter(state[name], plan.state[name].placement) for name in program.state}

        def backward(sync: GradientSync, executor: Executor, step: int) -> dict[str, torch.Tensor]:
            values = {name: scatter(tensor, plan.inputs[name].placement) for name, tensor in batches[step].items()}
            tape = executor.forward(values, local)
            assert program.loss is not None
            return sync.backward(executor, tape, {program.loss: torch.ones_like(values[program.loss])}, local)[1]

        def apart(micro_batches: list[int]) -> dict[str, float]:
            """How far sums over the executors of these micro-batches, the last of which reduces, are from plain ones."""
            waits, plain = GradientSync(), GradientSync()
            wanted: dict[str, torch.Tensor] = {}
            for step, executor in enumerate(micro_batches):
                waits.enabled = step == len(micro_batches) - 1
                found = backward(waits, executors[executor], step)
                assert waits.enabled or found.keys() < trained
                add_up(wanted, backward(plain, executors[0], step))
            assert not plain.unreduced
            assert set(found) == set(wanted) == trained
            return {n: float((together(found[n], n) - together(g, n)).abs().max()) for n, g in wanted.items()}

        differences = [apart(micro_batches) for micro_batches in ([0, 1, 0, 0], [1, 0])]
    assert all(max(found.values()) < EXACT["atol"] for found in differences), differences


def sent_by_backward(parallel: ParallelModule, kwargs: dict[str, Any]) -> Counter[str]:
    """How many tensors one backward reduces, gathers or exchanges, by kind."""
    loss = parallel(**kwargs)["loss"]
    with Sent(parallel._mesh) as seen:
        loss.backward()
    found: Counter[str] = Counter()
    for (kind, _, _), count in seen.counts.items():
        found[kind] += count
    return found


def planned_backward(plan: Plan) -> Counter[str]:
    return Counter({c.kind: c.count for c in plan.figures.collectives if c.phase == "backward"})


def reductions(plan: Plan, program: Program) -> Counter[str]:
    """Of gradients of parameters, from the plan alone: the duals of conversions of state."""
    found: Counter[str] = Counter()
    for call in program.calls:
        region = program.regions[call.region]
        for made in plan.regions[call.region].converted:
            dual = Conversion(made.before, made.after).kind.backward
            if made.tensor in region.state and dual is not None and region.nodes[made.tensor].meta["needs_grad"]:
                found[dual] += 1
    return found
