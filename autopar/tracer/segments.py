"""Cutting the flat graph into consecutive segments, along the modules that it came from.

The hint is the module path: its outermost integer component that has siblings (`transformer.h.3`) names the block a node
belongs to. Nodes between two blocks of one stack belong to the first. Equality is proven afterwards, by `fold`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch.fx import Graph, Node


@dataclass(frozen=True)
class Segment:
    """Consecutive nodes; `stack` and `index` say which block ("transformer.h", "3") they are, if they are one."""

    nodes: tuple[Node, ...]
    stack: str | None = None
    index: str = ""

    @property
    def path(self) -> str:
        return "" if self.stack is None else f"{self.stack}.{self.index}".removeprefix(".")


def compute_nodes(graph: Graph) -> list[Node]:
    """The ops on tensors in execution order; arithmetic on symbolic sizes is left out: each region redoes its own."""
    return [node for node in graph.nodes if node.op == "call_function" and not is_size(node)]


def is_size(node: Node) -> bool:
    return isinstance(node.meta.get("val"), torch.SymInt | torch.SymBool | torch.SymFloat | int | float | bool)


def module_path(node: Node) -> str:
    """The module that the node was traced in, "" for the root."""
    stack = node.meta.get("nn_module_stack")
    return str(next(reversed(stack.values()))[0]) if stack else ""


def levels(path: str) -> Iterator[tuple[str, str]]:
    """(stack, index) of each integer component of a path, outermost first."""
    parts = path.split(".")
    for i, part in enumerate(parts):
        if part.isdigit():
            yield ".".join(parts[:i]), part


def segments(nodes: Sequence[Node], level: int = 0) -> list[Segment]:
    """Cut at the blocks of the `level`-th stack from outside; one segment if there is no such stack."""
    siblings: dict[str, set[str]] = {}
    places = []
    for node in nodes:
        place = list(levels(module_path(node)))
        places.append(place)
        for stack, index in place:
            siblings.setdefault(stack, set()).add(index)
    keys: list[tuple[str, str] | None] = []
    for place in places:
        stacked = [(stack, index) for stack, index in place if len(siblings[stack]) > 1]
        keys.append(stacked[level] if len(stacked) > level else None)
    keys = _filled(keys)
    cut = []
    for key, group in groupby(zip(keys, nodes, strict=True), key=lambda pair: pair[0]):
        members = tuple(node for _, node in group)
        cut.append(Segment(members, *key) if key else Segment(members))
    return cut


def _filled(keys: list[tuple[str, str] | None]) -> list[tuple[str, str] | None]:
    """Give nodes between two blocks of one stack to the first of the two."""
    filled = list(keys)
    last = None
    for i, key in enumerate(keys):
        if key is None:
            continue
        if last is not None and keys[last][0] == key[0]:  # type: ignore[index]
            filled[last + 1 : i] = [keys[last]] * (i - last - 1)
        last = i
    return filled
