"""Real English text without a download: the documentation topics that ship with CPython, as bytes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

VOCABULARY = 256


def corpus() -> Tensor:
    """All topics one after another, as int64 byte values [bytes]."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()


def batches(data: Tensor, *, batch: int, seq: int, steps: int, seed: int = 0) -> Iterator[dict[str, Tensor]]:
    """`steps` global batches of random windows [batch, seq]; the same on every process."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(0, len(data) - seq, (batch,), generator=generator)
        ids = torch.stack([data[int(s) : int(s) + seq] for s in starts])
        yield {"input_ids": ids, "labels": ids}


def readable(tokens: Tensor) -> str:
    return bytes(tokens.tolist()).decode("utf-8", errors="replace")
