"""Models on the meta device get their own initialization's values, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

import autopar
from autopar.codegen.initialize import own_copy
from autopar.codegen.module import ParallelModule
from autopar.errors import InputError
from autopar.torch_private import AllocationTracker, is_fake
from tests.hardware_toy import toy_hardware
from tests.models import MLP, gpt2, llama
from tests.processes import run_processes

SEED = 7


class Custom(nn.Module):
    """Writes views, reads what it wrote, comes back to a tensor, makes tensors on its own tensors' device."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.register_buffer("table", torch.zeros(16), persistent=False)
        self.register_buffer("ids", torch.zeros(16, dtype=torch.long))

    @torch.no_grad()
    def init_weights(self) -> None:
        for module in (self.first, self.second, self.attention.out_proj):
            nn.init.trunc_normal_(module.weight, std=0.1)
            nn.init.zeros_(module.bias)
        self.attention._reset_parameters()
        nn.init.orthogonal_(self.second.weight)
        self.first.weight.data[2:4].mul_(3)
        self.first.weight[5] = self.second.weight[1] * 2
        self.second.weight.div_(self.second.weight.norm())
        self.table.copy_(torch.arange(16, device=self.table.device) ** 0.5)
        self.ids.copy_(torch.arange(16))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.second(torch.relu(self.first(x + self.table)))
        hidden = hidden + self.attention(hidden[None], hidden[None], hidden[None], need_weights=False)[0][0]
        return {"loss": (hidden * self.ids).square().mean()}


@pytest.mark.slow
def test_values_are_those_of_the_serial_model() -> None:
    run_processes(2, initialize_all)


def initialize_all(rank: int) -> None:
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("gpu",))
    batch = {"x": torch.randn(8, 16, generator=torch.Generator().manual_seed(1))}
    custom = equal_to_serial(lambda device: Custom().to(device), batch, mesh)
    assert any(isinstance(p, DTensor) and p.placements[0].is_shard() for p in custom.parameters())
    for family in (gpt2, llama):
        equal_to_serial(lambda device, family=family: family(device=device)[0], family()[1], mesh)

    torch.manual_seed(rank)
    drawn = torch.randn(3) if rank else None
    torch.manual_seed(rank)
    custom.init_weights()
    assert rank == 0 or torch.equal(torch.randn(3), drawn)
    torch.manual_seed(0)
    serial = Custom()
    torch.manual_seed(0)
    serial.init_weights()
    torch.testing.assert_close(custom.first.weight.full_tensor(), serial.first.weight, rtol=0, atol=0)

    never_whole(mesh)
    what_is_left_out_is_named(mesh, batch)


def compiled(model: nn.Module, mesh: DeviceMesh, batch: dict[str, torch.Tensor]) -> ParallelModule:
    return autopar.compile(model, mesh, kwargs=batch, hardware=toy_hardware(), gap=0.02, time_limit_s=5)


def equal_to_serial(make: Callable[[str], nn.Module], batch: dict[str, torch.Tensor], mesh: DeviceMesh) -> ParallelModule:
    parallel = compiled(make("meta"), mesh, batch)
    before = torch.get_rng_state()
    assert parallel.init_weights(SEED) is parallel
    assert torch.equal(torch.get_rng_state(), before)
    serial = make("cpu")
    for module in serial.modules():
        vars(module).pop("_is_hf_initialized", None)
    torch.manual_seed(SEED)
    serial.init_weights()
    theirs = {**dict(serial.named_parameters()), **dict(serial.named_buffers())}
    ours = {**dict(parallel.named_parameters()), **dict(parallel.named_buffers())}
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        assert torch.equal(whole, theirs[name]), name
    torch.testing.assert_close(parallel(**batch)["loss"], serial(**batch)["loss"])
    return parallel


def never_whole(mesh: DeviceMesh) -> None:
    """Its constructor's numbers, too; and never more than the pieces and one tensor that is whole."""
    layers, hidden = 12, 64
    batch = {"x": torch.ones(8, hidden), "y": torch.ones(8, 1)}
    with torch.device("meta"):
        model = MLP(layers, hidden)
    total = sum(p.nbytes for p in model.parameters())
    largest = max(p.nbytes for p in model.parameters())
    with AllocationTracker() as tracker:
        parallel = compiled(model, mesh, batch)
        held = tracker.bytes
        tracker.peak_bytes = held
        parallel.init_weights(SEED)
        extra = tracker.peak_bytes - held
    mine = sum(p.to_local().nbytes for p in parallel.parameters())
    assert mine < 0.6 * total
    assert largest <= extra <= 2.1 * largest < total / 4
    torch.manual_seed(SEED)
    serial = MLP(layers, hidden)
    for name, parameter in parallel.named_parameters():
        assert torch.equal(parameter.full_tensor(), serial.get_parameter(name)), name


class Forgets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 16)
        self.register_buffer("table", torch.arange(16.0), persistent=False)
        self.gain = nn.Parameter(torch.ones(16))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.inner(x) * self.gain + self.table).square().mean()}


def what_is_left_out_is_named(mesh: DeviceMesh, batch: dict[str, torch.Tensor]) -> None:
    with torch.device("meta"):
        model = Forgets()
    parallel = compiled(model, mesh, batch)
    with pytest.raises(InputError, match="gain and 3 more of the model have no values"):
        parallel(**batch)
    with pytest.raises(InputError, match="gain and 1 more of the model have no values"):
        parallel.init_weights()
    nn.init.ones_(parallel.gain)
    parallel.table.copy_(torch.arange(16.0))
    assert parallel(**batch)["loss"].isfinite()
    with_weights = autopar.compile(Forgets(), mesh, kwargs=batch, plan=parallel.plan)
    with pytest.raises(InputError, match="had weights when it was compiled"):
        with_weights.init_weights()


def test_a_copy_leaves_the_model_alone() -> None:
    model, _ = gpt2()
    copied = own_copy(model, "cpu")
    assert all(is_fake(t) for t in (*copied.parameters(), *copied.buffers()))
    assert copied.lm_head.weight is copied.transformer.wte.weight
    assert not any(hasattr(m, "_is_hf_initialized") for m in copied.modules())
    assert not any(is_fake(p) for p in model.parameters())
