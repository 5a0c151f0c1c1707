"""Training loops as people write them, on real processes: the parallel module ends where the plain model ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

import autopar
from autopar.codegen.module import ParallelModule
from autopar.errors import InputError
from autopar.ir.plan import Plan
from tests.hardware_toy import toy_hardware
from tests.processes import run_processes
from tests.training import DDP, FREE, HIDDEN, VOCAB, batch, normalized, plan_for, points, tied, whole, with_low_rank

STEPS = 3
EXACT = {"rtol": 0.0, "atol": 1e-9}

Optimizers = Callable[[nn.Module], torch.optim.Optimizer]


def by_name(model: nn.Module) -> list[dict[str, Any]]:
    """No decay for biases and norms; the rest decays, and the tied matrix learns more slowly."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        decay = 0.0 if name.endswith("bias") or "norm" in name else 0.1
        groups.setdefault((decay, 1e-3 if name == "embed.weight" else 1e-2), []).append(parameter)
    assert len(groups) == 3
    return [{"params": p, "weight_decay": decay, "lr": rate} for (decay, rate), p in groups.items()]


OPTIMIZERS: dict[str, Optimizers] = {
    "AdamW for each": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, foreach=False),
    "AdamW foreach": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, foreach=True),
    "AdamW fused": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, fused=True),
    "Adam amsgrad": lambda m: torch.optim.Adam(m.parameters(), lr=1e-2, amsgrad=True, weight_decay=0.1),
    "groups by name": lambda m: torch.optim.AdamW(by_name(m)),
    "SGD with momentum": lambda m: torch.optim.SGD(m.parameters(), lr=1e-1, momentum=0.9, nesterov=True),
}


@pytest.mark.slow
def test_loops_on_processes_equal_those_of_the_plain_model(tmp_path: Path) -> None:
    plan_for(tied(), batch(), constraints=FREE).save(tmp_path / "tied.json")
    plan_for(with_low_rank(), batch(), constraints=FREE).save(tmp_path / "with_low_rank.json")
    run_processes(2, loops, str(tmp_path))


def loops(rank: int, folder: str) -> None:
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("gpu",))
    everything, low_rank = (Pair(make, mesh, Plan.load(f"{folder}/{make.__name__}.json")) for make in (tied, with_low_rank))
    for make in OPTIMIZERS.values():
        optimizers_and_schedulers(*everything.fresh(), make)
    clipping(*everything.fresh())
    modes(*everything.fresh())
    frozen(*low_rank.fresh())
    frozen_after_compile(*everything.fresh())
    unfrozen_after_compile(low_rank.fresh()[0])
    train_and_eval(mesh)


class Pair:
    """A compiled module and the plain one; `fresh`: with the weights that they began with, and without gradients."""

    def __init__(self, make: Callable[[], nn.Module], mesh: DeviceMesh, plan: Plan) -> None:
        self.modules = autopar.compile(make(), mesh, kwargs=batch(), plan=plan), make()
        ours, theirs = ([name for name, _ in m.named_parameters()] for m in self.modules)
        assert ours == theirs
        self.start = [[p.detach().clone() for p in m.parameters()] for m in self.modules]

    @torch.no_grad()
    def fresh(self) -> tuple[ParallelModule, nn.Module]:
        for module, start in zip(self.modules, self.start, strict=True):
            module.zero_grad()
            for parameter, value in zip(module.parameters(), start, strict=True):
                parameter.copy_(value)
        return self.modules


def assert_equal_weights(parallel: nn.Module, model: nn.Module) -> None:
    theirs = dict(model.named_parameters())
    for name, ours in parallel.named_parameters():
        torch.testing.assert_close(whole(ours), theirs[name].detach(), **EXACT, msg=lambda m, n=name: f"{n}: {m}")


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterable[int]) -> list[float]:
    """One loop for both: nothing in it knows whether the model is parallel."""
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=STEPS + 1, cycle_momentum=False)
    losses = []
    for step in steps:
        loss = model(**batch(step))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def optimizers_and_schedulers(parallel: ParallelModule, model: nn.Module, make: Optimizers) -> None:
    ours, theirs = (train(m, make(m), range(STEPS)) for m in (parallel, model))
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), **EXACT)
    assert_equal_weights(parallel, model)
    assert parallel.get_parameter("head.weight") is parallel.get_parameter("embed.weight"), "tied weights are one tensor"


def clipping(parallel: ParallelModule, model: nn.Module) -> None:
    """`clip_grad_norm_` and its two halves see the norm of the whole gradient, not of this rank's piece."""
    for m in (parallel, model):
        m(**batch())["loss"].backward()
    totals, norms = [], []
    for m in (parallel, model):
        totals.append(whole(torch.nn.utils.get_total_norm([p.grad for p in m.parameters() if p.grad is not None])))
        norms.append(whole(torch.nn.utils.clip_grad_norm_(m.parameters(), 0.1, foreach=True)))
    for found in (totals, norms):
        torch.testing.assert_close(*found, **EXACT)
    assert norms[0] > 0.1
    for name, ours in parallel.named_parameters():
        torch.testing.assert_close(gradient(ours), gradient(model.get_parameter(name)), **EXACT)


def gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return whole(parameter.grad)


def modes(parallel: ParallelModule, model: nn.Module) -> None:
    assert parallel.training is model.training
    with torch.no_grad():
        loss = parallel(**batch())["loss"]
    assert not loss.requires_grad
    assert loss.grad_fn is None
    with torch.inference_mode():
        torch.testing.assert_close(parallel(**batch())["loss"], model(**batch())["loss"], **EXACT)
    # autograd goes on from the loss, and two graphs may be alive at once
    losses = [parallel(**batch(step))["loss"] for step in range(2)]
    (losses[0] * 3 + losses[1].square()).backward()
    theirs = [model(**batch(step))["loss"] for step in range(2)]
    (theirs[0] * 3 + theirs[1].square()).backward()
    torch.testing.assert_close(gradient(parallel.get_parameter("embed.weight")), gradient(model.embed.weight), **EXACT)  # type: ignore[union-attr,arg-type]


def frozen(parallel: ParallelModule, model: nn.Module) -> None:
    """Low-rank corrections learn; frozen tensors have no gradient, no optimizer state, and rest as they were."""
    before = {name: whole(p).clone() for name, p in parallel.named_parameters() if not p.requires_grad}
    assert {name for name, p in parallel.named_parameters() if p.requires_grad} == {
        name for name, _ in parallel.named_parameters() if "lora_" in name
    }
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (parallel, model)]
    ours, theirs = (train(m, o, range(STEPS)) for m, o in zip((parallel, model), optimizers, strict=True))
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), **EXACT)
    assert_equal_weights(parallel, model)
    for name, tensor in before.items():
        parameter = parallel.get_parameter(name)
        assert parameter.grad is None
        assert parameter not in optimizers[0].state
        torch.testing.assert_close(whole(parameter), tensor, rtol=0, atol=0)


def frozen_after_compile(parallel: ParallelModule, model: nn.Module) -> None:
    """Freezing later is honoured."""
    for m in (parallel, model):
        m.get_parameter("blocks.0.up.weight").requires_grad_(False)
        m(**batch())["loss"].backward()
    assert parallel.get_parameter("blocks.0.up.weight").grad is None
    for name in ("blocks.0.up.bias", "blocks.1.up.weight"):
        torch.testing.assert_close(gradient(parallel.get_parameter(name)), gradient(model.get_parameter(name)), **EXACT)


def unfrozen_after_compile(parallel: ParallelModule) -> None:
    """Unfreezing what was compiled as frozen is refused, for its gradient is not in the graphs."""
    parallel.get_parameter("blocks.1.norm.weight").requires_grad_(True)
    with pytest.raises(
        InputError, match=r"blocks\.1\.norm\.weight requires a gradient.*was frozen when the model was compiled"
    ):
        parallel(**batch())
    with torch.no_grad():
        parallel(**batch())


def train_and_eval(mesh: DeviceMesh) -> None:
    """Compiled in eval mode, where batch norm reads its running statistics; in train mode it writes them."""
    model = normalized().eval()
    parallel = autopar.compile(normalized().eval(), mesh, kwargs=points(), hardware=toy_hardware(), time_limit_s=5)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (parallel, model)]
    for step, training in enumerate((False, True, True, False)):
        for m, optimizer in zip((parallel, model), optimizers, strict=True):
            optimizer.zero_grad()
            m.train(training)(**points(step))["loss"].backward()
            optimizer.step()
        theirs = model.state_dict()
        for name, ours in parallel.state_dict().items():
            torch.testing.assert_close(
                whole(ours), theirs[name], **EXACT, msg=lambda m, n=name, t=training: f"{n}, train={t}: {m}"
            )
    assert len(parallel.plans) == 2, "one for each mode"


def test_frozen_parameters_cost_no_reduction_and_no_state() -> None:
    """Data parallel: gradients of all trained bytes are reduced, and no others; AdamW adds two copies of these only."""
    twice = VOCAB * HIDDEN * 8  # the tied matrix gets a gradient where tokens are read and where they are written
    for make, again in ((tied, twice), (with_low_rank, 0)):
        model = make()
        trained = sum(p.numel() * 8 for p in model.parameters() if p.requires_grad)
        everything = sum(p.numel() * 8 for p in model.parameters())
        plan = plan_for(model, batch(), constraints=DDP)
        (reduced,) = [c for c in plan.figures.collectives if c.phase == "backward"]
        assert (reduced.kind, reduced.bytes) == ("all_reduce", trained + again)
        at_rest = sum(size for name, size in plan.figures.memory_bytes.items() if "at rest" in name)
        assert at_rest == everything + 2 * trained


def test_low_rank_is_what_peft_makes() -> None:
    """The wrapper of these tests computes what `peft` computes, so what holds for it holds there."""
    import peft

    torch.manual_seed(0)
    ours = with_low_rank()
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["up", "down"], lora_dropout=0.0)
    theirs = peft.get_peft_model(tied(), config)
    state = {name.replace("base_model.model.", "").replace(".default", ""): p for name, p in theirs.named_parameters()}
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            state[name].copy_(parameter)
    torch.testing.assert_close(theirs(**batch())["loss"], ours(**batch())["loss"], **EXACT)
    assert {n for n, p in state.items() if p.requires_grad} == {n for n, p in ours.named_parameters() if p.requires_grad}
