"""Mixtures of experts whose tokens travel: cut by the same mesh axes, tokens go to their experts, and results come back.

How many rows a device gets is up to the router. No graph could say the shapes of what lies in between, so from tokens to what
their experts return it is one op, and so is its backward. Inside, sizes are those of the step: devices tell each other how many
rows will come, and no row is dropped, and none is padded. Backward is given what forward was given: it sends the tokens again,
and makes the products before the activation again, since what forward made of them has no shape under which it could be kept.

Over several axes rows travel axis by axis, the outermost first, as the experts lie. What this costs at even load is said by
`autopar.ops.exchanged_cost`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from autopar.ir.activations import activated, activated_backward
from autopar.ir.experts import grouped_mm
from autopar.ir.local_ranks import runs_together
from autopar.ops.collectives import c10d, run, wait
from autopar.ops.sharded.common import added_once

ARGUMENTS = (
    "Tensor x, Tensor index, Tensor up, Tensor down, str activation, str[] groups, int[] sizes, float share=1., "
    "Tensor? up_bias=None, Tensor? down_bias=None"
)


def exchange(rows: Tensor, received: Sequence[int], sent: Sequence[int], group: str) -> Tensor:
    """So many rows to and from each device of the group, one device's after the other's."""
    return wait(c10d.all_to_all_single(rows, received, sent, group))


@dataclass(frozen=True)
class Leg:
    """Along one axis: rows that go to and come from each device; `order` puts those that came in the order of their experts."""

    group: str
    sent: Sequence[int]
    received: Sequence[int]
    order: Tensor


@dataclass(frozen=True)
class Journey:
    """How rows travel: `order` has the rows that do, first those of the first expert; `ends` (int32) where those of each
    expert that is here end among the rows that arrive."""

    order: Tensor
    legs: tuple[Leg, ...]
    ends: Tensor

    @staticmethod
    def of(index: Tensor, experts: int, groups: Sequence[str], sizes: Sequence[int]) -> Journey:
        """For rows with these experts, of which each device has `experts`; rows of higher numbers stay at home."""
        ids, order = torch.sort(index.reshape(-1), stable=True)
        numbers = torch.arange(experts * math.prod(sizes), dtype=ids.dtype, device=ids.device)
        ends = torch.searchsorted(ids, numbers, right=True)
        counts = torch.diff(ends, prepend=ends.new_zeros(1))
        legs: list[Leg] = []
        for group, size in zip(groups, sizes, strict=True):
            leg, counts = leg_of(counts.view(size, -1), group)
            legs.append(leg)
        return Journey(order[: sum(legs[0].sent)], tuple(legs), counts.cumsum(0, dtype=torch.int32))

    def there(self, rows: Tensor) -> Tensor:
        for leg in self.legs:
            rows = exchange(rows, leg.received, leg.sent, leg.group)
            rows = rows.index_select(0, leg.order)
        return rows

    def back(self, rows: Tensor) -> Tensor:
        for leg in reversed(self.legs):
            rows = torch.empty_like(rows).index_copy_(0, leg.order, rows)
            rows = exchange(rows, leg.sent, leg.received, leg.group)
        return rows


def leg_of(counts: Tensor, group: str) -> tuple[Leg, Tensor]:
    """For counts [devices, experts of each] of the rows that go: the way, and the counts of the rows that have come."""
    size, experts = counts.shape
    coming = exchange(counts, [1] * size, [1] * size, group)
    sent, received = torch.stack([counts.sum(1), coming.sum(1)]).tolist()
    numbers = torch.arange(experts, device=counts.device).repeat(size)
    ids = torch.repeat_interleave(numbers, coming.reshape(-1))
    return Leg(group, sent, received, torch.sort(ids, stable=True).indices), coming.sum(0)


@dataclass(frozen=True)
class Products:
    """Of rows [rows, k] in the order of their experts, with weights as in `autopar.ir.experts`."""

    rows: Tensor
    up: Tensor
    down: Tensor
    activation: str
    ends: Tensor
    up_bias: Tensor | None
    down_bias: Tensor | None

    @property
    def gated(self) -> bool:
        return self.up.dim() == 4

    @cached_property
    def experts(self) -> Tensor:
        """Of each row."""
        counts = torch.diff(self.ends, prepend=self.ends.new_zeros(1))
        return torch.repeat_interleave(torch.arange(counts.shape[0], device=counts.device), counts)

    def biased(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        return rows if bias is None else rows.add_(bias.flatten(1).index_select(0, self.experts))

    def bias_gradient(self, grad: Tensor, bias: Tensor | None) -> list[Tensor]:
        """None where there is no bias."""
        return [] if bias is None else [torch.zeros_like(bias).flatten(1).index_add_(0, self.experts, grad).view_as(bias)]

    def wide(self) -> Tensor:
        return self.biased(grouped_mm(self.rows, self.up.flatten(1, -2).transpose(1, 2), self.ends), self.up_bias)

    def forward(self) -> Tensor:
        inner = activated(self.wide(), self.activation, self.gated)
        return self.biased(grouped_mm(inner, self.down.transpose(1, 2), self.ends), self.down_bias)

    def backward(self, grad: Tensor) -> list[Tensor]:
        """Gradients of up, down, biases if there are any, and rows."""
        wide = self.wide()
        down_grad = grouped_mm(grad.t(), activated(wide, self.activation, self.gated), self.ends)
        down_bias_grad = self.bias_gradient(grad, self.down_bias)
        grad = grouped_mm(grad, self.down, self.ends)
        grad = activated_backward(grad, wide, self.activation, self.gated)
        del wide
        biases = [*self.bias_gradient(grad, self.up_bias), *down_bias_grad]
        up_grad = grouped_mm(grad.t(), self.rows, self.ends).view_as(self.up)
        return [up_grad, down_grad, *biases, grouped_mm(grad, self.up.flatten(1, -2), self.ends)]


def results_of_experts(
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
) -> Tensor:
    """What the chosen experts return: x [..., k], index [..., choices] -> [..., choices, o].

    x and index are this device's tokens, up and down its experts; together the devices of the groups, of these sizes, have all
    experts, which index counts in the order of the groups, the first being the outermost. A number beyond them is that of no
    expert, and gives 0; `share` is the expected fraction of the others.
    """
    journey = Journey.of(index, down.shape[0], groups, sizes)
    rows = journey.there(flat(x).index_select(0, journey.order // index.shape[-1]))
    results = [Products(rows, up, down, activation, journey.ends, up_bias, down_bias).forward()]
    del rows  # and in a list, so that nothing is held here that has been sent
    return at_home(index, journey, journey.back(results.pop()))


def gradients_of_experts(
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
) -> list[Tensor]:
    """Of x, up and down, and biases if there are any, from that of the result of `results_of_experts`."""
    journey = Journey.of(index, down.shape[0], groups, sizes)
    rows = journey.there(flat(x).index_select(0, journey.order // index.shape[-1]))
    products = Products(rows, up, down, activation, journey.ends, up_bias, down_bias)
    found = products.backward(journey.there(flat(grad).index_select(0, journey.order)))
    del rows, products
    mine = at_home(index, journey, journey.back(found.pop()))
    return [mine.sum(-2).view_as(x), *found]


def at_home(index: Tensor, journey: Journey, rows: Tensor) -> Tensor:
    """Rows that are back, in their places [..., choices, width]; 0 for those that did not travel."""
    return rows.new_zeros(index.numel(), rows.shape[1]).index_copy_(0, journey.order, rows).view(*index.shape, -1)


def flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


FORWARD, BACKWARD = "autopar::experts_exchanged", "autopar::experts_exchanged_backward"
SCHEMAS = f"({ARGUMENTS}) -> Tensor", f"(Tensor grad, {ARGUMENTS}) -> Tensor[]"
_forward = torch.library.custom_op(FORWARD, results_of_experts, mutates_args=(), schema=SCHEMAS[0])
_backward = torch.library.custom_op(BACKWARD, gradients_of_experts, mutates_args=(), schema=SCHEMAS[1])
runs_together(FORWARD, results_of_experts)
runs_together(BACKWARD, gradients_of_experts)
EXCHANGED, EXCHANGED_BACKWARD = torch.ops.autopar.experts_exchanged, torch.ops.autopar.experts_exchanged_backward


@_forward.register_fake
def _(x: Tensor, index: Tensor, up: Tensor, down: Tensor, *_: Any) -> Tensor:
    return x.new_empty(*index.shape, down.shape[1])


@_backward.register_fake
def _(grad: Tensor, x: Tensor, index: Tensor, up: Tensor, down: Tensor, *options: Any) -> list[Tensor]:
    biases = [t for t in options if isinstance(t, Tensor)]
    return [x.new_empty(t.shape) for t in (x, up, down, *biases)]


class Exchanged(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        index: Tensor,
        up: Tensor,
        down: Tensor,
        up_bias: Tensor | None,
        down_bias: Tensor | None,
        *options: Any,
    ) -> Any:
        ctx.options = options
        ctx.save_for_backward(x, index, up, down, up_bias, down_bias)
        return EXCHANGED(x, index, up, down, *options, up_bias, down_bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, index, up, down, *biases = ctx.saved_tensors
        x_grad, up_grad, down_grad, *found = EXCHANGED_BACKWARD(grad, x, index, up, down, *ctx.options, *biases)
        bias_grads = [None if bias is None else found.pop(0) for bias in biases]
        return x_grad, None, up_grad, down_grad, *bias_grads, *(None for _ in ctx.options)


Axes = Sequence[tuple[str, int]]


def experts_exchanged(
    x: Tensor,
    index: Tensor,
    scale: Tensor,
    up: Tensor,
    down: Tensor,
    activation: str,
    axes: Axes,
    coordinates: Sequence[Tensor],
    travelled: Axes,
    *,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    summed: Sequence[Tensor] = (),
    dtype: torch.dtype | None = None,
) -> Tensor:
    """autopar.experts with the experts sharded over `axes`: up and down S(0); biases and `summed` as in
    `experts_of_axes`. On axes that are `travelled`, x, index, scale and the result are S along the tokens; on the
    others x, index and scale are R and the result is P.

    Communicates, per travelled axis, rows of tokens there and back (forward), and tokens and gradients there, gradients back
    (backward), and each time before that how many they are. Keeps x, index, the experts' weights and what they returned.
    """
    mine = numbers_travelled(index, down.shape[0], axes, coordinates, travelled)
    outermost_first = [axis for axis in axes if axis in travelled]
    share = math.prod(size for _, size in travelled) / math.prod(size for _, size in axes)
    options = activation, [group for group, _ in outermost_first], [size for _, size in outermost_first], share
    chosen = run(Exchanged, x, mine, up, down, up_bias, added_once(down_bias, summed), *options)
    total = (chosen * scale.unsqueeze(-1)).sum(-2)
    return total if dtype is None else total.to(dtype)


def numbers_travelled(index: Tensor, experts: int, axes: Axes, coordinates: Sequence[Tensor], travelled: Axes) -> Tensor:
    """Numbers of experts as only the travelled axes count them; one beyond the last where another axis has them elsewhere."""
    if len(travelled) == len(axes):
        return index
    number, here = torch.zeros_like(index), torch.ones_like(index, dtype=torch.bool)
    inner = experts * math.prod(size for _, size in axes)
    for axis, coordinate in zip(axes, coordinates, strict=True):
        inner //= axis[1]
        digit = index // inner % axis[1]
        if axis in travelled:
            number = number * axis[1] + digit
        else:
            here = here & (digit == coordinate)
    there = experts * math.prod(size for _, size in travelled)
    return (number * experts + index % experts).masked_fill(~here, there)
