"""A vocabulary of 97 cut over three real processes: what people do with a module does not show that pieces differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

import autopar
from autopar import Checkpoints
from autopar.api import plan_program
from autopar.codegen.initialize import run_initialization
from autopar.codegen.module import ParallelModule
from autopar.codegen.shards import in_its_room
from autopar.errors import InputError
from autopar.ir.constraints import Constraints
from autopar.ir.mesh import MeshSpec
from autopar.ir.plan import Plan
from autopar.tracer import trace
from tests.hardware_toy import toy_hardware
from tests.processes import run_processes
from tests.training import HIDDEN, whole
from tests.uneven import TIED_CUT, TIED_GATHERED, TIED_WHOLE, VOCAB, batch, tied

WTE = "embed.weight"
EXACT = {"rtol": 0.0, "atol": 1e-9}
RANKS = 3
ROWS = 33


@pytest.mark.slow
def test_uneven_pieces_do_not_show(tmp_path: Path) -> None:
    program = trace(tied(), (), batch())
    for name, pins in (("cut", TIED_CUT), ("gathered", TIED_GATHERED), ("whole", TIED_WHOLE)):
        search: dict[str, Any] = {"hardware": toy_hardware(), "gap": 0.02, "time_limit_s": 5.0, "constraints": pins}
        plan_program(program, MeshSpec.of(str(RANKS)), **search)[0].save(tmp_path / f"{name}.json")
    save_file(weights(tied(seed=5)), tmp_path / "model.safetensors")
    run_processes(RANKS, use, str(tmp_path))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


def use(rank: int, folder: str) -> None:
    here, mesh = Path(folder), init_device_mesh("cpu", (RANKS,), mesh_dim_names=("gpu",))
    plan = Plan.load(here / "cut.json")
    assert str(plan.state[WTE].placement) == "S(0)"
    parallel, plain = compiled(tied(), mesh, plan), tied()
    as_it_rests(parallel, plain, rank)
    forward_and_backward(parallel, plain)
    trained(parallel, plain)
    as_it_rests(parallel, plain, rank)
    accumulated(parallel, plain)
    without_labels(parallel, plain)
    saved_and_loaded(parallel, plain, compiled(tied(seed=1), mesh, Plan.load(here / "whole.json")), here)
    without_room(parallel, plain)
    gathered(compiled(tied(), mesh, Plan.load(here / "gathered.json")), tied(), rank)
    from_meta(mesh, plan, here)
    frozen(mesh)


def compiled(
    model: nn.Module, mesh: DeviceMesh, plan: Plan | None = None, constraints: Constraints = TIED_CUT
) -> ParallelModule:
    search: dict[str, Any] = (
        {"plan": plan} if plan else {"hardware": toy_hardware(), "constraints": constraints, "memory": None}
    )
    return autopar.compile(model, mesh, kwargs=batch(), **search)


def as_it_rests(parallel: ParallelModule, plain: nn.Module, rank: int) -> None:
    """True shapes everywhere; the pieces are those of torch's own uneven shards; a step needs no copy of them."""
    saved = parallel.state_dict()
    assert {n: t.shape for n, t in saved.items()} == {n: t.shape for n, t in plain.state_dict().items()}
    for name, tensor in saved.items():
        torch.testing.assert_close(whole(tensor), plain.state_dict()[name], **EXACT, msg=lambda m, n=name: f"{n}: {m}")
    table = parallel.get_parameter(WTE)
    assert isinstance(table, DTensor)
    local = table.to_local().detach()
    assert local.shape == (min(ROWS, VOCAB - rank * ROWS), HIDDEN)
    seen = parallel._state(parallel.variants[0])[WTE]
    assert seen.shape == (ROWS, HIDDEN)
    assert seen.data_ptr() == local.data_ptr()
    assert not seen[len(local) :].any(), "padding rests at zero"


def forward_and_backward(parallel: ParallelModule, plain: nn.Module) -> None:
    ours, theirs = (m(**batch(7)) for m in (parallel, plain))
    torch.testing.assert_close(ours["loss"], theirs["loss"], **EXACT)
    assert ours["logits"].shape == theirs["logits"].shape
    torch.testing.assert_close(whole(ours["logits"]), theirs["logits"].detach(), **EXACT)
    for m, loss in ((parallel, ours["loss"]), (plain, theirs["loss"])):
        m.zero_grad()
        loss.backward()
    norms = [whole(nn.utils.clip_grad_norm_(m.parameters(), 0.1, foreach=True)) for m in (parallel, plain)]
    torch.testing.assert_close(*norms, **EXACT)
    same_gradients(parallel, plain)


def same_gradients(parallel: nn.Module, plain: nn.Module) -> None:
    for name, parameter in plain.named_parameters():
        ours = parallel.get_parameter(name).grad
        assert ours is not None
        assert parameter.grad is not None
        torch.testing.assert_close(whole(ours), parameter.grad, **EXACT, msg=lambda m, n=name: f"{n}: {m}")


def optimizers(*models: nn.Module) -> list[torch.optim.Optimizer]:
    return [torch.optim.AdamW(m.parameters(), lr=1e-2, weight_decay=0.1, foreach=True) for m in models]


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> float:
    loss = model(**batch(number))["loss"]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss)


def trained(parallel: nn.Module, plain: nn.Module) -> None:
    ours, theirs = optimizers(parallel, plain)
    for number in range(3):
        assert abs(step(parallel, ours, number) - step(plain, theirs, number)) < 1e-9
    fused = [torch.optim.AdamW(m.parameters(), lr=1e-2, fused=True) for m in (parallel, plain)]
    assert abs(step(parallel, fused[0], 3) - step(plain, fused[1], 3)) < 1e-9


def accumulated(parallel: ParallelModule, plain: nn.Module) -> None:
    for m in (parallel, plain):
        m.zero_grad()
    with parallel.no_sync():
        parallel(**batch(1))["loss"].backward()
    parallel(**batch(2))["loss"].backward()
    for number in (1, 2):
        plain(**batch(number))["loss"].backward()
    same_gradients(parallel, plain)


def without_labels(parallel: ParallelModule, plain: nn.Module) -> None:
    """Another program, planned around the table as it rests; gradients come in through the logits."""
    given = {"tokens": batch()["tokens"], "labels": None}
    for m in (parallel, plain):
        m.zero_grad()
    ours, theirs = (m(**given)["logits"] for m in (parallel, plain))
    torch.testing.assert_close(whole(ours), theirs.detach(), **EXACT)
    for logits in (ours, theirs):
        logits.square().sum().backward()
    same_gradients(parallel, plain)


def saved_and_loaded(parallel: ParallelModule, plain: nn.Module, other: ParallelModule, here: Path) -> None:
    """Under the uneven plan, into one in which the table is whole, into the plain model, and back."""
    ours, theirs, plains = optimizers(parallel, other, plain)
    checkpoints = Checkpoints(here / "runs", keep=None)
    assert abs(step(parallel, ours, 4) - step(plain, plains, 4)) < 1e-9
    checkpoints.save(1, parallel, ours)
    assert checkpoints.load(other, theirs) is not None
    expected = [step(plain, plains, number) for number in (5, 6)]
    assert abs(step(other, theirs, 5) - expected[0]) < 1e-9
    again = tied(seed=2)
    (alone,) = optimizers(again)
    assert checkpoints.load(again, alone) is not None
    assert abs(step(again, alone, 5) - expected[0]) < 1e-9
    checkpoints.save(2, again, alone)
    assert checkpoints.load(parallel, ours) is not None
    assert abs(step(parallel, ours, 6) - expected[1]) < 1e-9
    torch.testing.assert_close(whole(parallel.get_parameter(WTE)), plain.get_parameter(WTE).detach(), **EXACT)


def without_room(parallel: ParallelModule, plain: nn.Module) -> None:
    """Someone puts tensors of their own in the place of the pieces: padded by a copy, and right all the same."""
    fresh = {name: tensor.clone() for name, tensor in parallel.state_dict().items()}
    parallel.load_state_dict(fresh, assign=True)
    torch.testing.assert_close(parallel(**batch(8))["loss"], plain(**batch(8))["loss"], **EXACT)
    flat = torch.full((ROWS * HIDDEN * 2,), torch.nan)
    piece = flat[: (ROWS - 1) * HIDDEN].view(ROWS - 1, HIDDEN).zero_()
    assert not in_its_room(piece, (ROWS, HIDDEN)).any(), "what lies behind a piece in other memory is not its padding"


def gathered(parallel: ParallelModule, plain: nn.Module, rank: int) -> None:
    """As in ZeRO-3: the table is whole while it is used, its gradient is reduced into uneven pieces."""
    kinds = {(c.kind, c.phase) for c in parallel.plan.figures.collectives}
    assert {("all_gather", "forward"), ("reduce_scatter", "backward")} <= kinds
    forward_and_backward(parallel, plain)
    trained(parallel, plain)
    accumulated(parallel, plain)
    as_it_rests(parallel, plain, rank)


def from_meta(mesh: DeviceMesh, plan: Plan, here: Path) -> None:
    """Initialized as the serial model is, or read from a file: rows behind the true ones stay zero."""
    parallel = compiled(tied(device="meta"), mesh, plan)
    with pytest.raises(InputError, match="have no values"):
        parallel(**batch())
    parallel.init_weights(seed=3)
    plain = tied()
    torch.manual_seed(3)
    run_initialization(plain)
    torch.testing.assert_close(whole(parallel.get_parameter(WTE)), plain.get_parameter(WTE).detach(), rtol=0, atol=0)
    parallel.load_safetensors(here)
    as_it_rests(parallel, tied(seed=5), mesh.get_rank())
    forward_and_backward(parallel, tied(seed=5))


def frozen(mesh: DeviceMesh) -> None:
    """A table that does not learn has no gradient; all else has that of the plain model."""
    models = [tied(), tied()]
    for model in models:
        model.get_parameter(WTE).requires_grad_(False)
    pins = tuple(pin for pin in TIED_CUT.pins if "factor=v" not in pin)  # partial sums are for what has a gradient
    parallel = compiled(models[0], mesh, constraints=Constraints(pins=pins))
    for m in (parallel, models[1]):
        m(**batch())["loss"].backward()
    assert parallel.get_parameter(WTE).grad is None
    for name, parameter in models[1].named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(whole(parallel.get_parameter(name).grad), parameter.grad, **EXACT)
