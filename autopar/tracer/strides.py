"""`as_strided` reads memory by position, so it means something only for a tensor that lies as it did when it was traced.

Programs have values, not memory. What is read so is written as what it was: the tensor with its dims in the order of its
memory, contiguous. A tensor that is a part of other memory has no such order, and is refused.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Graph, Node

from autopar.errors import TraceError
from autopar.tracer.failures import at

aten = torch.ops.aten


def read_in_order(graph: Graph) -> None:
    """Put a permutation and a `contiguous` before every `as_strided`. Raises TraceError where that cannot be said."""
    for node in graph.find_nodes(op="call_function", target=aten.as_strided.default):
        source, size, stride, *given = node.args
        assert isinstance(source, Node)
        val: Tensor = source.meta["val"]
        offset = 0 if not given or given[0] is None else given[0] - val.storage_offset()
        strides = val.stride()
        order = sorted(range(val.ndim), key=lambda d: (-strides[d], d))
        if not val.permute(order).is_contiguous() or not within(val, size, stride, offset):
            raise TraceError(
                f"the model reads memory by position (as_strided{at(node)}) of a tensor that is a part "
                "of another one: make it contiguous before, or use unfold or an index"
            )
        with graph.inserting_before(node):
            moved = source
            if order != sorted(order):
                moved = graph.call_function(aten.permute.default, (source, order))
                moved.meta = {**node.meta, "val": val.permute(order)}
            laid = graph.call_function(aten.contiguous.default, (moved,))
            laid.meta = {**node.meta, "val": val.permute(order).contiguous()}
        node.args = (laid, size, stride, offset)


def within(val: Tensor, size: object, stride: object, offset: int) -> bool:
    """Whether all that is read belongs to the tensor."""
    assert isinstance(size, list | tuple)
    assert isinstance(stride, list | tuple)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    return bool(offset >= 0) and bool(last < val.numel())
