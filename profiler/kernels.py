"""What one op that runs costs: FLOPs, bytes read and written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from autopar.ops.flops import op_flops
from autopar.profiler.tape import Kernel, Size, product
from autopar.torch_private import example_of, pytree, size_of

aten = torch.ops.aten

MOVES_ONLY = frozenset(
    [
        aten._to_copy, aten.arange, aten.cat, aten.clone, aten.constant_pad_nd, aten.copy_, aten.embedding, aten.empty,
        aten.empty_like, aten.empty_strided, aten.fill_, aten.flip, aten.full, aten.full_like, aten.gather, aten.index,
        aten.index_put, aten.index_put_, aten.index_select, aten.masked_fill, aten.masked_fill_, aten.new_empty_strided,
        aten.new_full, aten.new_ones, aten.new_zeros, aten.ones, aten.ones_like, aten.repeat, aten.roll, aten.scatter,
        aten.select_backward, aten.slice_backward, aten.stack, aten.tril, aten.triu, aten.where, aten.zero_, aten.zeros,
        aten.zeros_like,
    ]
)  # fmt: skip
"""Ops that compute nothing: no FLOPs of any kind."""


MAKES_MORE = frozenset(getattr(aten, f"upsample_{how}") for how in ["linear1d", "bilinear2d", "bicubic2d", "trilinear3d"])
"""Ops whose arithmetic is one per element of the result; others than pointwise ones: of the largest tensor that they read."""


def kernel(func: Any, args: Any, kwargs: Any, result: Any, path: str, rename: Callable[[Size], Size]) -> Kernel:
    """Of an op on tensors that have shapes; `rename` puts the program's symbols into sizes."""
    packet = func.overloadpacket
    flops, torch_flops = map(rename, op_flops(func, args, kwargs, result))
    read, made = tensors(args, kwargs), tensors(result)
    worked_on = read if read and packet not in MAKES_MORE else made
    largest = max(worked_on, key=lambda t: product(example_of(n) for n in t.shape), default=None)
    counts_nothing = flops != 0 or packet in MOVES_ONLY or largest is None or not largest.is_floating_point()
    pointwise = torch.Tag.pointwise in func.tags
    other = 0 if counts_nothing else elements(made[0] if pointwise and made else largest)
    return Kernel(
        op=str(packet),
        path=path,
        flops=flops,
        torch_flops=torch_flops,
        other_flops=rename(other),
        bytes=rename(sum(elements(t) * t.dtype.itemsize for t in (*read, *made))),
        dtype=str((made or read)[0].dtype).removeprefix("torch.") if made or read else "",
    )


MEMORY_OF_ELEMENTWISE = frozenset({aten.mse_loss, aten.smooth_l1_loss, aten.binary_cross_entropy})
"""Their kernels make the loss of each element first, and the scalar that they return keeps that memory."""


def stored_bytes(func: Any, args: Any, bytes: Size) -> Size:
    """Of the memory of an op's result that has `bytes` of elements."""
    if func.overloadpacket in MEMORY_OF_ELEMENTWISE:
        broadcast = torch.broadcast_shapes(args[0].shape, args[1].shape)  # type: ignore[no-untyped-call]
        return product(size_of(n) for n in broadcast) * args[0].dtype.itemsize
    return bytes


def tensors(*trees: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(trees) if isinstance(leaf, Tensor)]


def elements(tensor: Tensor | None) -> Size:
    return 0 if tensor is None else product(size_of(n) for n in tensor.shape)
