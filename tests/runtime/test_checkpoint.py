"""Checkpoints: saved under one plan and mesh, loaded under another, into the plain model, and back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import state_dict as dsd
from torch.distributed.tensor import DTensor

from autopar import Checkpoints
from autopar.errors import CheckpointError, InputError
from autopar.ir.plan import Plan
from tests.processes import run_processes
from tests.runtime.stateful import build, parallel_of, save_plan, train


def adamw(module: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(module.parameters(), lr=1e-2)


def same(ours: list[float], theirs: list[float]) -> None:
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-12, atol=0)


@pytest.mark.slow
def test_any_plan_and_the_plain_model_go_on_from_it(tmp_path: Path) -> None:
    first, second = save_plan("2x2", tmp_path / "2x2.json"), save_plan("4", tmp_path / "4.json")
    assert all(any(t.placement.sharded_dims() for t in plan.state.values()) for plan in (first, second))
    run_processes(4, go_on, str(tmp_path))


def go_on(rank: int, folder: str) -> None:
    here = Path(folder)
    plain = build()
    optimizer = adamw(plain)
    losses = train(plain, optimizer, range(6))

    parallel = parallel_of(build(), here / "2x2.json")
    assert list(parallel.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in parallel.named_parameters()] == [n for n, _ in plain.named_parameters()]
    checkpoints, ours = Checkpoints(here / "runs"), adamw(parallel)
    schedule = torch.optim.lr_scheduler.StepLR(ours, 100)
    same(train(parallel, ours, range(2)), losses[:2])
    parallel.randomness.load_state_dict({"seed": 3, "step": 5})
    checkpoints.save(2, parallel, ours, scheduler=schedule, extra={"sample": 16, "seen": [1, 2]})
    torch.manual_seed(rank)
    drawn = torch.rand(3)
    torch.manual_seed(rank)
    same(train(parallel, ours, range(2, 4)), losses[2:4])
    checkpoints.save(4, parallel, ours, wait=False)
    same(train(parallel, ours, range(4, 6)), losses[4:])
    checkpoints.wait()
    assert checkpoints.steps() == [2, 4]

    other = parallel_of(build(seed=1), here / "4.json")
    theirs = adamw(other)
    schedule = torch.optim.lr_scheduler.StepLR(theirs, 100)
    restored = checkpoints.load(other, theirs, scheduler=schedule, step=2)
    assert restored is not None
    assert other.randomness.state_dict() == {"seed": 3, "step": 5}
    assert (restored.step, restored.extra) == (2, {"sample": 16, "seen": [1, 2]})
    same(train(other, theirs, range(2, 6)), losses[2:])

    unsharded = build(seed=2)
    alone = adamw(unsharded)
    restored = checkpoints.load(unsharded, alone)
    assert restored is not None
    assert restored.step == 4
    torch.testing.assert_close(torch.rand(3), drawn)
    same(train(unsharded, alone, range(4, 6)), losses[4:])

    back = adamw(other)
    Checkpoints(here / "plain").save(6, plain, optimizer)
    Checkpoints(here / "plain").load(other, back)
    same(train(other, back, range(6, 8)), train(plain, optimizer, range(6, 8)))
    checkpoints.save(8, other, back)
    assert checkpoints.steps() == [4, 8]
    assert Plan.load(checkpoints.path(8) / "plan.json") == Plan.load(here / "4.json")

    with_torch_alone(other, back, here / "torch")
    with pytest.raises(InputError, match="may hold numbers, text"):
        checkpoints.save(9, other, back, extra=Path)
    what_is_wrong_is_said(checkpoints, unsharded)


def with_torch_alone(module: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> None:
    """torch's own functions, as its documentation shows them."""
    weights, state = dsd.get_state_dict(module, optimizer)
    before = {name: whole(tensor) for name, tensor in weights.items()}
    dcp.save({"model": weights, "optim": state}, checkpoint_id=path)
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    optimizer.state.clear()
    weights, state = dsd.get_state_dict(module, optimizer)
    dcp.load({"model": weights, "optim": state}, checkpoint_id=path, planner=dcp.DefaultLoadPlanner(allow_partial_load=True))
    dsd.set_state_dict(module, optimizer, model_state_dict=weights, optim_state_dict=state)
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(whole(tensor), before[name], rtol=0, atol=0)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def what_is_wrong_is_said(checkpoints: Checkpoints, module: nn.Module) -> None:
    with pytest.raises(CheckpointError, match=re.escape("no complete checkpoint of step 3") + r".*\[4, 8\]"):
        checkpoints.load(module, step=3)
    module.register_parameter("more", nn.Parameter(torch.zeros(2)))
    with pytest.raises(CheckpointError, match="it has no more"):
        checkpoints.load(module)


def test_a_save_that_was_cut_off_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process, without a process group."""
    module = build()
    optimizer, checkpoints = adamw(module), Checkpoints(tmp_path, keep=1)
    assert checkpoints.load(module, optimizer) is None
    checkpoints.save(0, module, optimizer)
    assert not optimizer.state
    losses = train(module, optimizer, range(2))
    checkpoints.load(module, optimizer)
    same(train(module, optimizer, range(2)), losses)
    checkpoints.save(2, module, optimizer)
    later = train(module, optimizer, range(2, 4))

    def fail(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(dcp.FileSystemWriter, "finish", fail)
        with pytest.raises((KeyboardInterrupt, dcp.CheckpointException)):
            checkpoints.save(4, module, optimizer)
    assert [path.name for path in tmp_path.glob(".step*")] == [".step-00000004.partial"]
    again = build(seed=1)
    optimizer = adamw(again)
    assert checkpoints.load(again, optimizer).step == 2
    same(train(again, optimizer, range(2, 4)), later)
    checkpoints.save(4, again, optimizer)
    checkpoints.save(4, again, optimizer, wait=False)
    checkpoints.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]


def test_a_damaged_or_other_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    module, checkpoints = nn.Linear(4, 4), Checkpoints(tmp_path)
    checkpoints.save(1, module)
    with pytest.raises(CheckpointError, match=r"weight is \[4, 4\] there, \[5, 4\] here"):
        checkpoints.load(nn.Linear(4, 5))
    with pytest.raises(CheckpointError, match="it has bias, which this one has not"):
        checkpoints.load(nn.Linear(4, 4, bias=False))
    with pytest.raises(CheckpointError, match="saved without an optimizer"):
        checkpoints.load(module, adamw(module))
    data = next(checkpoints.path(1).glob("*.distcp"))
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot be read, load an earlier one"):
        checkpoints.load(module)
    (checkpoints.path(1) / "run.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoints.load(module)
