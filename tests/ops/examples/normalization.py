from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from autopar.ops.proof import Call
from tests.ops.examples.common import Example, Examples
from tests.ops.pick import Pick

aten = torch.ops.aten


def layer_norm(p: Pick) -> Call:
    rank = p.one(1, 1, 2)
    shape, normalized = p.shape(p.one(2, 1, 3)), [p.size(4, 6, 2, 12) for _ in range(rank)]
    weights = p.one(2, 1, 0)
    given = [p.tensor(*normalized) for _ in range(weights)]
    eps = p.one((), (1e-3,)) if weights == 2 else ()
    return Call(aten.layer_norm.default, (p.tensor(*shape, *normalized), normalized, *given, *eps))


def native_layer_norm(p: Pick) -> Call:
    shape, normalized = p.shape(p.one(2, 1)), [p.size(4, 6) for _ in range(p.one(1, 2))]
    affine = p.one(lambda: (p.tensor(*normalized), p.tensor(*normalized)), lambda: (None, None))()
    return Call(aten.native_layer_norm.default, (p.tensor(*shape, *normalized), normalized, *affine, 1e-5))


def rms_norm(p: Pick) -> Call:
    rank = p.one(1, 1, 2)
    shape, normalized = p.shape(p.one(2, 1, 3)), [p.size(4, 6, 2, 12) for _ in range(rank)]
    given = p.one((p.tensor(*normalized),), (p.tensor(*normalized), 1e-3), ())
    return Call(aten.rms_norm.default, (p.tensor(*shape, *normalized), normalized, *given))


def softmax(target: Any, *after: Any) -> Example:
    """Ops of (x, dim, ...); for some rows all of the last dim, which a device may have alone, is masked."""

    def example(p: Pick) -> Call:
        rank = p.one(3, 2, 1)
        x = p.tensor(*p.shape(rank), grad=False)
        if p.one(False, True):
            x[..., : x.shape[-1] // 2] = float("-inf")
        dim = p.dim(rank)
        if x.isinf().all(dim).any():
            x.nan_to_num_(neginf=-1e3)
        return Call(target, (x.requires_grad_(), dim, *after))

    return example


def affine_weights(p: Pick, channels: int) -> Sequence[Tensor | None]:
    return p.one(lambda: (p.tensor(channels), p.tensor(channels)), lambda: (None, None))()


def group_norm(p: Pick) -> Call:
    groups = p.one(4, 2, 1, 6)
    channels = groups * p.size(2, 1, 3)
    x = p.tensor(p.size(), channels, *[p.size(4, 3) for _ in range(p.one(2, 1, 3, 0))])
    affine = affine_weights(p, channels)
    return Call(aten.group_norm.default, (x, groups, *p.one((*affine, 1e-3), affine, ())))


def native_group_norm(p: Pick) -> Call:
    groups, space = p.one(4, 2, 1, 6), p.size(4, 3)
    batch, channels = p.size(), groups * p.size(2, 1, 3)
    x = p.tensor(batch, channels, *p.one([space], [space, 2], [space, 1]))
    per_channel = x[0, 0].numel()
    return Call(aten.native_group_norm.default, (x, *affine_weights(p, channels), batch, channels, per_channel, groups, 1e-5))


def batch_norm_operands(p: Pick) -> tuple[Tensor, Sequence[Tensor | None], tuple[Tensor, Tensor]]:
    """Of at least two elements per channel: (x, weight and bias, running mean and variance)."""
    channels = p.size()
    x = p.tensor(p.size(4, 6, 2, 12), channels, *[p.size(4, 6, 1) for _ in range(p.one(2, 0, 1, 3))])
    mean, variance = p.tensor(channels, grad=False), p.positive(channels).detach()
    return x, affine_weights(p, channels), (mean, variance)


def batch_norm(p: Pick) -> Call:
    x, affine, running = batch_norm_operands(p)
    options = p.one(True, True, False), p.one(0.1, 0.7, 0.0, 1.0), p.one(1e-5, 1e-2)
    return Call(aten._native_batch_norm_legit_functional.default, (x, *affine, *running, *options))


def batch_norm_without_statistics(p: Pick) -> Call:
    x, affine, _ = batch_norm_operands(p)
    return Call(aten._native_batch_norm_legit.no_stats, (x, *affine, True, 0.1, 1e-5))


def batch_norm_without_training(p: Pick) -> Call:
    x, affine, running = batch_norm_operands(p)
    return Call(aten._native_batch_norm_legit_no_training.default, (x, *affine, *running, 0.1, 1e-5))


EXAMPLES: Examples = {
    aten.layer_norm.default: layer_norm,
    aten.native_layer_norm.default: native_layer_norm,
    aten.rms_norm.default: rms_norm,
    aten.group_norm.default: group_norm,
    aten.native_group_norm.default: native_group_norm,
    aten._native_batch_norm_legit_functional.default: batch_norm,
    aten._native_batch_norm_legit.no_stats: batch_norm_without_statistics,
    aten._native_batch_norm_legit_no_training.default: batch_norm_without_training,
    aten.softmax.int: softmax(aten.softmax.int),
    aten._softmax.default: softmax(aten._softmax.default, False),
    aten.log_softmax.int: softmax(aten.log_softmax.int),
    aten._log_softmax.default: softmax(aten._log_softmax.default, False),
}
