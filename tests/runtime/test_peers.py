"""A process that is killed is named by the others, at once."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import autopar
from autopar.errors import PeerError
from autopar.runtime.peers import Peer, own_address, peers
from tests.hardware_toy import toy_hardware
from tests.models import mlp
from tests.processes import fork_processes, run_processes

WORLD, TIMEOUT_S = 3, 60


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "moment"), [(1, "any"), (0, "optimizer")])
def test_a_killed_rank_is_named_by_all_others(victim: int, moment: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        context = fork_processes(WORLD, train, victim, moment, folder, join=False)
        for process in context.processes:
            process.join(TIMEOUT_S * 3)
        said = {rank: (Path(folder) / str(rank)).read_text() for rank in range(WORLD) if rank != victim}
    codes = [process.exitcode for process in context.processes]
    assert codes[victim] == -signal.SIGKILL
    assert codes.count(0) == WORLD - 1
    for text in said.values():
        after_s, _, message = text.partition(" ")
        assert float(after_s) < TIMEOUT_S / 2
        assert message.startswith(f"rank {victim} (process {context.processes[victim].pid} on "), message


def train(rank: int, victim: int, moment: str, folder: str) -> None:
    """An ordinary loop; survivors leave what they were told, and when, in a file."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD, timeout=timedelta(seconds=TIMEOUT_S)
    )
    mesh = init_device_mesh("cpu", (WORLD,), mesh_dim_names=("gpu",))
    model, batch = mlp(batch=WORLD * 4)
    parallel = autopar.compile(model, mesh, kwargs=batch, hardware=toy_hardware(), gap=0.05, time_limit_s=5)
    optimizer = torch.optim.AdamW(parallel.parameters())
    if rank == victim and moment == "any":
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGKILL)).start()
    began_s = time.monotonic()
    dies_in = 3 if rank == victim and moment == "optimizer" else None
    with pytest.raises(PeerError) as raised, parallel.guard():
        loop(parallel, optimizer, batch, dies_in)
    assert victim in raised.value.ranks
    (Path(folder) / str(rank)).write_text(f"{time.monotonic() - began_s} {raised.value}")
    os._exit(0)


def loop(
    parallel: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor], dies_in: int | None
) -> None:
    for step in range(1_000_000):
        parallel(**batch)["loss"].backward()
        if step == dies_in:
            os.kill(os.getpid(), signal.SIGKILL)
        torch.nn.utils.clip_grad_norm_(parallel.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.slow
def test_other_failures_stay_what_they_are() -> None:
    run_processes(2, fail_otherwise)


def fail_otherwise(rank: int) -> None:
    watched = peers()
    assert watched is peers()
    assert watched.gone(0) == []
    with pytest.raises(ValueError, match="my own"), watched.guard():
        raise ValueError("my own")
    with pytest.raises(RuntimeError, match="Timed out") as raised, watched.guard():
        raise RuntimeError("Timed out waiting 1000ms for recv operation to complete")
    assert "processes of all other ranks are alive" in raised.value.__notes__[0]
    dist.barrier()  # a rank that is through would be gone for the others


def test_a_machine_that_does_not_answer_is_not_called_gone() -> None:
    somewhere: dict[str, Any] = {"rank": 1, "pid": 2, "host": "node", "port": 1}
    assert Peer(address="127.0.0.1", **somewhere).is_gone()
    assert not Peer(address="no.such.host.invalid", **somewhere).is_gone()
    assert str(Peer(address="127.0.0.1", **somewhere)) == "rank 1 (process 2 on node)"


def test_the_address_is_one_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert own_address() == "127.0.0.1"
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    assert own_address() == "127.0.0.1"
