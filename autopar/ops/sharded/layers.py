"""Sharded implementations of layers: embeddings, biases that are added once, attention from a piece of the queries, experts.

See `autopar.ops.sharded.common`. Nothing here communicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from autopar.ir.experts import EXPERTS
from autopar.ops.collectives import run
from autopar.ops.sharded.common import Axes, added_once, local_index, once, parts, piece_of


class EmbeddingVocab(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, ids: Tensor, axes: Axes, padding_idx: int, size: int | None, *coordinates: Tensor
    ) -> Tensor:
        ctx.axes, ctx.padding_idx, ctx.rows, ctx.size = axes, padding_idx, weight.shape[0], size
        ctx.save_for_backward(ids, *coordinates)
        index, here = local_index(ids, weight.shape[0], axes, coordinates, size)
        return torch.embedding(weight, index).masked_fill(~here.unsqueeze(-1), 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        ids, *coordinates = ctx.saved_tensors
        index, here = local_index(ids, ctx.rows, ctx.axes, coordinates, ctx.size)
        learns = here & (ids != ctx.padding_idx) if ctx.padding_idx >= 0 else here
        grad = grad.masked_fill(~learns.unsqueeze(-1), 0)
        weight_grad = torch.ops.aten.embedding_dense_backward(grad, index, ctx.rows, -1, False)
        return weight_grad, None, None, None, None, *(None for _ in coordinates)


def embedding_vocab(
    weight: Tensor, ids: Tensor, axes: Axes, coordinates: Sequence[Tensor], padding_idx: int = -1, size: int | None = None
) -> Tensor:
    """aten.embedding with the vocabulary sharded: weight [vocab / parts, hidden] S, ids I or R; the result is P.

    `padding_idx` is a global row, which gets no gradient; -1 for none. `size`: of the vocabulary, if it is cut unevenly.
    Communicates nothing.
    """
    return run(EmbeddingVocab, weight, ids, tuple(axes), padding_idx, size, *coordinates)


def linear_row_bias(x: Tensor, weight: Tensor, bias: Tensor, axes: Axes, coordinates: Sequence[Tensor]) -> Tensor:
    """aten.linear with the contracted dim sharded: x [..., k / parts] and weight [n, k / parts] S, bias R; the result is P."""
    return torch.nn.functional.linear(x, weight, once(bias, coordinates))


def addmm_row_bias(
    bias: Tensor,
    x: Tensor,
    weight: Tensor,
    axes: Axes,
    coordinates: Sequence[Tensor],
    *,
    beta: float = 1,
    alpha: float = 1,
) -> Tensor:
    """aten.addmm with the contracted dim sharded: x [m, k / parts] and weight [k / parts, n] S, bias R; the result is P."""
    return torch.addmm(once(bias, coordinates), x, weight, beta=beta, alpha=alpha)


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    axes: Axes,
    coordinates: Sequence[Tensor],
    *,
    dropout_p: float = 0.0,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """aten.scaled_dot_product_attention under `is_causal` with the queries sharded: query S(2), key and value R; S(2).

    Each device masks the keys after its own queries: a bool tensor [queries / parts, keys], and a kernel that takes masks.
    """
    rows = query.shape[-2]
    queries = torch.arange(rows, device=query.device).unsqueeze(1) + piece_of(axes, coordinates, query.device) * rows
    mask = torch.arange(key.shape[-2], device=query.device) <= queries
    attend = torch.nn.functional.scaled_dot_product_attention
    return attend(query, key, value, mask, dropout_p, scale=scale, enable_gqa=enable_gqa)


def experts_of_axes(
    x: Tensor,
    index: Tensor,
    scale: Tensor,
    up: Tensor,
    down: Tensor,
    activation: str,
    axes: Axes,
    coordinates: Sequence[Tensor],
    *,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    summed: Sequence[Tensor] = (),
    dtype: torch.dtype | None = None,
) -> Tensor:
    """autopar.experts with the experts sharded: up and down S(0), x, index and scale R; the result is P. Biases are as these,
    and where the hidden dim is cut too the first device along these axes (the coordinates `summed`) adds the second one.

    Each device sees all tokens and works on those that chose its experts. Rows are static in number, so memory is that of
    all tokens; products run over the local experts' rows only, of which a device expects its even share.
    """
    local, here = local_index(index, down.shape[0], axes, coordinates)
    mine = local.masked_fill(~here, down.shape[0])
    down_bias = added_once(down_bias, summed)
    return cast(Tensor, EXPERTS(x, mine, scale, up, down, activation, 1 / parts(axes), up_bias, down_bias, dtype=dtype))
