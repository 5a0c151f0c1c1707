"""Run a function on real processes with a gloo process group."""

from __future__ import annotations

import faulthandler
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing


def run_processes(world_size: int, function: Callable[..., None], *args: Any) -> None:
    """`function(rank, *args)` on each rank; a rank's exception is raised here. The function must be importable."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(start, (world_size, f"file://{folder}/store", function, args), nprocs=world_size)


def start(rank: int, world_size: int, meeting_point: str, function: Callable[..., None], args: tuple[Any, ...]) -> None:
    faulthandler.enable()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting_point, rank=rank, world_size=world_size)
    try:
        function(rank, *args)
    finally:
        dist.destroy_process_group()
