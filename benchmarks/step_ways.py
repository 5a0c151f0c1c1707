"""The ways to train that `step_time.py` compares: autopar beside torch's own DDP, FSDP2 and tensor parallel.

Each takes the model, the global batch and the number of ranks, and returns the module that one process runs, with the part of
the batch that it runs it on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from step_models import Case
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

import autopar

Ready = tuple[nn.Module, dict[str, Tensor]]


def own_slice(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    return {name: tensor.chunk(ranks)[rank] for name, tensor in batch.items()}


def line() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("gpu",))


def ddp(case: Case, options: Any) -> Ready:
    return nn.parallel.DistributedDataParallel(case.model, gradient_as_bucket_view=True), own_slice(case.batch)


def fsdp(case: Case, options: Any) -> Ready:
    mesh = line()
    for block in case.model.get_submodule(case.blocks).children():
        fully_shard(block, mesh=mesh)
    fully_shard(case.model, mesh=mesh)
    return case.model, own_slice(case.batch)


def fsdp_checkpointed(case: Case, options: Any) -> Ready:
    case.model.gradient_checkpointing_enable({"use_reentrant": False})  # transformers' own
    return fsdp(case, options)


def tensor_parallel(case: Case, options: Any, sequence: bool = False) -> Ready:
    """Column- and row-parallel linear layers; with `sequence` everything between them is cut along the sequence."""
    mesh = line()
    for block in case.model.get_submodule(case.blocks).children():
        styles: dict[str, Any] = {name: ColwiseParallel() for name in case.colwise}
        styles |= {name: RowwiseParallel(output_layouts=Shard(1) if sequence else Replicate()) for name in case.rowwise}
        if sequence:
            styles |= {name: SequenceParallel(use_local_output=True) for name in case.norms}
            styles |= {name: whole_sequence(name) for name in case.gathered}
        parallelize_module(block, mesh, styles)
    if case.head:
        parallelize_module(case.model, mesh, {case.head: ColwiseParallel(output_layouts=Replicate())})
    if sequence:
        cut_sequence(case, mesh)
    return case.model, case.batch


def whole_sequence(name: str) -> PrepareModuleInput:
    """One gather for all that a module computes from its input."""
    if name.endswith("attn"):
        return PrepareModuleInput(
            input_kwarg_layouts={"hidden_states": Shard(1)}, desired_input_kwarg_layouts={"hidden_states": Replicate()}
        )
    return PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),))


def cut_sequence(case: Case, mesh: DeviceMesh) -> None:
    """Cut the hidden states before the first block, gather them after the last."""
    blocks = list(case.model.get_submodule(case.blocks).children())

    def enter(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = DTensor.from_local(args[0], mesh, [Replicate()]).redistribute(mesh, [Shard(1)]).to_local()
        return (hidden, *args[1:])

    def leave(_: nn.Module, args: Any, result: Tensor) -> Tensor:
        return DTensor.from_local(result, mesh, [Shard(1)]).redistribute(mesh, [Replicate()]).to_local()

    blocks[0].register_forward_pre_hook(enter)
    blocks[-1].register_forward_hook(leave)


def tensor_parallel_sequence(case: Case, options: Any) -> Ready:
    return tensor_parallel(case, options, sequence=True)


def autopar_best(case: Case, options: Any, backend: Any = "eager") -> Ready:
    """The mesh, too, is chosen by the search."""
    box: list[Any] = [None]
    if dist.get_rank() == 0:
        box[0] = found_plan(case, options).to_json()
    dist.broadcast_object_list(box, src=0)
    plan = autopar.Plan.from_json(box[0], "the plan of rank 0")
    mesh = init_device_mesh("cpu", plan.mesh.sizes, mesh_dim_names=plan.mesh.names)
    return autopar.compile(case.model, mesh, kwargs=case.batch, plan=plan, backend=backend), case.batch


def autopar_inductor(case: Case, options: Any) -> Ready:
    return autopar_best(case, options, "inductor")


def found_plan(case: Case, options: Any) -> autopar.Plan:
    ranks = dist.get_world_size()
    kept = Path(options.plans or f"{options.store}-plans") / f"{options.model}-{ranks}.json"
    if kept.exists():
        return autopar.Plan.load(kept)
    found = autopar.plan(case.model, kwargs=case.batch, devices=ranks, hardware=options.hardware, time_limit_s=options.limit)
    kept.parent.mkdir(parents=True, exist_ok=True)
    found.save(kept)
    return found


def eager(case: Case, options: Any) -> Ready:
    return case.model, case.batch


def compiled(case: Case, options: Any) -> Ready:
    return torch.compile(case.model), case.batch  # type: ignore[return-value]


Way = Callable[[Case, Any], Ready]
WAYS: dict[str, Way] = {
    "autopar": autopar_best,
    "ddp": ddp,
    "fsdp2": fsdp,
    "fsdp2+checkpoints": fsdp_checkpointed,
    "tp": tensor_parallel,
    "tp+sp": tensor_parallel_sequence,
}
ALONE: dict[str, Way] = {
    "autopar": autopar_best,
    "eager": eager,
    "autopar+inductor": autopar_inductor,
    "torch.compile": compiled,
}


def applies(way: str, case: Case) -> bool:
    """Tensor parallel needs `nn.Linear`; sequence parallel layer norms that can be cut."""
    return {"tp": bool(case.colwise), "tp+sp": bool(case.norms)}.get(way, True)
