"""Run a function on real processes with a gloo process group.

Processes are forked from a server that has imported torch, autopar and the models: that takes 5 seconds of a core, and each
process is as fresh as if it had been started anew.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes

IMPORTED = (
    "autopar.api",
    "autopar.codegen.all_ranks",
    "autopar.verification",
    "tests.models",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
)


def run_processes(world_size: int, function: Callable[..., None], *args: Any) -> None:
    """`function(rank, *args)` on each rank; a rank's exception is raised here. The function must be importable."""
    with tempfile.TemporaryDirectory() as folder:
        fork_processes(world_size, start, world_size, f"file://{folder}/store", dict(os.environ), function, args)


def fork_processes(count: int, function: Callable[..., None], *args: Any, join: bool = True) -> Any:
    """`function(number, *args)` in each process, without a process group; as `torch.multiprocessing.spawn`."""
    multiprocessing.set_forkserver_preload(list(IMPORTED))
    return start_processes(function, args, nprocs=count, join=join, start_method="forkserver")


def start(
    rank: int,
    world_size: int,
    meeting_point: str,
    environment: dict[str, str],
    function: Callable[..., None],
    args: tuple[Any, ...],
) -> None:
    faulthandler.enable()
    os.environ.update(environment)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting_point, rank=rank, world_size=world_size)
    try:
        function(rank, *args)
    finally:
        dist.destroy_process_group()
