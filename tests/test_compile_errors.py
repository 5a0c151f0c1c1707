"""What `compile` says of meshes and batches that do not fit, on one process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch.distributed as dist

import autopar
from autopar.api import require_processes
from autopar.errors import MeshError, PlanError
from autopar.tracer import trace
from tests.models import mlp
from tests.planned import planned


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_a_mesh_of_another_size_than_the_process_group() -> None:
    with pytest.raises(MeshError, match="mesh 2x2 has 4 devices, the process group has 1 processes"):
        require_processes(autopar.MeshSpec((2, 2)))
    require_processes(autopar.MeshSpec((1,)))


def test_no_process_group() -> None:
    with pytest.raises(MeshError, match="compile needs a process group"):
        require_processes(autopar.MeshSpec((1,)))


def test_a_whole_batch_for_a_plan_of_micro_batches() -> None:
    plan = planned("mlp", "2")[0].model_copy(update={"micro_batches": 4})
    model, kwargs = mlp(device="meta", batch=32)
    with pytest.raises(
        PlanError, match=r"\[8, 64\] in the plan \(the plan is for one of 4 micro-batches\) and float32\[32, 64\]"
    ):
        plan.require(trace(model, (), kwargs, name="mlp"), plan.mesh)
