"""Two real processes start, at once, and then two others: these trace nothing, and train the same, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh

import autopar
import autopar.api
import autopar.cache.start
from autopar.errors import RankError
from autopar.planning.planner import Planner
from tests.hardware_toy import toy_hardware
from tests.models import gpt2
from tests.processes import run_processes


@pytest.mark.slow
def test_a_second_start_trains_the_same_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPAR_CACHE_DIR", str(tmp_path / "cache"))
    run_processes(2, train, str(tmp_path / "first"), False)
    kinds = {path.suffix for path in (tmp_path / "cache").iterdir()}
    assert kinds == {".program", ".joint", ".plan"}, "an entry of each kind, and no temporary file"
    run_processes(2, train, str(tmp_path / "second"), True)
    for rank in range(2):
        first, second = (torch.load(tmp_path / f"{name}{rank}") for name in ("first", "second"))
        assert first["names"] == second["names"]
        for one, other in zip(first["tensors"], second["tensors"], strict=True):
            assert torch.equal(one, other)


def never(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("made again")


def train(rank: int, path: str, again: bool) -> None:
    """Two steps, dropout included, and a step of another batch size; `again`: nothing may be made."""
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("gpu",))
    torch.manual_seed(0)
    model, kwargs = gpt2(drop=0.1)
    with pytest.MonkeyPatch.context() as patch:
        if again:
            patch.setattr(autopar.api, "trace", never)
            patch.setattr(autopar.cache.start, "trace_joint", never)
            patch.setattr(Planner, "find", never)
        parallel = autopar.compile(model, mesh, kwargs=kwargs, hardware=toy_hardware(), gap=0.1)
        optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
        tensors = []
        for rows in (8, 8, 4):
            loss = parallel(**{name: tensor[:rows] for name, tensor in kwargs.items()}).loss
            optimizer.zero_grad()
            loss.backward()
            tensors += [loss.detach(), *(p.grad.full_tensor() for p in parallel.parameters() if p.grad is not None)]
            optimizer.step()
    torch.save({"names": list(parallel.state_dict()), "tensors": tensors}, f"{path}{rank}")
    if again:
        other, _ = gpt2(drop=0.1 if rank else 0.2)
        with pytest.raises(RankError, match="differs"):
            autopar.compile(other, mesh, kwargs=kwargs, hardware=toy_hardware(), gap=0.1)
