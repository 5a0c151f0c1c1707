"""Ranks that differ are named, with the field, before a collective hangs."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

import autopar
from autopar.errors import RankError, TraceError
from autopar.ir.plan import Plan
from autopar.runtime.agreement import FAILURE, agree, differences
from tests.models import MLP, mlp
from tests.planned import planned
from tests.processes import run_processes


def said(*records: dict[str, Any]) -> str:
    return next(differences(list(records)), "")


def test_equal_records_agree() -> None:
    assert said({"torch": "2.13", "inputs": {"x": "a"}}, {"inputs": {"x": "a"}, "torch": "2.13"}) == ""
    assert said({"inputs": {"x": "a"}}, {"program": "only this rank says so"}) == ""


def test_the_few_are_named_not_the_many() -> None:
    assert said({"torch": "2.11"}, {"torch": "2.13"}, {"torch": "2.13"}).startswith(
        "rank 0 differs from the others in torch: 2.11 there, 2.13 on rank 1."
    )
    assert said(*[{"torch": str(rank in (2, 4))} for rank in range(8)]).startswith("ranks 2, 4 differ")


def test_where_as_many_say_the_one_as_the_other_rank_0_is_right() -> None:
    assert said({"inputs": {"x": "a", "y": "b"}}, {"inputs": {"x": "a", "y": "c"}}).startswith(
        "rank 1 differs from the others in inputs, y: c there, b on rank 0. Pass the global batch"
    )
    assert "x: nothing there, a on rank 0" in said({"inputs": {"x": "a"}}, {"inputs": {}})


def test_a_failure_is_everybodys() -> None:
    assert said({"torch": "1"}, {FAILURE: "TraceError: no"}) == "rank 1 failed, so no rank can go on: TraceError: no"


class Other(MLP):
    """Other code of the same name, in a newer version of the library, say."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: 2 * value for name, value in super().forward(x, y).items()}


class Untraceable(MLP):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        return super().forward(x, y) if x.sum() > 0 else {}


class Wide(MLP):
    def __init__(self, factor: int) -> None:
        super().__init__(2, 64)
        for block in self.blocks:
            block[0], block[2] = nn.Linear(64, factor * 128), nn.Linear(factor * 128, 64)  # type: ignore[index,operator]


Other.__qualname__ = Untraceable.__qualname__ = MLP.__qualname__


@pytest.mark.slow
def test_differing_ranks_on_processes() -> None:
    run_processes(2, differing, planned("mlp", "2")[0].to_json())


def differing(rank: int, plan_json: str) -> None:
    """Rank 1 is the odd one, in one thing after the other; rank 0 goes on each time as if nothing had happened."""
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("gpu",))
    plan, odd = Plan.from_json(plan_json), rank == 1
    usual = mlp()[1]

    def refused(match: str, model: nn.Module, kwargs: Any, error: type[Exception] = RankError, **options: Any) -> None:
        with pytest.raises(error, match=match):
            autopar.compile(model, mesh, kwargs=kwargs, **({"plan": plan} | options))

    other_rows = r"rank 1 differs from the others in inputs, x: float32\[6,64\] there, float32\[8,64\] on rank 0"
    refused(other_rows, MLP(2, 64), mlp(batch=6 if odd else 8)[1])
    refused(r"state, blocks\.0\.0\.weight: parameter .*\[128,64\] trained there, .*\[256,64\]", Wide(1 if odd else 2), usual)
    refused("rank 1 .* in options, memory: 2GiB there, 1GiB on rank 0", MLP(2, 64), usual, memory="2GiB" if odd else "1GiB")
    refused("rank 1 .* in options, seed: 3 there, None on rank 0", MLP(2, 64), usual, seed=3 if odd else None)
    refused("rank 1 .* in program: .* install the same on all", (Other if odd else MLP)(2, 64), usual)
    if odd:
        refused("x.sum", Untraceable(2, 64), usual, TraceError)
    else:
        refused("rank 1 failed, so no rank can go on: TraceError", MLP(2, 64), usual)

    parallel = autopar.compile(mlp()[0], mesh, kwargs=usual, plan=plan)
    before = parallel(**usual)["loss"]
    with pytest.raises(RankError, match=r"rank 1 differs from the others in inputs, x: float32\[3,64\] there, float32\[5,64\]"):
        parallel(**mlp(batch=3 if odd else 5)[1])
    torch.testing.assert_close(parallel(**usual)["loss"], before)

    time.sleep(3 if odd else 0)
    with pytest.raises(RankError, match=r"rank 1 did not come within 1 s .*\(x float32\[8\]\)"):
        agree({"inputs": {"x": "float32[8]"}}, timedelta(seconds=1))
