"""Micro-batches: by how many a global batch may be divided, and example inputs of another batch size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from autopar.errors import InputError
from autopar.torch_private import pytree


def micro_batch_counts(global_batch: int, smallest: int = 1, micro_batch: int | None = None) -> tuple[int, ...]:
    """Into how many equal micro-batches of at least `smallest` samples (or of just `micro_batch`) a batch can be split.

    Fewest first.

    >>> micro_batch_counts(12, 3), micro_batch_counts(12, micro_batch=2)
    ((1, 2, 3, 4), (6,))
    """
    given = (("global batch", global_batch), ("smallest micro-batch", smallest), ("micro-batch", micro_batch or 1))
    for what, size in given:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(f"{what} {size!r}: give a whole number, at least 1")
    if smallest > global_batch:
        raise InputError(f"a micro-batch of at least {smallest} samples is larger than the global batch of {global_batch}")
    if micro_batch is not None:
        if global_batch % micro_batch:
            near = sorted(
                {global_batch // micro_batch * micro_batch or micro_batch, -(-global_batch // micro_batch) * micro_batch}
            )
            raise InputError(
                f"a global batch of {global_batch} samples is not divisible by micro-batches of {micro_batch}: "
                f"give {' or '.join(map(str, near))}"
            )
        return (global_batch // micro_batch,)
    return tuple(n for n in range(1, global_batch // smallest + 1) if global_batch % n == 0)


def batch_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """The batch size of example inputs: dim 0 of the first tensor that has dims; raises InputError if there is none."""
    for leaf in pytree.tree_leaves((args, dict(kwargs))):
        if isinstance(leaf, torch.Tensor) and leaf.ndim:
            return int(leaf.shape[0])
    raise InputError("the example inputs have no tensor with a batch dim, so no global batch can be divided")


def with_batch(args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same inputs with so many samples: dim 0 of every tensor where it is the batch. Values repeat, or end earlier."""
    old = batch_of(args, kwargs)
    return pytree.tree_map(lambda leaf: resized(leaf, old, batch), (args, dict(kwargs)))  # type: ignore[no-any-return]


def resized(leaf: Any, old: int, new: int) -> Any:
    if not isinstance(leaf, torch.Tensor) or not leaf.ndim or leaf.shape[0] != old or old == new:
        return leaf
    return leaf.index_select(0, torch.arange(new, device=leaf.device) % old)
