"""In which order the elements of a random tensor lie in memory.

Torch's generator fills memory. In a serial run dropout of an image that lies with channels last (as convolutions leave it)
has another mask than the same image with channels first, from the same state of the generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from autopar.torch_private import OpOverload, example_of

aten = torch.ops.aten
READ_FIRST = frozenset({aten.dropout.default, aten.native_dropout.default})
"""Their mask lies as what they are applied to; what others draw is their result."""
IN_ORDER = frozenset({aten.scaled_dot_product_attention.default})
"""Draw into a tensor of their own."""


def draws(node: Node) -> bool:
    """Whether torch's generator fills memory that lies as the val of the node, or of its first argument, says."""
    target: Any = node.target
    return isinstance(target, OpOverload) and target not in IN_ORDER and torch.Tag.nondeterministic_seeded in target.tags


def drawn_order(node: Node) -> tuple[int, ...]:
    """The dims of what a node draws, slowest in memory first; empty where that is their own order, or nothing is drawn."""
    if not draws(node):
        return ()
    source = node.args[0] if node.target in READ_FIRST else node
    val = source.meta["val"] if isinstance(source, Node) else None
    return order_of(val) if isinstance(val, Tensor) else ()


def order_of(val: Tensor) -> tuple[int, ...]:
    """The dims of `torch.empty_like(val)`, slowest in memory first; empty where it is contiguous."""
    shape, strides = ([int(example_of(n)) for n in sizes] for sizes in (val.shape, val.stride()))
    like = torch.empty_like(torch.empty_strided(shape, strides, device="meta"))
    steps = like.stride()
    return () if like.is_contiguous() else tuple(sorted(range(like.ndim), key=lambda d: (-steps[d], d)))


def laid(tensor: Tensor, order: Sequence[int]) -> Tensor:
    """The tensor, or a copy, whose memory has the dims in this order; contiguous for none."""
    dims = [*order] or [*range(tensor.ndim)]
    return tensor.permute(dims).contiguous().permute([*map(dims.index, range(tensor.ndim))])
