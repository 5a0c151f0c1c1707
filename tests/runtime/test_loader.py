"""shard_loader on processes: the serial loader's batches, of which each rank loads its own part; short ones as asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

import autopar
from autopar.codegen.module import ParallelModule
from autopar.errors import InputError, RankError
from autopar.ir.constraints import Constraints
from autopar.ir.plan import Plan
from tests.processes import run_processes
from tests.training import BATCH, DDP, plan_for, tied, whole
from tests.training import batch as example

SAMPLES = 21
"""Two whole batches and one of five."""


class Rows(Dataset[dict[str, Tensor]]):
    """Remembers which samples were read."""

    def __init__(self) -> None:
        self.data, self.read = example(rows=SAMPLES), list[int]()

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        self.read.append(index)
        return {name: tensor[index] for name, tensor in self.data.items()}


class Stream(IterableDataset[dict[str, Tensor]]):
    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        yield from (Rows()[i] for i in range(SAMPLES))


def in_pairs(samples: list[dict[str, Tensor]]) -> tuple[Tensor, ...]:
    return tuple(torch.stack([sample[name] for sample in samples]) for name in ("tokens", "labels"))


def loader(dataset: Any = None, **options: Any) -> DataLoader[Any]:
    return DataLoader(dataset or Rows(), **({"batch_size": BATCH} | options))


def shuffled() -> dict[str, Any]:
    return {"shuffle": True, "generator": torch.Generator().manual_seed(5)}


def equal(ours: Any, theirs: Any) -> None:
    """The same batch, in DTensors."""
    pairs = zip(ours.values(), theirs.values(), strict=True) if isinstance(ours, dict) else zip(ours, theirs, strict=True)
    for one, other in pairs:
        assert isinstance(one, DTensor)
        assert torch.equal(whole(one), other)


@pytest.mark.slow
def test_loaders_on_processes() -> None:
    columns = Constraints(pins=("op=embedding: sequence=gpu",), parameters="whole")
    plans = [plan_for(tied(), example(), constraints=c).to_json() for c in (DDP, columns)]
    run_processes(2, loaders, *plans)


def loaders(rank: int, by_rows: str, by_columns: str) -> None:
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("gpu",))
    parallel = autopar.compile(tied(), mesh, kwargs=example(), plan=Plan.from_json(by_rows))
    own_half(rank, parallel)
    same_batches(parallel)
    short_batches(parallel)
    as_wrong_as_can_be(rank, parallel)
    mine = {name: tensor.chunk(2)[rank] for name, tensor in example().items()}
    torch.testing.assert_close(parallel(**autopar.own_slice(parallel, mine))["loss"], parallel(**example())["loss"])
    with pytest.raises(InputError, match=r"tokens is \[8, 8\], this rank's piece of \[8, 8\] at \[S\(0\)\] is \[4, 8\]"):
        autopar.own_slice(parallel, example())

    parallel = autopar.compile(tied(), mesh, kwargs=example(), plan=Plan.from_json(by_columns))
    assert str(parallel.plan.inputs["tokens"].placement) == "S(1)"
    same_batches(parallel, KINDS[::3])


def own_half(rank: int, parallel: ParallelModule) -> None:
    """Under a data-parallel plan each sample is read by one rank."""
    rows = Rows()
    for _ in autopar.shard_loader(loader(rows, drop_last=True), parallel):
        pass
    assert rows.read == [i for i in range(16) if i // 4 % 2 == rank]


KINDS: list[tuple[Any, dict[str, Any]]] = [
    (Rows, {"drop_last": True}),
    (Rows, {"num_workers": 1, "persistent_workers": True, "drop_last": True}),
    (Rows, {"collate_fn": in_pairs, "drop_last": True}),
    (Stream, {"drop_last": True}),
]


def same_batches(parallel: ParallelModule, kinds: list[tuple[Any, dict[str, Any]]] = KINDS) -> None:
    """Two epochs of each kind of loader, against the same loader alone."""
    for kind, options in kinds:
        shuffle = (lambda: {}) if kind is Stream else shuffled
        serial, ours = (loader(kind(), **options, **shuffle()) for _ in range(2))
        sharded = autopar.shard_loader(ours, parallel)
        for _ in range(2):
            batches = list(sharded)
            expected = list(serial)
            assert len(batches) == len(expected) == 2
            for one, other in zip(batches, expected, strict=True):
                equal(one, other)
        assert kind is Stream or len(sharded) == len(serial)


def short_batches(parallel: ParallelModule) -> None:
    with pytest.raises(InputError, match=r'a batch of 5 samples, where 8 are planned: choose last="drop"'):
        autopar.shard_loader(loader(), parallel)
    with pytest.raises(InputError, match="a batch of 5 samples"):
        list(autopar.shard_loader(loader(Stream()), parallel))
    dropped = autopar.shard_loader(loader(), parallel, last="drop")
    assert len(dropped) == len(list(dropped)) == 2

    for source in (Rows, Stream):
        *_, last = autopar.shard_loader(loader(source()), parallel, last="pad")
        assert tuple(last["labels"].shape) == (BATCH, 8)
        ours, theirs = parallel, tied()
        short = {name: tensor[16:] for name, tensor in Rows().data.items()}
        losses = ours(**last)["loss"], theirs(**short)["loss"]
        torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
        compare_gradients(ours, theirs, losses)
    assert len(parallel.plans) == 1

    *_, last = autopar.shard_loader(loader(), parallel, last="replan")
    losses = parallel(**last)["loss"], tied()(**short)["loss"]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
    assert [plan.inputs["tokens"].shape[0] for plan in parallel.plans] == [8, 5]


def compare_gradients(ours: nn.Module, theirs: nn.Module, losses: tuple[Tensor, Tensor]) -> None:
    for loss in losses:
        loss.backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(whole(parameter.grad), gradients[name], rtol=1e-9, atol=1e-12)  # type: ignore[arg-type]
    ours.zero_grad()


def as_wrong_as_can_be(rank: int, parallel: ParallelModule) -> None:
    torch.manual_seed(rank)
    unseeded = autopar.shard_loader(loader(shuffle=True, drop_last=True), parallel)
    assert len(list(unseeded)) == 2  # rank 0's seed
    other = {"shuffle": True, "generator": torch.Generator().manual_seed(rank)}
    with pytest.raises(RankError, match="rank 1 differs from the others in order of samples"):
        list(autopar.shard_loader(loader(drop_last=True, **other), parallel))
    with pytest.raises(InputError, match="last='repeat' is none of"):
        autopar.shard_loader(loader(), parallel, last="repeat")  # type: ignore[arg-type]
    longer = Rows()
    longer.data = {name: torch.cat([tensor, tensor], 1) for name, tensor in longer.data.items()}
    with pytest.raises(InputError, match=r"input tokens is \[4, 16\] for 4 samples, the plan is for \[8\] each"):
        list(autopar.shard_loader(loader(longer, drop_last=True), parallel))
    with pytest.raises(InputError, match="with other inputs"):
        list(autopar.shard_loader(loader(collate_fn=lambda s: in_pairs(s)[:1], drop_last=True), parallel))
