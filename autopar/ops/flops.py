"""What an op computes and sends: FLOPs, beside what torch's `FlopCounterMode` counts, and collectives by axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import conv_flop_count, flop_registry, shape_wrapper

from autopar.ir.conversion import ALL_GATHER, ALL_REDUCE, ALL_TO_ALL, REDUCE_SCATTER
from autopar.ir.experts import GROUPED_MM
from autopar.ir.program import Size
from autopar.ops import exchanged_cost
from autopar.ops.collectives import all_gather_into, all_reduce_together
from autopar.ops.exchanged import EXCHANGED, EXCHANGED_BACKWARD
from autopar.ops.exchanged_cost import Inside
from autopar.torch_private import OpOverload, size_of

aten = torch.ops.aten


def grouped_mm_flops(a: Sequence[Any], b: Sequence[Any], *_: Any, **__: Any) -> Any:
    """Each row (or column) of all groups once; both 3-d is a plain bmm."""
    return 2 * a[-2] * a[-1] * b[-1] * (a[0] if len(a) == len(b) == 3 else 1)


def shared_grouped_mm_flops(a: Sequence[Any], b: Sequence[Any], offsets: Any, share: float = 1.0, **_: Any) -> Any:
    """Of `autopar::grouped_mm`: the rows that are expected in groups, which `share` says."""
    count = grouped_mm_flops(a, b)
    return count if share == 1 else count * share


def convolution_backward_flops(*args: Any, **_: Any) -> Any:
    """A product of forward's size for each gradient that is wanted, of input and of weight; groups as in forward."""
    grad_out, x, weight, _bias, _stride, _padding, _dilation, transposed, _output_padding, _groups, wanted = args
    return sum(wanted[:2]) * conv_flop_count(x, weight, grad_out, transposed)


def attention_flops(query: Sequence[Any], key: Sequence[Any], value: Sequence[Any], *_: Any, **__: Any) -> Any:
    """Scores and their product with the values, for each head of the queries: [..., rows, head dim]."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def attention_backward_flops(
    gradient: Sequence[Any], query: Sequence[Any], key: Sequence[Any], value: Sequence[Any], *_: Any, **__: Any
) -> Any:
    """Scores again, gradients of the scores and values, of queries and keys: five products."""
    return 2 * math.prod(query[:-1]) * key[-2] * (3 * query[-1] + 2 * value[-1])


def matrix_vector_flops(a: Sequence[Any], b: Sequence[Any], *_: Any, **__: Any) -> Any:
    return 2 * math.prod(a)


def added_matrix_vector_flops(bias: Sequence[Any], a: Sequence[Any], b: Sequence[Any], *_: Any, **__: Any) -> Any:
    return 2 * math.prod(a)


CORRECTED: Mapping[Any, Callable[..., Any]] = {
    op: shape_wrapper(count)  # type: ignore[no-untyped-call]
    for op, count in {
        aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
        aten._grouped_mm: grouped_mm_flops,
        GROUPED_MM: shared_grouped_mm_flops,
        EXCHANGED: exchanged_cost.flops,
        EXCHANGED_BACKWARD: exchanged_cost.backward_flops,
        aten.convolution_backward: convolution_backward_flops,
        aten.mv: matrix_vector_flops,
        aten.dot: matrix_vector_flops,
        aten.addmv: added_matrix_vector_flops,
    }.items()
}
"""Where torch counts nothing, or too much; docs/profile-accuracy.md shows each."""


def op_flops(op: Any, args: Any, kwargs: Any, result: Any) -> tuple[Size, Size]:
    """(FLOPs that an op does, FLOPs that `FlopCounterMode` counts for it); a multiply-add is two.

    Of products: pointwise ops, norms and softmax do none, and torch counts none. Expressions where sizes are symbolic.
    """
    packet = op.overloadpacket if isinstance(op, OpOverload) else None
    registry: Mapping[Any, Any] = flop_registry
    torchs = registry.get(packet)
    ours = CORRECTED.get(packet) or torchs
    counted = 0 if torchs is None else size_of(torchs(*args, **kwargs, out_val=result))
    done = counted if ours is torchs else size_of(ours(*args, **kwargs, out_val=result)) if ours is not None else 0
    return done, counted


def node_flops(node: torch.fx.Node) -> Size:
    """FLOPs of one traced node, as in `op_flops`."""
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    return op_flops(node.target, args, kwargs, node.meta.get("val"))[0]


@dataclass(frozen=True, order=True)
class Collective:
    """One collective: `bytes` is the whole tensor's for gathers, scatters and reductions, one device's for all-to-all."""

    kind: str
    axis: str
    bytes: int


_functional = torch.ops._c10d_functional
_KINDS: dict[Any, tuple[str, int]] = {
    _functional.all_gather_into_tensor.default: (ALL_GATHER, 2),
    all_gather_into: (ALL_GATHER, 2),
    _functional.reduce_scatter_tensor.default: (REDUCE_SCATTER, 3),
    _functional.all_reduce.default: (ALL_REDUCE, 2),
    _functional.all_to_all_single.default: (ALL_TO_ALL, 3),
    _functional.all_reduce_.default: (ALL_REDUCE, 2),
    _functional.all_reduce_coalesced.default: (ALL_REDUCE, 2),
    all_reduce_together: (ALL_REDUCE, 2),
    _functional.reduce_scatter_tensor_coalesced.default: (REDUCE_SCATTER, 3),
}
_INSIDE: dict[Any, tuple[Callable[..., Inside], int]] = {
    EXCHANGED.default: (exchanged_cost.forward_inside, 5),
    EXCHANGED_BACKWARD.default: (exchanged_cost.backward_inside, 6),
}
"""Ops that communicate inside, by all-to-alls: what they do there, and the position of the argument that names the groups."""


def group_argument(node: torch.fx.Node) -> int | None:
    """Position of the argument that names the process group; None if the node is no collective."""
    return _KINDS[node.target][1] if node.target in _KINDS else None


def communicates(node: torch.fx.Node) -> bool:
    """Whether it is a collective, or has some inside."""
    return node.target in _KINDS or node.target in _INSIDE


def bound_arguments(node: torch.fx.Node, groups: Mapping[str, str]) -> tuple[Any, ...]:
    """The node's arguments with the names of mesh axes replaced by those of process groups, if it communicates."""
    if not communicates(node):
        return node.args
    position = _KINDS[node.target][1] if node.target in _KINDS else _INSIDE[node.target][1]
    said: Any = node.args[position]
    bound = groups[said] if isinstance(said, str) else [groups[name] for name in said]
    return (*node.args[:position], bound, *node.args[position + 1 :])


def inside(node: torch.fx.Node) -> Inside | None:
    """What an op does at even load that no other node shows; None for all but those that communicate inside."""
    if node.target not in _INSIDE:
        return None
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    return _INSIDE[node.target][0](*args, **kwargs)


def collective_of(node: torch.fx.Node) -> Collective | None:
    """What travels together is one, of all its bytes."""
    found = members(node)
    return replace(found[0], bytes=sum(c.bytes for c in found)) if found else None


def collectives_of(nodes: Iterable[torch.fx.Node]) -> list[Collective]:
    """One per tensor, also of those that travel together, and those inside ops."""
    return [c for node in nodes for c in (*members(node), *collectives_inside(node))]


def collectives_inside(node: torch.fx.Node) -> list[Collective]:
    found = inside(node)
    return [] if found is None else [Collective(ALL_TO_ALL, group, size) for group, size in found.sent]


def members(node: torch.fx.Node) -> list[Collective]:
    position = group_argument(node)
    if position is None:
        return []
    kind = _KINDS[node.target][0]
    sent = [node] if kind == ALL_GATHER else node.args[0] if isinstance(node.args[0], list | tuple) else [node.args[0]]
    values = [n.meta["val"] for n in sent if isinstance(n, torch.fx.Node)]
    return [Collective(kind, str(node.args[position]), value.numel() * value.element_size()) for value in values]
