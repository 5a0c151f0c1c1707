"""Counts the collectives that really run."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from autopar.torch_private import TorchDispatchMode

c10d = torch.ops._c10d_functional
KINDS = {
    c10d.all_gather_into_tensor.default: "all_gather",
    c10d.all_gather_into_tensor_out.default: "all_gather",
    c10d.reduce_scatter_tensor.default: "reduce_scatter",
    c10d.all_reduce.default: "all_reduce",
    c10d.all_to_all_single.default: "all_to_all",
    c10d.reduce_scatter_tensor_coalesced.default: "reduce_scatter",
    c10d.all_reduce_coalesced.default: "all_reduce",
    c10d.all_reduce_.default: "all_reduce",
}

Sums = Counter[tuple[str, str, str]]


class Sent(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the collectives that really run, by kind, axis and phase; tensors side by side in one count one by one."""

    def __init__(self, mesh: DeviceMesh) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        assert mesh.mesh_dim_names
        self.axes = {mesh.get_group(name).group_name: name for name in mesh.mesh_dim_names}
        self.phase = "forward"
        self.counts: Sums = Counter()
        self.bytes: Sums = Counter()
        self.side_by_side: list[tuple[Tensor, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.cat.default:
            self.side_by_side.append((result, len(args[0])))
        if kind := KINDS.get(func):
            key = kind, self.axes[next(a for a in reversed(args) if isinstance(a, str))], self.phase
            sent = result if kind == "all_gather" else args[0]
            for tensor in sent if isinstance(sent, list) else [sent]:
                self.counts[key] += next((count for whole, count in self.side_by_side if whole is tensor), 1)
                self.bytes[key] += tensor.numel() * tensor.element_size()
        return result
