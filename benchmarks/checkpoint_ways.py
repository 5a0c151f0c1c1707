"""The ways to save memory that `gpu_checkpointing.py` compares: our plans, torch's checkpoints, and torch.compile's budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from checkpoint_models import Stack, call
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import autopar
from autopar.bytes import human
from autopar.errors import BudgetError
from autopar.hardware import load
from autopar.ir.mesh import MeshSpec
from autopar.planning.planner import Aims, Planner
from autopar.torch_private import inductor_within, pytree
from autopar.tracer import trace

OURS, BY_HAND, COMPILED = "ours", "by hand", "torch.compile"
ATTENTION = {f"aten._scaled_dot_product_{kind}_attention" for kind in ("flash", "efficient", "cudnn", "fused")}
ATTENTION |= {"aten._scaled_dot_product_flash_attention_for_cpu"}
PRODUCTS = {"aten.mm", "aten.addmm", "aten.bmm"}


@dataclass(frozen=True, kw_only=True)
class Way:
    """A model with what runs it: `loss` is the loss of the batch, `plan` that of ours."""

    name: str
    family: str
    loss: Callable[[], Tensor]
    module: nn.Module
    optimizer: torch.optim.Optimizer
    plan: autopar.Plan | None = None

    def step(self) -> Tensor:
        """One training step; its loss."""
        loss = self.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    @property
    def resident_bytes(self) -> int:
        """What it needs between steps: parameters, buffers and the optimizer's state."""
        state = pytree.tree_leaves(list(self.optimizer.state.values()))
        tensors = [*self.module.parameters(), *self.module.buffers(), *(t for t in state if isinstance(t, Tensor))]
        return sum(t.numel() * t.element_size() for t in tensors)


def optimizer_of(module: nn.Module) -> torch.optim.Optimizer:
    """The work of fused AdamW, at a rate of 0: every way must go on seeing the same weights, and the same losses."""
    return torch.optim.AdamW(module.parameters(), lr=0.0, weight_decay=0.0, fused=True)


def others(model: Stack, batch: dict[str, Tensor], budgets: list[float]) -> Iterator[Way]:
    """What people do without us, all on the same parameters. `budgets`: of activation memory, for torch.compile."""
    made = partial(Way, module=model, optimizer=optimizer_of(model))
    for name, run in BLOCKS.items():
        yield made(name=name, family=BY_HAND, loss=partial(model.through, run, **batch))
    if budgets:
        yield made(name="compile", family=COMPILED, loss=partial(torch.compile(model), **batch))
    for budget in budgets:
        compiled = torch.compile(model, backend=inductor_within(budget))
        yield made(name=f"compile, budget {budget:g}", family=COMPILED, loss=partial(compiled, **batch))


def full(number: int, block: nn.Module, *given: Tensor) -> Any:
    return checkpoint(block, *given, use_reentrant=False)


def every_second(number: int, block: nn.Module, *given: Tensor) -> Any:
    return (call if number % 2 else full)(number, block, *given)


def selective(number: int, block: nn.Module, *given: Tensor, every: int = 1) -> Any:
    """Attention and each `every`-th matrix product are kept, the rest is computed again."""
    return checkpoint(block, *given, use_reentrant=False, context_fn=partial(contexts, every))


def contexts(every: int) -> Any:
    """A new count of products for each block and direction: decisions must be the same in both."""
    seen = {False: 0, True: 0}

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        name = str(op).rpartition(".")[0]
        seen[context.is_recompute] += name in PRODUCTS
        kept = name in ATTENTION or (name in PRODUCTS and seen[context.is_recompute] % every == 0)
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


BLOCKS: Mapping[str, Callable[..., Any]] = {
    "no checkpoints": call,
    "full": full,
    "full, every second block": every_second,
    "selective": selective,
    "selective, half": partial(selective, every=2),
}


def plans(model: Stack, batch: dict[str, Tensor], hardware: str, budgets: Sequence[int]) -> Iterator[autopar.Plan]:
    """The best plan within each budget; within the smallest one that works where there is none."""
    aims = Aims(hardware=load(hardware))
    planner, mesh, smallest = Planner(trace(model, (), batch), aims), MeshSpec.of("1"), 0
    for budget in budgets:
        if budget < smallest:
            continue
        try:
            yield planner.find(mesh, budget).plan
        except BudgetError as error:
            smallest = error.smallest_bytes or 0
            yield planner.find(mesh, smallest).plan


def ours(model: Stack, batch: dict[str, Tensor], plan: autopar.Plan, device: str, backend: str) -> Way:
    """A plan as it runs."""
    assert plan.budget_bytes is not None
    mesh = init_device_mesh(device, (1,), mesh_dim_names=plan.mesh.names)
    options: dict[str, Any] = {} if backend == "eager" else {"backend": backend}
    parallel = autopar.compile(model, mesh, kwargs=batch, plan=plan, **options)
    made = partial(Way, name=f"autopar, {human(plan.budget_bytes)}", family=OURS, plan=plan)
    return made(loss=partial(parallel, **batch), module=parallel, optimizer=optimizer_of(parallel))
