"""Nodes of a traced program, of any size, without tracing one."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from autopar.torch_private import fake_mode, pytree


@dataclass(frozen=True)
class Fake:
    """An operand without data."""

    shape: tuple[Any, ...]
    dtype: torch.dtype
    needs_grad: bool


def fake(*shape: Any, grad: bool = True, dtype: torch.dtype = torch.float32) -> Fake:
    return Fake(shape, dtype, grad)


def ids(*shape: int) -> Fake:
    return Fake(shape, torch.int64, False)


def node_of(
    op: Any, *args: Any, name: str = "node", source: str = "", mode: AbstractContextManager[object] | None = None
) -> fx.Node:
    """A call of the op, in a fake mode of its own unless one is given; its floating-point results need gradients if an operand
    does."""
    graph = fx.Graph()
    needed = any(isinstance(a, Fake) and a.needs_grad for a in args)
    given: list[Any] = []
    with mode or fake_mode(), torch.no_grad():
        for i, a in enumerate(args):
            if isinstance(a, Fake):
                placeholder = graph.placeholder(f"operand_{i}")
                placeholder.meta = {"val": torch.empty(a.shape, dtype=a.dtype), "needs_grad": a.needs_grad}
                given.append(placeholder)
            else:
                given.append(a)
        value = op(*fx.node.map_arg(tuple(given), lambda n: n.meta["val"]))
    node = graph.create_node("call_function", op, tuple(given), name=name)
    flags = [needed and v.is_floating_point() for v in pytree.tree_leaves(value)]
    node.meta = {
        "val": value,
        "needs_grad": flags if isinstance(value, tuple | list) else flags[0],
        "path": "",
        "source": source,
    }
    return node
