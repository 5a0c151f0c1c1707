"""What the ops of `autopar.ops.exchanged` do inside: products, rows sent, memory; all of it at even load.

At even load a device gets as many rows as its own tokens have choices, and each expert its share of them. Everything follows
from shapes, as for any op: what the router really does is known at run time only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Shape = Sequence[Any]
NUMBER_BYTES = 8


def flops(
    x: Shape,
    index: Shape,
    up: Shape,
    down: Shape,
    activation: str,
    groups: Any,
    sizes: Any,
    share: float = 1.0,
    *_: Any,
    **__: Any,
) -> Any:
    """Products before and after the activation; a multiply-add is two."""
    return shared(2 * math.prod(index) * (math.prod(up[1:]) + math.prod(down[1:])), share)


def backward_flops(grad: Shape, x: Shape, index: Shape, up: Shape, down: Shape, *more: Any, **_: Any) -> Any:
    """Two products for each of forward, and those before the activation again."""
    share = more[3] if len(more) > 3 else 1.0
    return shared(2 * math.prod(index) * (3 * math.prod(up[1:]) + 2 * math.prod(down[1:])), share)


def shared(count: Any, share: float) -> Any:
    return count if share == 1 else count * share


@dataclass(frozen=True)
class Rows:
    """Bytes of the rows that are expected on one device, by their width: k of tokens, wide before the activation, n after it,
    o of results; `numbers` of an integer for each."""

    k: int
    wide: int
    n: int
    o: int
    numbers: int

    @staticmethod
    def of(x: Tensor, index: Tensor, up: Tensor, down: Tensor, share: float) -> Rows:
        widths = (x.shape[-1], math.prod(up.shape[1:-1]), down.shape[2], down.shape[1])
        sizes = [x.element_size() * width for width in widths]
        return Rows(*(round(index.numel() * size * share) for size in (*sizes, NUMBER_BYTES)))


@dataclass(frozen=True)
class Inside:
    """`sent`: group and bytes of each all-to-all. `alive`: the moments when most is alive, as bytes of each tensor, results of
    the op apart. `moved`: bytes of tensors that are written and read."""

    sent: Sequence[tuple[str, int]]
    alive: Sequence[Sequence[int]]
    moved: Sequence[int]


def forward_inside(
    x: Tensor,
    index: Tensor,
    up: Tensor,
    down: Tensor,
    activation: str,
    groups: Sequence[str],
    sizes: Sequence[int],
    share: float = 1.0,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
) -> Inside:
    """Sends numbers of rows, tokens there, results back. Most is alive where rows travel, or around the activation."""
    rows, gated = Rows.of(x, index, up, down, share), up.dim() == 4
    inner = [rows.n] * (2 if gated else 1)
    numbers = [rows.numbers] * (1 + len(groups))
    return Inside(
        sent=[*counts(down, groups, sizes), *travels(groups, rows.k), *travels(groups, rows.o)],
        alive=[
            [*numbers, rows.k, rows.k],
            [*numbers, rows.k, rows.wide, *inner],
            [*numbers, rows.k, rows.n, rows.o],
            [*numbers, rows.o, rows.o],
        ],
        moved=[*[rows.k, rows.k] * (1 + len(groups)), rows.wide, *inner, *[rows.o, rows.o] * (1 + len(groups))],
    )


def backward_inside(
    grad: Tensor,
    x: Tensor,
    index: Tensor,
    up: Tensor,
    down: Tensor,
    activation: str,
    groups: Sequence[str],
    sizes: Sequence[int],
    share: float = 1.0,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
) -> Inside:
    """Sends numbers of rows, tokens and gradients there, gradients back."""
    rows, gated = Rows.of(x, index, up, down, share), up.dim() == 4
    inner = [rows.n] * (2 if gated else 1)
    numbers = [rows.numbers] * (1 + len(groups))
    travelling = [rows.k] * 2 + [rows.o]
    return Inside(
        sent=[*counts(down, groups, sizes), *(s for size in travelling for s in travels(groups, size))],
        alive=[
            [*numbers, rows.k, rows.o, rows.o],
            [*numbers, rows.k, rows.o, rows.wide, *inner],
            [*numbers, rows.k, rows.wide, *inner, rows.n, *([rows.wide] if gated else [])],
            [*numbers, rows.k, rows.wide, rows.k],
            [*numbers, rows.k, rows.k],
        ],
        moved=[*travelling * 2 * (1 + len(groups)), rows.wide, *inner, rows.n, *inner, rows.wide, rows.k],
    )


def counts(down: Tensor, groups: Sequence[str], sizes: Sequence[int]) -> list[tuple[str, int]]:
    """A device says for each expert that may lie behind a group how many rows it sends."""
    return [(group, NUMBER_BYTES * down.shape[0] * math.prod(sizes[i:])) for i, group in enumerate(groups)]


def travels(groups: Sequence[str], size: int) -> list[tuple[str, int]]:
    return [(group, size) for group in groups]
