"""The ops of local graphs that draw random numbers: `autopar::dropout` and `autopar::draw`.

A draw has no hidden state. It gets a key, which says what it draws, and where in the whole tensor its piece lies; so it can
be run again in backward, and agrees with every other device that has the same piece. Dropout is linear in what it is applied
to, so its backward is itself, and no mask is ever kept.

Keys come in two kinds, told apart by their dtype. int64 [draws, KEY_NUMBERS]: numbers are hashes of key and place
(`autopar.ops.counters`). uint8 [draws, bytes]: states of torch's own generator; every device draws the whole tensor as a
serial run would, and takes its piece: slow, and equal to that run bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from autopar.ops.counters import DRAWN, Cut, drop

KEY = "random_key"
"""The placeholder of a local graph that holds the keys of its draws."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What one op of a program draws: `kind` and its `numbers`, of this `shape` and dtype as a whole. `order`: its dims as they
    lie in memory, slowest first; empty where that is their own order. (Torch's generator fills memory.)"""

    kind: str
    numbers: tuple[float, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    order: tuple[int, ...] = ()


SERIAL: Mapping[str, Callable[[Tensor, Sequence[float]], Tensor]] = {
    "dropout": lambda like, at: torch.nn.functional.dropout(torch.ones_like(like), at[0]),
    "bernoulli": lambda like, at: like.bernoulli_(at[0]),
    "uniform": lambda like, at: like.uniform_(at[0], at[1]),
    "normal": lambda like, at: like.normal_(at[0], at[1]),
    "exponential": lambda like, at: like.exponential_(at[0]),
    "integers": lambda like, at: like.random_(int(at[0]), int(at[1])),
    "permutation": lambda like, at: torch.randperm(like.numel(), dtype=like.dtype, device=like.device),
}
"""Kind of draw -> the same from torch's own generator, as eager models draw it."""


def draw_whole(draw: Draw, device: torch.device) -> Tensor:
    """From the state in which the generator of the device is."""
    order = draw.order or range(len(draw.shape))
    memory = torch.empty([draw.shape[dim] for dim in order], dtype=draw.dtype, device=device)
    return SERIAL[draw.kind](memory.permute([*map(order.index, range(len(order)))]), draw.numbers)


def generator_state(device: torch.device) -> Tensor:
    """Of the device's default generator: uint8, on the CPU."""
    return torch.get_rng_state() if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)


def set_generator_state(state: Tensor, device: torch.device) -> None:
    """(Of a view into a larger tensor torch 2.13's `set_rng_state` reads the wrong bytes, beyond it even: hence the copy.)"""
    if device.type == "cpu":
        torch.set_rng_state(state.cpu().clone())
    else:
        torch.get_device_module(device).set_rng_state(state.cpu().clone(), device)


@contextmanager
def generator_in(state: Tensor, device: torch.device) -> Iterator[None]:
    """With the device's default generator in a state, for a while."""
    before = generator_state(device)
    set_generator_state(state, device)
    try:
        yield
    finally:
        set_generator_state(before, device)


def piece_from(state: Tensor, draw: Draw, cut: Cut, device: torch.device) -> Tensor:
    """This device's piece of what a serial run draws from a state of the generator."""
    with generator_in(state, device):
        return cut.take(draw_whole(draw, device))


def cut_of(sizes: Sequence[int], cuts: Sequence[int], places: Sequence[Tensor]) -> Cut:
    """`cuts` has pairs, one after the other: torch's schemas know no lists of pairs."""
    return Cut(sizes, tuple(zip(cuts[::2], cuts[1::2], strict=True)), places)


def dropout_piece(
    x: Tensor,
    key: Tensor,
    site: int,
    probability: float,
    sizes: Sequence[int],
    cuts: Sequence[int],
    places: Sequence[Tensor],
    order: Sequence[int] = (),
) -> Tensor:
    """A piece of `aten.dropout`; linear in x."""
    cut = cut_of(sizes, cuts, places)
    if key.dtype == torch.int64:
        return drop(x, key[site], probability, cut)
    draw = Draw(kind="dropout", numbers=(probability,), shape=tuple(sizes), dtype=x.dtype, order=tuple(order))
    return (x * piece_from(key[site], draw, cut, x.device).reshape(x.shape)).contiguous()


def draw_piece(
    key: Tensor,
    site: int,
    kind: str,
    numbers: Sequence[float],
    shape: Sequence[int],
    sizes: Sequence[int],
    cuts: Sequence[int],
    places: Sequence[Tensor],
    dtype: torch.dtype,
    order: Sequence[int] = (),
) -> Tensor:
    """A piece, of a local shape, of what an op draws that only makes random numbers."""
    cut = cut_of(sizes, cuts, places)
    if key.dtype == torch.int64:
        return DRAWN[kind](key[site], cut, numbers, dtype, key.device).view(list(shape))
    draw = Draw(kind=kind, numbers=tuple(numbers), shape=tuple(sizes), dtype=dtype, order=tuple(order))
    return piece_from(key[site], draw, cut, key.device).reshape(list(shape)).contiguous()


LIBRARY: Any = torch.library.Library("autopar", "FRAGMENT")  # type: ignore[no-untyped-call]
"""Holds the registrations for as long as the process lives."""
LIBRARY.define(
    "dropout(Tensor x, Tensor key, int site, float probability, SymInt[] sizes, int[] cuts, Tensor[] places, "
    "int[] order=[]) -> Tensor"
)
LIBRARY.define(
    "draw(Tensor key, int site, str kind, float[] numbers, SymInt[] shape, SymInt[] sizes, int[] cuts, Tensor[] places, "
    "ScalarType dtype, int[] order=[]) -> Tensor"
)
LIBRARY.impl("dropout", dropout_piece, "CompositeExplicitAutograd")
LIBRARY.impl("draw", draw_piece, "CompositeExplicitAutograd")
DROPOUT, DRAW = torch.ops.autopar.dropout.default, torch.ops.autopar.draw.default


@torch.library.register_fake("autopar::dropout", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake("autopar::draw", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _(
    key: Tensor, site: int, kind: str, numbers: Any, shape: Any, sizes: Any, cuts: Any, places: Any, dtype: Any, order: Any = ()
) -> Tensor:
    return key.new_empty(shape, dtype=dtype)


class Dropout(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, key: Tensor, site: int, probability: float, sizes: Any, cuts: Any, order: Any, *places: Tensor
    ) -> Tensor:
        ctx.given, ctx.order = (site, probability, sizes, cuts), order
        ctx.save_for_backward(key, *places)
        return cast(Tensor, DROPOUT(x, key, site, probability, sizes, cuts, places, order))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        key, *places = ctx.saved_tensors
        return DROPOUT(grad, key, *ctx.given, places, ctx.order), *(None for _ in range(6)), *(None for _ in places)


def dropout(
    x: Tensor,
    key: Tensor,
    site: int,
    probability: float,
    sizes: Sequence[int],
    cuts: Sequence[int],
    places: Sequence[Tensor],
    order: Sequence[int] = (),
) -> Tensor:
    """A piece of `aten.dropout`, differentiable. x is any shape whose elements are those of the piece, in order.

    The whole is made of loops of these `sizes`; `cuts` has, for each mesh axis that cuts one, the loop's number and the
    number of parts, and `places` which part is here; `order` is that of the loops in a serial run's memory, as of `Draw`.
    `site` is the row of `key` to use. Backward keeps nothing of x's size.
    """
    return cast(Tensor, Dropout.apply(x, key, site, probability, sizes, cuts, order, *places))  # type: ignore[no-untyped-call]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    random_key: Tensor,
    site: int,
    probability: float,
    sizes: Sequence[int],
    cuts: Sequence[int],
    places: Sequence[Tensor],
    *,
    causal_loops: tuple[int, int] | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`aten.scaled_dot_product_attention` with dropout, written out: its scores [..., queries, keys] are made as a whole.

    `sizes`, `cuts` and `places` are those of the scores; `causal_loops` the first and last (exclusive) of the loops of the
    queries, under `is_causal`. The result is what torch's own kernel for this case gives.
    """
    factor = math.sqrt(1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if enable_gqa:
        times = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(times, -3), value.repeat_interleave(times, -3)
    scores = (query * factor) @ (key.transpose(-2, -1) * factor)
    if causal_loops is not None:
        rows = cut_of(sizes, cuts, places).indices(*causal_loops, query.device)
        later = torch.arange(key.shape[-2], device=query.device) > rows.unsqueeze(1)
        weights = torch.softmax(scores.masked_fill(later, -math.inf), -1)
    elif mask is None:
        weights = torch.softmax(scores, -1)
    else:
        weights = masked_softmax(scores, mask)
    return dropout(weights, random_key, site, probability, sizes, cuts, places) @ value


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Rows in which everything is masked become zero, not nan."""
    masked = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return cast(Tensor, torch.ops.aten._safe_softmax(masked, -1))
