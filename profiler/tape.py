"""The tape of a run: which memory was made and let go, which kernels ran, in order."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import sympy

Size: TypeAlias = int | sympy.Expr
FORWARD, BACKWARD = "forward", "backward"

STATE, INPUT, MADE, GRADIENT = "state", "input", "made", "gradient"


@dataclass(eq=False)
class Storage:
    """Memory that one or more tensors share. `op` and `path` made it; `saved`: backward reads it."""

    bytes: Size
    kind: str
    path: str = ""
    op: str = ""
    saved: bool = False
    slot: int | None = None
    """Of what enters or leaves a block: its position there."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One op that runs (a view does not): FLOPs, bytes read and written, dtype name.

    `flops` are those of products (matmuls, convolutions, attention), `torch_flops` what `FlopCounterMode` counts for the op;
    the two differ where docs/profile-accuracy.md says. `other_flops` is the arithmetic of ops without products.
    """

    op: str
    path: str
    flops: Size
    torch_flops: Size
    other_flops: Size
    bytes: Size
    dtype: str


@dataclass(frozen=True)
class Made:
    storage: Storage


@dataclass(frozen=True)
class Freed:
    storage: Storage


@dataclass(frozen=True, eq=False)
class BlockCall:
    """A repeated block runs here, forward or backward: its own tape, and which memory of this tape takes its slots."""

    tape: Tape
    path: str
    enters: tuple[Storage | None, ...]
    leaves: tuple[Storage, ...]


Event: TypeAlias = Made | Freed | Kernel | BlockCall


@dataclass(eq=False)
class Tape:
    phase: str
    events: list[Event] = field(default_factory=list)
    enters: dict[int, Storage] = field(default_factory=dict)
    leaves: dict[int, Storage] = field(default_factory=dict)
    """Of a block's tape: the memory that enters and leaves, by slot."""

    @property
    def kernels(self) -> list[Kernel]:
        return [event for event in self.events if isinstance(event, Kernel)]


def product(sizes: Any) -> Size:
    return math.prod(sizes)
