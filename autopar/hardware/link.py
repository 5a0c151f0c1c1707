"""Links: what a collective costs between devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from autopar.ir.conversion import ALL_GATHER, ALL_REDUCE, ALL_TO_ALL, REDUCE_SCATTER

INTRA_NODE, INTER_NODE = "intra_node", "inter_node"

RING_ROUNDS = {ALL_GATHER: 1, REDUCE_SCATTER: 1, ALL_REDUCE: 2, ALL_TO_ALL: 1}
"""How often every device sends (n - 1) / n of the bytes: an all-reduce is a reduce-scatter and an all-gather."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """Between the devices of one mesh axis: `bytes_per_s` per device and direction as achieved, `latency_s` per hop."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    name: str
    bytes_per_s: float
    latency_s: float

    def __post_init__(self) -> None:
        if self.bytes_per_s <= 0 or self.latency_s < 0:
            raise ValueError(f"link {self.name!r}: bytes_per_s must be positive and latency_s not negative")

    def sent_bytes(self, kind: str, bytes: float, size: int) -> float:
        """Bytes that each of `size` devices sends.

        `kind` is one of `autopar.ir.conversion.COLLECTIVES`. `bytes` is the size of the tensor unsharded over this axis for
        all-gather, reduce-scatter and all-reduce, and of one device's piece for all-to-all.
        """
        return RING_ROUNDS[kind] * (size - 1) / size * bytes

    def collective_s(self, kind: str, bytes: float, size: int) -> float:
        """Seconds of one collective over `size` devices; arguments as in `sent_bytes`. Nothing to do on one device: 0."""
        return RING_ROUNDS[kind] * (size - 1) * self.latency_s + self.sent_bytes(kind, bytes, size) / self.bytes_per_s
