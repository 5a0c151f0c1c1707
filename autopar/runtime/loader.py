"""shard_loader: an ordinary DataLoader, of which each rank loads only the samples that its plan needs.

All ranks go through the same indices in the same order, which is that of the loader alone, and each takes its rows of every
batch. What comes out are DTensors of the whole batch that hold this rank's pieces: the module takes them as they are.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler

from autopar.codegen.module import ParallelModule
from autopar.errors import InputError
from autopar.runtime.agreement import agree
from autopar.runtime.padding import CHOICES, IGNORED_BY_DEFAULT, padded, require_ignored
from autopar.runtime.share import Share, as_call, named
from autopar.torch_private import pytree

Last = Literal["error", "drop", "pad", "replan"]


def shard_loader(
    loader: DataLoader[Any],
    parallel: ParallelModule,
    *,
    last: Last = "error",
    labels: Sequence[str] = ("labels",),
    ignore: int = IGNORED_BY_DEFAULT,
    whole: bool = False,
) -> ShardLoader:
    """The same batches, as DTensors of which each rank loads its own part; call it on every rank, with equal loaders.

    Batches are what the module is called with: mappings by name, tuples by position. `last` says what becomes of a batch with
    fewer samples than planned: "error"; "drop"; "pad" repeats samples and sets their `labels` to `ignore`, for losses that
    ignore such labels (InputError for others); "replan" passes it whole, and the module plans for it once. With `whole` every
    rank loads all samples and cuts them then, for batches that are padded to their longest sample; iterable datasets, and
    loaders without automatic batches, are always read so.

    A shuffling loader should have a `generator` seeded alike on all ranks: then the order is the serial one. One without gets a
    seed from rank 0. Raises InputError at once where it is known that the last batch is short and `last` is "error", RankError
    where ranks go through the samples in different orders.

    >>> # for batch in autopar.shard_loader(loader, parallel, last="drop"): parallel(**batch).loss.backward()
    """
    if last not in get_args(Last):
        raise InputError(f"last={last!r} is none of {', '.join(get_args(Last))}")
    return ShardLoader(loader=loader, parallel=parallel, last=last, labels=tuple(labels), ignore=ignore, whole=whole)


@dataclass(kw_only=True)
class Due:
    """A batch on its way: whose share was asked for (None: all of it), and how many of its samples are real."""

    share: Share | None
    count: int


class OwnRows:
    """A batch sampler that yields, of every batch of `batches`, the indices that this rank needs; `due` says what was asked."""

    def __init__(self, batches: Any, owner: ShardLoader) -> None:
        self.batches, self.owner = batches, owner
        self.due: deque[Due] = deque()

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Any]]:
        self.due.clear()
        for number, indices in enumerate(self.batches):
            indices = list(indices)
            if number == 0:
                order = hashlib.sha256(repr(indices).encode()).hexdigest()[:12]
                agree({"about": "an epoch of shard_loader", "order of samples": f"first batch {order}"})
            share = self.owner.share(len(indices))
            if share is None and self.owner.is_short(len(indices)):
                if self.owner.last == "drop":
                    continue
                share = self.owner.padding(len(indices))
            self.due.append(Due(share=share, count=len(indices)))
            if share is not None and len(indices) < share.rows:
                indices = [indices[i] for i in padded(len(indices), share.rows).tolist()]
            yield indices if share is None else [indices[row] for row in share.own]


@dataclass(kw_only=True)
class ShardLoader:
    """What `shard_loader` gives: iterate it as the loader; `len` and `loader.sampler.set_epoch` are the loader's."""

    loader: DataLoader[Any]
    parallel: ParallelModule
    last: Last
    labels: tuple[str, ...]
    ignore: int
    whole: bool
    own: DataLoader[Any] | None = field(init=False, default=None)
    rows: OwnRows | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        batches = agreeing(self.loader)
        iterable = isinstance(self.loader.dataset, IterableDataset)
        self.short = 0 if iterable else _remainder(batches)
        if self.short and self.last == "error":
            raise InputError(self.complaint(self.short, int(batches.batch_size)))
        if not (self.whole or iterable or batches is None):
            self.rows = OwnRows(batches, self)
            self.own = rebuilt(self.loader, self.rows)

    @property
    def dataset(self) -> Any:
        return self.loader.dataset

    def __len__(self) -> int:
        return len(self.loader) - (1 if self.short and self.last == "drop" else 0)

    def __iter__(self) -> Iterator[Any]:
        if self.own is None or self.rows is None:
            for batch in self.loader:
                count = _count(batch)
                share = self.share(count)
                if share is None and self.is_short(count):
                    if self.last == "drop":
                        continue
                    share = self.padding(count)
                yield batch if share is None else self.delivered(share, count, self.cut(share, count, batch))
            return
        for batch in self.own:
            due = self.rows.due.popleft()
            yield batch if due.share is None else self.delivered(due.share, due.count, batch)

    def share(self, rows: int) -> Share | None:
        """This rank's share of batches of so many samples, if there is a program for them in the module's mode."""
        fitting = (Share.of(variant) for variant in self.parallel.variants_now)
        return next((share for share in fitting if share is not None and share.rows == rows), None)

    def is_short(self, count: int) -> bool:
        """Whether the batch has fewer samples than planned, and the user does not want it planned; raises for "error"."""
        usual = self.usual()
        if usual is None or self.last == "replan":
            return False
        if self.last == "error" or count > usual.rows:
            raise InputError(self.complaint(count, usual.rows))
        return True

    def usual(self) -> Share | None:
        """Of the program that was planned first for this mode."""
        return next((share for v in self.parallel.variants_now if (share := Share.of(v)) is not None), None)

    def padding(self, count: int) -> Share:
        """The share of the full batch that a short one becomes; raises InputError if the loss would count what is added."""
        share = self.usual()
        assert share is not None, "nothing is short before anything is planned"
        require_ignored(share.variant.program, self.labels, self.ignore)
        return share

    def complaint(self, count: int, rows: int) -> str:
        return (
            f'a batch of {count} samples, where {rows} are planned: {CHOICES}, or last="pad" for a loss that ignores labels of '
            f"{self.ignore}, or give the loader drop_last=True or another batch_size"
        )

    def cut(self, share: Share, count: int, batch: Any) -> Any:
        """The rows that this rank needs, of a whole batch."""
        index = padded(count, share.rows)[list(share.own)]
        return pytree.tree_map(lambda leaf: leaf[index] if _is_rows(leaf, count) else leaf, _plain(batch))

    def delivered(self, share: Share, count: int, loaded: Any) -> Any:
        """Own rows of a batch as DTensors of the whole batch, rows that were added marked in their labels."""
        loaded = _plain(loaded)
        names = named(self.parallel.known_variants, share.variant, loaded)
        added = torch.tensor([row >= count for row in share.own])

        def one(leaf: Any) -> Any:
            name = names.get(id(leaf))
            if name is None:
                return leaf
            if name in self.labels and bool(added.any()):
                leaf = leaf.clone()
                leaf[added] = self.ignore
            return share.piece(name, leaf)

        return pytree.tree_map(one, loaded)


def agreeing(loader: DataLoader[Any]) -> Any:
    """The batch sampler, the same on all ranks: one that shuffles without a generator gets rank 0's seed. None without one."""
    batches, sampler = loader.batch_sampler, loader.sampler
    plain = type(batches) is BatchSampler and type(sampler) is RandomSampler and sampler.generator is None
    if not plain or not isinstance(batches, BatchSampler) or not isinstance(sampler, RandomSampler):
        return batches
    seed: list[int] = [int(torch.empty((), dtype=torch.int64).random_().item())]
    dist.broadcast_object_list(seed, src=0)
    generator = torch.Generator().manual_seed(seed[0])
    again = RandomSampler(
        sampler.data_source, replacement=sampler.replacement, num_samples=sampler.num_samples, generator=generator
    )
    return BatchSampler(again, batches.batch_size, batches.drop_last)


def rebuilt(loader: DataLoader[Any], batches: OwnRows) -> DataLoader[Any]:
    """The same loader with other batches."""
    return DataLoader(
        loader.dataset,
        batch_sampler=batches,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


def own_slice(parallel: ParallelModule, batch: Any) -> Any:
    """Pieces of a batch that this rank has already, as DTensors of the whole batch, to call the module with.

    Every tensor that is an input has to have the local shape of the module's first plan; raises InputError.
    """
    variant, batch = parallel.variants[0], _plain(batch)
    names = named(parallel.known_variants, variant, batch)

    def one(leaf: Any) -> Any:
        if id(leaf) not in names:
            return leaf
        planned = variant.plan.inputs[names[id(leaf)]]
        local = planned.placement.local_shape(planned.shape, variant.plan.mesh.sizes)
        if tuple(leaf.shape) != local:
            raise InputError(
                f"input {names[id(leaf)]} is {list(leaf.shape)}, this rank's piece of {list(planned.shape)} at "
                f"[{planned.placement}] is {list(local)}: pass just that, or the whole batch without own_slice"
            )
        return variant.whole(names[id(leaf)], leaf)

    return pytree.tree_map(one, batch)


def _plain(batch: Any) -> Any:
    """Mappings as dicts, so that all leaves are seen."""
    return dict(batch) if isinstance(batch, Mapping) else batch


def _remainder(batches: Any) -> int:
    """How many samples the last batch has, if they are fewer than the others and that is known."""
    if type(batches) is not BatchSampler or batches.drop_last:
        return 0
    try:
        return len(batches.sampler) % batches.batch_size  # type: ignore[arg-type]
    except TypeError:
        return 0


def _count(batch: Any) -> int:
    """Samples of a batch: dim 0 of its first tensor."""
    leaves = pytree.tree_leaves(as_call(batch))
    return next((int(leaf.shape[0]) for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim), 0)


def _is_rows(leaf: Any, count: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == count
