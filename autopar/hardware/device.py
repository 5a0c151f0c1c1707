"""Hardware: one kind of device, its memory and its links."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

from autopar.hardware.link import INTER_NODE, INTRA_NODE, Link
from autopar.hardware.named import find_link
from autopar.ir.mesh import MeshSpec

if TYPE_CHECKING:
    import torch

COST_MODEL_VERSION = 3
"""Raised whenever the same hardware file starts to give other times: plans carry it."""

FALLBACK_DTYPE = "float32"
"""Whose rate stands for dtypes without one of their own (integers, bool): such ops are bound by memory anyway."""

EFFICIENCIES = ("matmul", "memory")


@dataclass(frozen=True, kw_only=True)
class FitQuality:
    """How well measured seconds are met: |predicted / measured - 1| over `points` measurements, median and worst."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    points: int
    median_error: float
    worst_error: float


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One kind of device. `peak_*` are the vendor's figures, `efficiency` the fractions of them that good kernels reach.

    Times only ever use the achievable figures: `flops_per_s` (per dtype name, a multiply-add is two FLOPs; "tf32" is float32
    on tensor cores, for who asks for it) and `bytes_per_s`. `sources` has one line of text per figure, keyed by its path in
    the file. `links` has at least `intra_node` and `inter_node`. `fit`, of measured files, says how well they fit. `overlap`:
    the share of a collective's time for which the device can compute something else meanwhile; 1 where its links need none of
    its computing power, 0 where processors do the sending themselves. `skew_s`: how long devices wait for each other where they
    have computed between two collectives and nothing else hides that they are not through at the same moment.
    `update_bytes_per_s`: the memory bandwidth of optimizers' steps, which write into memory that is there already; None: that
    of other ops.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    name: str
    device_type: Literal["cpu", "cuda"]
    peak_flops_per_s: Mapping[str, float]
    peak_bytes_per_s: float
    efficiency: Mapping[str, float]
    launch_s: float
    memory_bytes: int
    devices_per_node: int
    links: Mapping[str, Link]
    sources: Mapping[str, str]
    fit: Mapping[str, FitQuality] = field(default_factory=dict)
    overlap: float = 1.0
    skew_s: float = 0.0
    update_bytes_per_s: float | None = None
    version: int = COST_MODEL_VERSION

    def __post_init__(self) -> None:
        if self.version != COST_MODEL_VERSION:
            raise ValueError(f"written for cost model {self.version}, this is {COST_MODEL_VERSION}")
        if FALLBACK_DTYPE not in self.peak_flops_per_s:
            raise ValueError(f"peak_flops_per_s needs at least {FALLBACK_DTYPE}")
        if set(self.efficiency) != set(EFFICIENCIES) or not all(0 < e <= 1 for e in self.efficiency.values()):
            raise ValueError(f"efficiency needs {' and '.join(EFFICIENCIES)}, each above 0 and at most 1")
        if not set(self.links) >= {INTRA_NODE, INTER_NODE}:
            raise ValueError(f"links need at least {INTRA_NODE} and {INTER_NODE}, got {sorted(self.links)}")
        if not 0 <= self.overlap <= 1:
            raise ValueError(f"overlap is a share, from 0 to 1, not {self.overlap:g}")
        positive = (*self.peak_flops_per_s.values(), self.peak_bytes_per_s, self.memory_bytes, self.devices_per_node)
        positive += () if self.update_bytes_per_s is None else (self.update_bytes_per_s,)
        if min(positive) <= 0 or min(self.launch_s, self.skew_s) < 0:
            raise ValueError("rates, memory_bytes and devices_per_node must be positive, launch_s and skew_s not negative")

    @cached_property
    def flops_per_s(self) -> dict[str, float]:
        """Achievable FLOP/s of matmul-like ops by dtype name."""
        return {dtype: peak * self.efficiency["matmul"] for dtype, peak in self.peak_flops_per_s.items()}

    @cached_property
    def bytes_per_s(self) -> float:
        """Achievable memory bandwidth, reads and writes together."""
        return self.peak_bytes_per_s * self.efficiency["memory"]

    def matmul_s(self, flops: float, dtype: torch.dtype | str) -> float:
        """Seconds of arithmetic alone, at the rate of matmuls of this dtype."""
        name = str(dtype).removeprefix("torch.")
        return flops / self.flops_per_s.get(name, self.flops_per_s[FALLBACK_DTYPE])

    def time_s(self, flops: float, bytes: float, dtype: torch.dtype | str) -> float:
        """Seconds of one op by the roofline: max(flops / rate, bytes / bandwidth) + launch."""
        return max(self.matmul_s(flops, dtype), bytes / self.bytes_per_s) + self.launch_s

    def update_s(self, bytes: float) -> float:
        """Seconds in which an optimizer's step reads and writes so many bytes."""
        return bytes / (self.update_bytes_per_s or self.bytes_per_s)

    def axis_links(self, mesh: MeshSpec) -> tuple[Link, ...]:
        """The link of each mesh axis: the one that the mesh names, else by nodes; raises HardwareError for an unknown name.

        By nodes: the innermost axes that fill whole nodes stay inside them, the others leave. An axis that leaves has the
        link between nodes for all its rounds, also where some of its devices share a node: an upper bound on the time.
        """
        named = mesh.links or (None,) * len(mesh)
        return tuple(
            self.links[INTRA_NODE if self._within_node(mesh, axis) else INTER_NODE] if name is None else self.link(name)
            for axis, name in enumerate(named)
        )

    def link(self, name: str) -> Link:
        """A link of this hardware, or else one that ships with the package, by name; raises HardwareError."""
        return find_link(name, self.links, self.name)

    def _within_node(self, mesh: MeshSpec, axis: int) -> bool:
        """Whether groups along `axis` never cross nodes: ranks are dealt to nodes in order, innermost axis fastest."""
        block = math.prod(mesh.sizes[axis:])
        return mesh.devices <= self.devices_per_node or self.devices_per_node % block == 0
