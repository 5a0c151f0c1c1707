"""What a traced node computes and sends: FLOPs as torch's `FlopCounterMode` counts them, and collectives by axis."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from autopar.ir.conversion import ALL_GATHER, ALL_REDUCE, ALL_TO_ALL, REDUCE_SCATTER
from autopar.ir.program import Size
from autopar.torch_private import OpOverload, size_of

aten = torch.ops.aten

# torch 2.11 to 2.13 count nothing for the CPU's flash attention; it does the same products as the GPU's.
SAME_COUNT_AS = {
    aten._scaled_dot_product_flash_attention_for_cpu: aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: aten._scaled_dot_product_flash_attention_backward,
}


def node_flops(node: torch.fx.Node) -> Size:
    """FLOPs of one traced node; a multiply-add is two. Zero where torch counts nothing (pointwise, norms, softmax).

    An expression where the node's sizes are symbolic.
    """
    packet = node.target.overloadpacket if isinstance(node.target, OpOverload) else None
    count = flop_registry.get(SAME_COUNT_AS.get(packet, packet)) if packet is not None else None
    if count is None:
        return 0
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    return size_of(count(*args, **kwargs, out_val=node.meta["val"]))


@dataclass(frozen=True, order=True)
class Collective:
    """One collective: `bytes` is the whole tensor's for gathers, scatters and reductions, one device's for all-to-all."""

    kind: str
    axis: str
    bytes: int


_functional = torch.ops._c10d_functional
_KINDS: dict[Any, tuple[str, int]] = {
    _functional.all_gather_into_tensor.default: (ALL_GATHER, 2),
    _functional.reduce_scatter_tensor.default: (REDUCE_SCATTER, 3),
    _functional.all_reduce.default: (ALL_REDUCE, 2),
    _functional.all_to_all_single.default: (ALL_TO_ALL, 3),
}


def group_argument(node: torch.fx.Node) -> int | None:
    """Position of the argument that names the process group; None if the node is no collective."""
    return _KINDS[node.target][1] if node.target in _KINDS else None


def collective_of(node: torch.fx.Node) -> Collective | None:
    position = group_argument(node)
    if position is None:
        return None
    kind = _KINDS[node.target][0]
    whole = node if kind == ALL_GATHER else node.all_input_nodes[0]
    value = whole.meta["val"]
    return Collective(kind, str(node.args[position]), value.numel() * value.element_size())


def collectives_of(nodes: Iterable[torch.fx.Node]) -> list[Collective]:
    return [c for c in map(collective_of, nodes) if c is not None]
