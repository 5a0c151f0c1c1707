"""The modules of a profile as a tree: a list and its equal members are one row, and what costs nothing is left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from autopar.profile_view import View
from autopar.profiler.rows import ModuleRow, prefixes

ROWS = 30
"""How many rows fit, where no depth is asked for."""

NOTHING = 5e-4
"""Modules without parameters are left out where every figure is a smaller share of the model's."""


@dataclass(eq=False, kw_only=True)
class Node:
    """`calls`: how many modules this row stands for beside those that its parent row stands for."""

    label: str
    calls: int
    parameters: int
    flops: int
    saved_bytes: int
    seconds: float
    children: list[Node] = field(default_factory=list)

    def walk(self, depth: int, level: int = 0) -> Iterator[tuple[int, Node]]:
        """(level, node), down to that level, parents first."""
        yield level, self
        if level < depth:
            for child in self.children:
                yield from child.walk(depth, level + 1)

    @property
    def figures(self) -> tuple[float, ...]:
        return self.parameters, self.flops, self.saved_bytes

    def matters_in(self, root: Node) -> bool:
        pairs = ((self.flops, root.flops), (self.saved_bytes, root.saved_bytes), (self.seconds, root.seconds))
        return bool(self.parameters) or any(part > NOTHING * whole for part, whole in pairs)


def tree(view: View) -> Node:
    """Of all modules; the root is the model."""
    rows = {row.path: row for row in view.profile.modules}
    children: dict[str, list[str]] = {path: [] for path in rows}
    for path in rows:
        if path:
            children[next(p for p in list(prefixes(path))[1:] if p in rows)].append(path)
    root = _node(view, rows[""], view.profile.name, 1)
    _grow(view, rows, children, "", root, root)
    return root


def _grow(view: View, rows: dict[str, ModuleRow], children: dict[str, list[str]], path: str, node: Node, root: Node) -> None:
    for child in children[path]:
        made = _node(view, rows[child], child[len(path) :].lstrip("."), rows[path].calls)
        while len(children[child]) == 1 and _node(view, rows[children[child][0]], "", 1).figures == made.figures:
            child = children[child][0]
            made = _node(view, rows[child], child[len(path) :].lstrip("."), rows[path].calls)
        if made.matters_in(root):
            node.children.append(made)
            _grow(view, rows, children, child, made, root)


def _node(view: View, row: ModuleRow, label: str, calls_of_parent: int) -> Node:
    return Node(
        label=label,
        calls=row.calls // calls_of_parent,
        parameters=row.parameters,
        flops=view.number(row.forward_flops + row.backward_flops),
        saved_bytes=view.number(row.saved_bytes),
        seconds=view.module_s.get(row.path, 0.0),
    )


def shown_depth(root: Node) -> int:
    """The deepest level down to which the rows fit, at least one."""
    depth, rows = 1, 0
    while rows < (more := sum(1 for _ in root.walk(depth + 1))) <= ROWS:
        depth, rows = depth + 1, more
    return depth
