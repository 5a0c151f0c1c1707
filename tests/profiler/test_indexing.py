"""Indexing symbolic sizes runs the ops that indexing real ones runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from autopar.profiler.fakes import OpenSizes
from autopar.torch_private import TorchDispatchMode, symbolic_sizes

BATCH, SEQ = 4, 6
S = slice
INDICES: dict[str, Any] = {
    "whole": S(None),
    "all whole": (S(None), S(None), S(None)),
    "up to a larger size": (S(0, 1000), S(None, SEQ)),
    "from minus zero": (S(None), S(-0, None), S(None)),
    "from minus one": (S(None), S(-1, None)),
    "all but the last": (S(None), S(None, -1), ...),
    "shifted": (..., S(1, None), S(None)),
    "every second": (S(None), S(None, None, 2)),
    "one": (S(None), 0),
    "first": 0,
    "last of the last": (..., -1),
    "new dims": (S(None), None, S(None), None),
    "new dim, then some": (None, ..., S(2, 4)),
    "one and new": (0, None, S(None), S(1, 3)),
    "all": ...,
    "gathered": (S(None), torch.tensor([0, 2])),
    "gathered twice": (torch.tensor([0, 1]), S(None), torch.tensor([3, 4])),
    "gathered at the end": (..., torch.tensor([[0, 2], [1, 1]])),
}


class Ops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The ops that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.prim.device.default:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def ops_of(x: torch.Tensor, index: Any) -> tuple[list[str], list[int]]:
    with OpenSizes(), Ops() as ops:
        shape = x[index].shape
    return ops.names, [int(n) for n in shape]


@pytest.mark.parametrize("name", INDICES)
def test_the_same_ops_run(name: str) -> None:
    sizes = symbolic_sizes({"batch": BATCH, "seq": SEQ})
    with sizes.mode:
        symbolic = torch.empty(sizes.sizes["batch"], sizes.sizes["seq"], 8)
        got = ops_of(symbolic, INDICES[name])
    assert got == ops_of(torch.empty(BATCH, SEQ, 8), INDICES[name])


def test_torch_alone_makes_views_of_whole_dims() -> None:
    """If this fails, `autopar.profiler.indexing` is no longer needed."""
    sizes = symbolic_sizes({"batch": BATCH})
    with sizes.mode:
        symbolic = torch.empty(sizes.sizes["batch"], 8)
        with Ops() as ops:
            symbolic[:]
    assert "aten.slice.Tensor" in ops.names
