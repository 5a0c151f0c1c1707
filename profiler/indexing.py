"""`x[...]` on symbolic sizes: a slice that takes a whole dim is no view for torch's C++, but where sizes are symbols it is one.

Such a view costs nothing in forward; its backward makes memory.
"""

from __future__ import annotations

from types import EllipsisType
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def getitem(x: Tensor, index: Any) -> Tensor | None:
    """`x[index]` by the ops that it runs where sizes are numbers; None if torch runs the same for symbols.

    >>> getitem(torch.ones(2, 3), 0) is None
    True
    """
    if not isinstance(index, tuple) or not all(map(is_plain, index)) or not any(isinstance(n, torch.SymInt) for n in x.shape):
        return None
    picked: list[Any] = []
    given, dim = x, 0
    for position, item in enumerate(index):
        if item is ...:
            dim = x.ndim - sum(rest is not None for rest in index[position + 1 :])
        elif isinstance(item, int | torch.SymInt):
            x = x.select(dim, item)
        elif item is None:
            x, dim = x.unsqueeze(dim), dim + 1
        else:
            if isinstance(item, Tensor):
                picked += [None] * (dim - len(picked)) + [item]
            elif not whole(item, x.shape[dim]):
                x = aten.slice.Tensor(x, dim, item.start, item.stop, item.step or 1)
            dim += 1
    if picked:
        return aten.index.Tensor(x, picked)  # type: ignore[no-any-return]
    return aten.alias.default(x) if x is given else x


def is_plain(item: Any) -> bool:
    if isinstance(item, Tensor):
        return item.ndim > 0 and item.dtype not in (torch.bool, torch.uint8)
    return item is None or (isinstance(item, int | torch.SymInt | slice | EllipsisType) and not isinstance(item, bool))


def whole(item: slice, size: Any) -> bool:
    starts = item.start is None or (isinstance(item.start, int) and item.start == 0)
    ends = item.stop is None or (not (isinstance(item.stop, int) and item.stop < 0) and bool(item.stop >= size))
    return starts and ends and item.step in (None, 1)
