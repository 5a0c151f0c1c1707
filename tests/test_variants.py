"""Other shapes and modes than those that were compiled for: planned when they come, around the parameters as they rest."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

import autopar
from autopar.errors import InputError
from tests.hardware_toy import toy_hardware
from tests.processes import run_processes


class Net(nn.Module):
    """In train mode it adds what it leaves out in eval mode; without `y` it returns no loss."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 32)
        self.noise = nn.Identity()
        self.second = nn.Linear(32, 16)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, y: Tensor | None = None, scale: float = 1.0) -> dict[str, Tensor]:
        hidden = torch.relu(self.first(x))
        if self.noise.training:
            hidden = hidden * 2
            self.calls += 1
        out = self.second(hidden) * scale
        return {"out": out} if y is None else {"loss": nn.functional.mse_loss(out, y), "out": out}


def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


def batch(rows: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return {name: torch.randn(rows, 16, generator=generator, dtype=torch.float64) for name in ("x", "y")}


class Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        logging.getLogger("autopar").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if "planned again" in record.getMessage():
            self.seen.append(record.getMessage())


def same(ours: Tensor, theirs: Tensor) -> None:
    whole = ours.full_tensor() if isinstance(ours, DTensor) else ours
    torch.testing.assert_close(whole, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_shapes_and_modes_on_processes() -> None:
    run_processes(2, shapes_and_modes)


def shapes_and_modes(rank: int) -> None:
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("gpu",))
    serial, messages = net(), Messages()
    search = {"hardware": toy_hardware(), "memory": "1MiB", "gap": 0.02}
    constraints = autopar.Constraints(parameters={"first.weight": "S(0)", "second.weight": "S(1)"})
    parallel = autopar.compile(net(), mesh, kwargs=batch(8), constraints=constraints, **search)  # type: ignore[arg-type]
    resting = {name: parallel.plan.state[name].placement for name in parallel.plan.state}
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (serial, parallel)]

    def step(rows: int) -> None:
        """Loss, output, gradients and weights as those of the serial model."""
        ours, theirs = parallel(**batch(rows)), serial(**batch(rows))
        same(ours["loss"], theirs["loss"])
        same(ours["out"], theirs["out"])
        for model, optimizer, loss in zip((serial, parallel), optimizers, (theirs["loss"], ours["loss"]), strict=True):
            optimizer.zero_grad()
            loss.backward()
            assert all(p.grad is not None for p in model.parameters())
            optimizer.step()
        state = parallel.state_dict()
        for name, tensor in serial.state_dict().items():
            same(state[name], tensor)

    for rows in (8, 3, 8, 3):
        step(rows)
    assert len(parallel.plans) == 2
    assert len(messages.seen) == (1 if rank == 0 else 0), messages.seen

    serial.eval(), parallel.eval()
    with torch.no_grad():
        data = batch(8)
        same(parallel(data["x"])["out"], serial(data["x"])["out"])
        same(parallel(x=data["x"], y=None)["out"], serial(data["x"])["out"])
        same(parallel(data["x"], data["y"])["loss"], serial(**data)["loss"])
    plans = len(parallel.plans)
    assert plans == 4
    serial.train(), parallel.train()
    step(8)
    parallel.first.eval(), serial.first.eval()  # changes nothing, so the programs in train mode serve
    step(8)
    parallel.noise.eval(), serial.noise.eval()
    step(8)
    assert len(parallel.plans) == plans
    assert len(messages.seen) == (plans - 1 if rank == 0 else 0)
    assert all({name: plan.state[name].placement for name in resting} == resting for plan in parallel.plans)
    assert all(plan.budget_bytes == 2**20 for plan in parallel.plans)

    fixed = autopar.compile(net(), mesh, kwargs=batch(8), plan=parallel.plan, replan=False)
    with pytest.raises(InputError, match=r"x is float64\[8, 16\] in the plan and float64\[6, 16\]"):
        fixed(**batch(6))
    fixed.eval()
    with pytest.raises(InputError, match="another program"):
        fixed(**batch(8))
    again = autopar.compile(net(), mesh, kwargs=batch(8), plan=parallel.plan)
    again(**batch(4))
    assert again.plans[1].budget_bytes == 2**20
