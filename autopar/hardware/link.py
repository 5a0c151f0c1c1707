"""Links: what a collective costs between devices.

    seconds = rounds(n) * latency + factor(n) * bytes / bandwidth         over n devices

`rounds` (messages that wait for each other) and `factor` (how much of the bytes each device sends) belong to the algorithm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from autopar.ir.conversion import ALL_GATHER, ALL_REDUCE, ALL_TO_ALL, COLLECTIVES, REDUCE_SCATTER

INTRA_NODE, INTER_NODE = "intra_node", "inter_node"


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """How a collective is carried out over n > 1 devices; `formulas` says both functions as text, for people."""

    rounds: Callable[[int], float]
    factor: Callable[[int], float]
    formulas: tuple[str, str]


def levels(n: int) -> int:
    """Height of a binary tree over n devices: log2(n), rounded up."""
    return (n - 1).bit_length()


SHARE, TWICE = "(n-1)/n", "2(n-1)/n"

ALGORITHMS: Mapping[str, Mapping[str, Algorithm]] = {
    **{
        kind: {
            "ring": Algorithm(rounds=lambda n: n - 1, factor=lambda n: (n - 1) / n, formulas=("n-1", SHARE)),
            "tree": Algorithm(rounds=levels, factor=lambda n: (n - 1) / n, formulas=("log2 n", SHARE)),
            "direct": Algorithm(rounds=lambda n: 1, factor=lambda n: (n - 1) / n, formulas=("1", SHARE)),
        }
        for kind in (ALL_GATHER, REDUCE_SCATTER)
    },
    ALL_REDUCE: {
        "ring": Algorithm(rounds=lambda n: 2 * (n - 1), factor=lambda n: 2 * (n - 1) / n, formulas=("2(n-1)", TWICE)),
        "tree": Algorithm(rounds=lambda n: 2 * levels(n), factor=lambda n: 2, formulas=("2 log2 n", "2")),
        "halving": Algorithm(rounds=lambda n: 2 * levels(n), factor=lambda n: 2 * (n - 1) / n, formulas=("2 log2 n", TWICE)),
        "direct": Algorithm(rounds=lambda n: 2, factor=lambda n: 2 * (n - 1) / n, formulas=("2", TWICE)),
    },
    ALL_TO_ALL: {
        "pairwise": Algorithm(rounds=lambda n: n - 1, factor=lambda n: (n - 1) / n, formulas=("n-1", SHARE)),
        "direct": Algorithm(rounds=lambda n: 1, factor=lambda n: (n - 1) / n, formulas=("1", SHARE)),
        "ring": Algorithm(rounds=lambda n: n - 1, factor=lambda n: (n - 1) / 2, formulas=("n-1", "(n-1)/2")),
        "tree": Algorithm(rounds=levels, factor=lambda n: levels(n) / 2, formulas=("log2 n", "log2(n)/2")),
    },
}
"""Collective -> name -> algorithm.

Ring: pieces pass from neighbour to neighbour. Tree: binomial for all-gather and reduce-scatter, a pipelined reduction to a root
and broadcast from it for all-reduce, Bruck's for all-to-all. Halving: Rabenseifner's reduce-scatter and all-gather. Pairwise:
every pair exchanges its pieces, one pair per device at a time. Direct: all of these at once, as over a switch.
Thakur, Rabenseifner, Gropp: Optimization of Collective Communication Operations in MPICH, 2005.
"""

REDUCTIONS = (ALL_REDUCE, REDUCE_SCATTER)
"""What travels in buckets, where gradients are sent so."""

USUAL: Mapping[str, str] = {ALL_GATHER: "ring", REDUCE_SCATTER: "ring", ALL_REDUCE: "ring", ALL_TO_ALL: "pairwise"}
"""What is assumed of a link that does not say: NCCL's choice for messages that are not small."""


@dataclass(frozen=True, kw_only=True)
class LinkFigures:
    """What one collective was measured to reach on a link, in place of the figures that hold for all."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    bytes_per_s: float
    latency_s: float


@dataclass(frozen=True, kw_only=True)
class Link:
    """Between the devices of one mesh axis: `bytes_per_s` per device and direction as achieved, `latency_s` per round.

    `bytes_per_s` is a device's share while all devices of a node send at once, so an adapter that four devices share counts
    a quarter. `algorithms` names one per collective, `figures` are of single collectives, where they were measured.
    `peers`: a mesh of cables to so many others, instead of a switch; n devices then use n - 1 of them.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    name: str
    bytes_per_s: float
    latency_s: float
    algorithms: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, LinkFigures] = field(default_factory=dict)
    peers: int | None = None

    def __post_init__(self) -> None:
        own = LinkFigures(bytes_per_s=self.bytes_per_s, latency_s=self.latency_s)
        for figures in (own, *self.figures.values()):
            if figures.bytes_per_s <= 0 or figures.latency_s < 0:
                raise ValueError(f"link {self.name!r}: bytes_per_s must be positive and latency_s not negative")
        if unknown := sorted({*self.algorithms, *self.figures} - set(COLLECTIVES)):
            raise ValueError(f"link {self.name!r}: {unknown[0]!r} is none of {', '.join(COLLECTIVES)}")
        for kind, algorithm in self.algorithms.items():
            if algorithm not in ALGORITHMS[kind]:
                raise ValueError(f"link {self.name!r}: {kind} by {algorithm!r} is none of {', '.join(ALGORITHMS[kind])}")
        if self.peers is not None and self.peers < 1:
            raise ValueError(f"link {self.name!r}: peers must be positive")

    def algorithm(self, kind: str) -> Algorithm:
        """How `kind` (one of `autopar.ir.conversion.COLLECTIVES`) is carried out on this link."""
        return ALGORITHMS[kind][self.algorithms.get(kind, USUAL[kind])]

    def sent_bytes(self, kind: str, bytes: float, size: int) -> float:
        """Bytes that each of `size` devices sends.

        `bytes` is the size of the tensor unsharded over this axis for all-gather, reduce-scatter and all-reduce, and of one
        device's piece for all-to-all.
        """
        return self.algorithm(kind).factor(size) * bytes if size > 1 else 0.0

    def bucket_bytes(self, size: int) -> int:
        """A tensor of so many bytes is summed over `size` devices in twice the time of an empty one."""
        if size == 1:
            return 0
        empty, more = (self.collective_s(ALL_REDUCE, bytes, size) for bytes in (0, 2**20))
        return int(2**20 * empty / (more - empty))

    def collective_s(self, kind: str, bytes: float, size: int, *, buckets: bool = False) -> float:
        """Seconds of one collective over `size` devices; arguments as in `sent_bytes`. Nothing to do on one device: 0.

        `buckets`: reductions are parts of buckets of several (`bucket_bytes`), each with its share of the bucket's latency.
        """
        if size == 1:
            return 0.0
        figures = self.figures.get(kind, self)
        reached = figures.bytes_per_s * (1.0 if self.peers is None else min(1.0, (size - 1) / self.peers))
        latency_s = self.algorithm(kind).rounds(size) * figures.latency_s
        if buckets and kind in REDUCTIONS and bytes < (bucket := self.bucket_bytes(size)):
            latency_s *= bytes / bucket
        return latency_s + self.sent_bytes(kind, bytes, size) / reached
