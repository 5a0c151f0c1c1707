"""Sharded implementations: what a device runs on its pieces where the local op is not the op itself.

All are differentiable functions of local tensors. `axes` are the mesh axes that cut the factor in question, each as (group
name, size), outermost first, and `coordinates` the device's places on them (0-dim int64 tensors). Bases are written as
placements on those axes: S, R, I, P as in `autopar.ir.placement`. Where a factor may be cut unevenly, its true size is given
if it is (None: pieces are equal): what lies behind it on the last device is padding.

Where a plain op gives the right gradient it is used. Where collectives are inside, an `autograd.Function` says what is saved
and what is communicated, forward and backward. Backward passes may write into buffers that they made themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from autopar.ir.experts import EXPERTS
from autopar.ops.collectives import all_gather, all_reduce, run

Axes = Sequence[tuple[str, int]]
NONE, MEAN, SUM = 0, 1, 2
"""The codes that aten's loss functions use for `reduction`."""


def parts(axes: Axes) -> int:
    """Into how many pieces the axes cut."""
    return math.prod(size for _, size in axes)


def reduce_over(x: Tensor, axes: Axes, op: str = "sum") -> Tensor:
    """The sum (or elementwise "max", "min") over all the axes; no gradient of its own."""
    for axis, _ in axes:
        x = all_reduce(x, axis, op)
    return x


def piece_of(axes: Axes, coordinates: Sequence[Tensor], device: torch.device) -> Tensor:
    """Which of the pieces that the axes cut, outermost first, this device has, as a 0-dim int64 tensor."""
    piece = torch.zeros((), dtype=torch.int64, device=device)
    for (_, size), coordinate in zip(axes, coordinates, strict=True):
        piece = piece * size + coordinate
    return piece


def rows_of(
    rows: int, axes: Axes, coordinates: Sequence[Tensor], device: torch.device, size: int | None
) -> tuple[Tensor, Tensor | int]:
    """Where this device's `rows` rows of a sharded dim begin, and how many of them are no padding."""
    if size is None:
        return piece_of(axes, coordinates, device) * rows, rows
    outer = axes[:-1]  # only the innermost axis cuts unevenly
    inside, before = size // parts(outer), coordinates[-1] * rows
    return piece_of(outer, coordinates[:-1], device) * inside + before, (inside - before).clamp(max=rows)


def local_index(
    index: Tensor, rows: int, axes: Axes, coordinates: Sequence[Tensor], size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Positions among this device's `rows` rows of a sharded dim (0 where another device has the row), and who has it here."""
    first, held = rows_of(rows, axes, coordinates, index.device, size)
    local = index - first
    here = (local >= 0) & (local < held)
    return local.masked_fill(~here, 0), here


def padding_of(rows: int, axes: Axes, coordinates: Sequence[Tensor], device: torch.device, size: int | None) -> Tensor | None:
    """Which of this device's rows are padding, [rows] bool; None if the dim is cut evenly."""
    if size is None:
        return None
    return torch.arange(rows, device=device) >= rows_of(rows, axes, coordinates, device, size)[1]


def precise(dtype: torch.dtype) -> torch.dtype:
    """What sums over many elements are computed in: float32 for half precisions, else the dtype itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


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


class CrossEntropy(torch.autograd.Function):
    """With m the row's maximum, Z = sum exp(x - m), w the target's weight, W the sum of weights, V classes, s the smoothing:

    loss = (1 - s) w (log Z + m - x_target) + s / V (W (log Z + m) - sum_c w_c x_c), and for a row's gradient g
    d x_c = g ((1 - s) w + s / V W) exp(x_c - m) / Z  -  g (1 - s) w [c = target]  -  g s / V w_c.

    Padded classes have no part in any of it: x is -inf there for m and Z, 0 for sums of x, and its gradient is 0.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        reduction: int,
        ignore_index: int,
        smoothing: float,
        vocab_axes: Axes,
        token_axes: Axes,
        classes: int | None,
        *coordinates: Tensor,
    ) -> Tensor:
        rows, dtype = logits.shape[1], precise(logits.dtype)
        padding = padding_of(rows, vocab_axes, coordinates, logits.device, classes)
        possible = logits if padding is None else logits.masked_fill(beside(padding, logits), -torch.inf)
        maximum = reduce_over(possible.amax(1), vocab_axes, "max")
        kept = target != ignore_index
        index, here = local_index(target, rows, vocab_axes, coordinates, classes)
        chosen = logits.gather(1, index.unsqueeze(1)).squeeze(1)
        below = (torch.sub if padding is None else Tensor.sub_)(possible, maximum.unsqueeze(1))
        sums = [
            below.exp_().sum(1, dtype=dtype),
            (chosen.to(dtype) - maximum.to(dtype)).masked_fill(~(here & kept), 0),
        ]
        if weight is not None:
            sums.append(weight.to(dtype)[index].masked_fill(~(here & kept), 0))
        if smoothing:
            sums += smoothing_sums(logits, maximum.to(dtype), weight, padding)
        if vocab_axes:
            sums = list(reduce_over(torch.stack(sums), vocab_axes).unbind(0))
        total_exp, chosen = sums[0], sums[1]
        token_weight = sums[2] if weight is not None else kept.to(dtype)
        log_total = total_exp.log()
        losses = (log_total - chosen) * (token_weight * (1 - smoothing))
        weights = None
        if smoothing:
            weighted_logits, weights = sums[-2:]
            losses = losses + (weights * log_total - weighted_logits) * (smoothing / (classes or rows * parts(vocab_axes)))
        losses = losses.masked_fill(~kept, 0)
        norm = reduce_over(token_weight.sum(), token_axes) if reduction == MEAN else None
        ctx.constants = ignore_index, smoothing, vocab_axes, classes
        ctx.save_for_backward(logits, target, weight, maximum, total_exp, chosen, token_weight, weights, norm, *coordinates)
        result = losses if reduction == NONE else losses.sum()
        return (result if norm is None else result / norm).to(logits.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        ignore_index, smoothing, vocab_axes, classes = ctx.constants
        logits, target, weight, maximum, total_exp, chosen, token_weight, weights, norm, *coordinates = ctx.saved_tensors
        rows, dtype = logits.shape[1], total_exp.dtype
        upstream = upstream.to(dtype) if norm is None else upstream.to(dtype) / norm
        row_grad = upstream.expand_as(total_exp).masked_fill(target == ignore_index, 0)
        smooth_grad = row_grad * (smoothing / (classes or rows * parts(vocab_axes)))
        target_grad = row_grad * token_weight * (1 - smoothing)
        scale = (target_grad if weights is None else target_grad + smooth_grad * weights) / total_exp
        grad = torch.sub(logits, maximum.unsqueeze(1)).exp_().mul_(scale.unsqueeze(1))
        at_target = scale * chosen.exp() - target_grad
        if smoothing and weight is None:
            grad = grad.sub_(smooth_grad.unsqueeze(1))
            at_target = at_target - smooth_grad
        elif smoothing:
            by_class = beside(weight.to(grad.dtype), grad)
            grad = grad.addcmul_(smooth_grad.unsqueeze(1).to(grad.dtype), by_class, value=-1)
            at_target = at_target - smooth_grad * token_weight
        # The target's own entry is near 0 once learnt, a difference of two numbers near 1: never taken in half precision.
        index, here = local_index(target, rows, vocab_axes, coordinates, classes)
        index = index.unsqueeze(1)
        if (padding := padding_of(rows, vocab_axes, coordinates, grad.device, classes)) is not None:
            grad = grad.masked_fill_(beside(padding, grad), 0)
        entry = torch.where(
            (here & (target != ignore_index)).unsqueeze(1), at_target.unsqueeze(1).to(grad.dtype), grad.gather(1, index)
        )
        return grad.scatter_(1, index, entry), *(None for _ in range(8 + len(coordinates)))


def beside(by_class: Tensor, logits: Tensor) -> Tensor:
    """One number per class, to stand beside logits [tokens, classes, ...]."""
    return by_class.view(-1, *(1,) * (logits.ndim - 2))


def smoothing_sums(logits: Tensor, maximum: Tensor, weight: Tensor | None, padding: Tensor | None) -> list[Tensor]:
    """Per row, over the local classes: the weighted sum of logits less the maximum, and the sum of weights."""
    counts = torch.full_like(maximum, logits.shape[1])
    if padding is not None:
        logits = logits.masked_fill(beside(padding, logits), 0)
        weight = None if weight is None else weight.masked_fill(padding, 0)
        counts = counts - padding.sum()
    if weight is None:
        return [logits.sum(1, dtype=maximum.dtype) - maximum * counts, counts]
    total = weight.to(maximum.dtype).sum()
    weighted = torch.tensordot(logits, weight.to(logits.dtype), ([1], [0]))
    return [weighted.to(maximum.dtype) - maximum * total, total.expand_as(maximum)]


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: int = MEAN,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    *,
    vocab_axes: Axes = (),
    vocab_coordinates: Sequence[Tensor] = (),
    token_axes: Axes = (),
    classes: int | None = None,
) -> Tensor:
    """aten.cross_entropy_loss for class indices, logits [tokens, vocab, ...] sharded over vocab, other dims, both or neither.

    Over `vocab_axes` logits and weight are S(vocab), target I; the result and the logits' gradient need nothing further (I);
    `classes` are there in all, if the axes cut them unevenly. Over `token_axes` logits and target are S in a dim of tokens; the
    result is P, or S with reduction NONE. The mean is over all tokens that are not ignored, wherever they are. Communicates per
    vocab axis a maximum and one sum of 2 to 5 numbers per token, per token axis one number; backward nothing. Keeps the logits
    and a few numbers per token, and backward makes one buffer of the logits' size, the gradient.
    """
    vocab, tokens = tuple(vocab_axes), tuple(token_axes)
    options = reduction, ignore_index, label_smoothing
    return run(CrossEntropy, logits, target, weight, *options, vocab, tokens, classes, *vocab_coordinates)


class NormHidden(torch.autograd.Function):
    """y = (x - mean) rstd weight + bias over trailing dims, of which the device has one of `parts(axes)` pieces."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, dims: int, eps: float, axes: Axes, centered: bool
    ) -> Tensor:
        over = tuple(range(x.ndim - dims, x.ndim))
        wide = x.to(precise(x.dtype))
        mean, rstd = moments(wide, over, eps, axes) if centered else (None, inverse_rms(wide, over, eps, axes))
        ctx.dims, ctx.axes, ctx.bias_dtype = dims, axes, None if bias is None else bias.dtype
        ctx.save_for_backward(x, weight, mean, rstd)
        y = normalized(wide, mean, rstd)
        y = y if weight is None else y * weight
        return (y if bias is None else y + bias).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        batch, over = tuple(range(x.ndim - ctx.dims)), tuple(range(x.ndim - ctx.dims, x.ndim))
        xhat, grad = normalized(x.to(rstd.dtype), mean, rstd), grad.to(rstd.dtype)
        weight_grad = None if weight is None else over_batch(grad * xhat, batch).to(weight.dtype)
        bias_grad = None if ctx.bias_dtype is None else over_batch(grad, batch).to(ctx.bias_dtype)
        inner = grad if weight is None else grad * weight
        means = [(inner * xhat).mean(over, keepdim=True)]
        if mean is not None:
            means.append(inner.mean(over, keepdim=True))
        along, *shift = (reduce_over(torch.stack(means), ctx.axes) / parts(ctx.axes)).unbind(0)
        centered = inner - xhat * along
        x_grad = (centered - shift[0] if shift else centered) * rstd
        return x_grad.to(x.dtype), weight_grad, bias_grad, None, None, None, None


def normalized(x: Tensor, mean: Tensor | None, rstd: Tensor) -> Tensor:
    return x * rstd if mean is None else (x - mean) * rstd


def over_batch(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return x.sum(dims) if dims else x


def moments(x: Tensor, dims: tuple[int, ...], eps: float, axes: Axes) -> tuple[Tensor, Tensor]:
    """Mean and 1 / sqrt(variance + eps) over the dims and all devices."""
    mean, variance = mean_and_variance(x, dims, axes)
    return mean, (variance + eps).rsqrt()


def mean_and_variance(x: Tensor, dims: tuple[int, ...], axes: Axes) -> tuple[Tensor, Tensor]:
    """Mean and variance (of all, uncorrected) over the dims and all devices.

    Each device's own moments are gathered and merged (Chan, Golub, LeVeque 1983): one collective per axis, and none of the
    cancellation of E[x^2] - E[x]^2.
    """
    variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    for axis, size in axes:
        means, variances = all_gather(torch.stack([mean, variance]).unsqueeze(0), 0, axis, size).unbind(1)
        between, mean = torch.var_mean(means, 0, correction=0)
        variance = variances.mean(0) + between
    return mean, variance


def inverse_rms(x: Tensor, dims: tuple[int, ...], eps: float, axes: Axes) -> Tensor:
    """1 / sqrt(mean square + eps) over the dims and all devices."""
    return (reduce_over(x.square().mean(dims, keepdim=True), axes) / parts(axes) + eps).rsqrt()


def trailing_dims(shape: Sequence[int], numel: int) -> int:
    """How many trailing dims of a local shape hold `numel` elements; at least one."""
    for dims in range(1, len(shape) + 1):
        if math.prod(shape[-dims:]) == numel:
            return dims
    raise AssertionError(f"no trailing dims of {tuple(shape)} have {numel} elements")


def layer_norm_hidden(
    x: Tensor, normalized_numel: int, weight: Tensor | None, bias: Tensor | None, eps: float, axes: Axes
) -> Tensor:
    """aten.layer_norm with a normalized dim sharded: x, weight, bias and the result are S there.

    `normalized_numel`: elements that are normalized together, over all devices. Communicates two numbers per token and
    axis, forward (all-gather) and backward (all-reduce). Keeps x and two numbers per token.
    """
    dims = trailing_dims(x.shape, normalized_numel // parts(axes))
    return run(NormHidden, x, weight, bias, dims, eps, tuple(axes), True)


def rms_norm_hidden(x: Tensor, normalized_numel: int, weight: Tensor | None, eps: float | None, axes: Axes) -> Tensor:
    """aten.rms_norm with a normalized dim sharded: x, weight and the result are S there; as `layer_norm_hidden`."""
    dims = trailing_dims(x.shape, normalized_numel // parts(axes))
    eps = torch.finfo(precise(x.dtype)).eps if eps is None else eps
    return run(NormHidden, x, weight, None, dims, eps, tuple(axes), False)


def once(x: Tensor, coordinates: Sequence[Tensor]) -> Tensor:
    """The summand of a reduced loop that does not have this loop: x on the first device along all the axes, 0 on the others;
    x itself if there are no axes."""
    return x.masked_fill(torch.stack(list(coordinates)).any(), 0) if coordinates else x


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


def added_once(bias: Tensor | None, summed: Sequence[Tensor]) -> Tensor | None:
    """The bias on the first device along axes over which the result is summed, 0 on the others."""
    return None if bias is None else once(bias, summed)
