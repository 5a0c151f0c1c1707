"""Copies of a block's traced nodes in the place of every further call of it."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch.fx import Graph, Node

from autopar.torch_private import OpOverload
from autopar.tracer.markers import between, is_number, markers, mutated
from autopar.tracer.once import Once, Template, Unrepeatable
from autopar.tracer.segments import module_path

if TYPE_CHECKING:
    from autopar.tracer.capture import Captured


def check_writes(graph: Graph, once: Once) -> None:
    """Raise Unrepeatable if code between blocks writes into what a block returned, where that is a view of something else."""
    marks = markers()
    returned = {node.args[1]: node.args[0] for node in graph.nodes if node.target is marks.leave}
    views = {node for outputs in returned.values() for node in outputs if _is_view(node)}
    for call in (node for node in graph.nodes if node.target is marks.again):
        outputs = returned[once.calls[call.args[2]][0].index]
        views |= {user for user in call.users if _is_view(outputs[user.args[1]])}
    for node in graph.nodes:
        if any(_chain(written) & views for written in mutated(node)):
            raise Unrepeatable(f"{node.name} writes into a view that a block returned")


def expand(captured: Captured, once: Once, names: Mapping[str, str]) -> None:
    """Replace every `same_block` by a copy of the nodes that it stands for; in place. `names`: any name of state to canonical.

    Raises Unrepeatable if a traced block uses a tensor that is neither its argument nor its state.
    """
    copier = Copier(captured, once, names)
    marks = markers()
    for node in list(captured.graph.nodes):
        if node.target is marks.enter:
            copier.enters[node.args[2]] = node
        elif node.target is marks.leave:
            copier.leaves[node.args[1]] = node
        elif node.target is marks.again:
            copier.copy(node)
    for node in reversed(list(captured.graph.nodes)):
        if node.target in (marks.enter, marks.leave):
            captured.graph.erase_node(node)


class Copier:
    def __init__(self, captured: Captured, once: Once, names: Mapping[str, str]) -> None:
        self.captured, self.once, self.names = captured, once, names
        self.graph = captured.graph
        self.enters: dict[Any, Node] = {}
        self.leaves: dict[Any, Node] = {}
        self.state = {
            captured.state_of[n.name]: n for n in self.graph.find_nodes(op="placeholder") if n.name in captured.state_of
        }

    def copy(self, call: Node) -> None:
        template, block = self.once.calls[call.args[2]]  # type: ignore[index]
        enter, leave = self.enters[template.index], self.leaves[template.index]
        made = dict(zip(enter.args[0], call.args[0], strict=True))  # type: ignore[arg-type]
        state = self._state(template, block.path)
        moved = Moved(enter, call)
        skipped = (markers().enter, markers().leave)

        def placed(node: Node) -> Node:
            if node in made:
                return made[node]
            if node.name in self.captured.state_of and self.captured.state_of[node.name] in state:
                return self._placeholder(state[self.captured.state_of[node.name]], node)
            if is_number(node):
                return node
            raise Unrepeatable(f"{template.block.path} uses {node.name}, which is neither its argument nor its own")

        with self.graph.inserting_before(call):
            for node in between(enter):
                if node.target not in skipped and not is_number(node):
                    made[node] = copy = self.graph.node_copy(node, placed)
                    copy.meta = moved.meta(node)
        results = [made[node] for node in leave.args[0]]  # type: ignore[union-attr]
        for user in list(call.users):
            user.replace_all_uses_with(results[user.args[1]])  # type: ignore[index]
            self.graph.erase_node(user)
        self.graph.erase_node(call)

    def _state(self, template: Template, path: str) -> dict[str, str]:
        """Canonical names of the block's state to those of the call's."""
        names = template.view.names
        canonical = [[self.names[f"{block}.{name}"] for name in names] for block in (template.block.path, path)]
        return dict(zip(*canonical, strict=True))

    def _placeholder(self, fqn: str, like: Node) -> Node:
        if fqn not in self.state:
            with self.graph.inserting_before(next(iter(self.graph.nodes))):
                node = self.graph.placeholder(f"p_{fqn.replace('.', '_')}")
            node.meta = {**like.meta, "needs_grad": self.captured.state[fqn].spec.needs_grad}
            self.state[fqn] = node
            self.captured.state_of[node.name] = fqn
        return self.state[fqn]


class Moved:
    """The meta of a copied node: module paths and source lines as if it had been traced at the call."""

    def __init__(self, enter: Node, call: Node) -> None:
        self.paths = (module_path(enter), module_path(call))
        self.lines = (enter.meta.get("stack_trace") or "", call.meta.get("stack_trace") or "")

    def meta(self, node: Node) -> dict[str, Any]:
        meta = dict(node.meta)
        if stack := meta.get("nn_module_stack"):
            meta["nn_module_stack"] = {key: (self._path(path), kind) for key, (path, kind) in stack.items()}
        trace, (old, new) = meta.get("stack_trace"), self.lines
        if trace and old != new and trace.startswith(old):
            meta["stack_trace"] = new + trace.removeprefix(old)
        return meta

    def _path(self, path: str) -> str:
        old, new = self.paths
        return new + path.removeprefix(old) if path == old or path.startswith(f"{old}.") else path


def _is_view(node: Node) -> bool:
    return isinstance(node.target, OpOverload) and any(r.alias_info is not None for r in node.target._schema.returns)


def _chain(node: Node) -> set[Node]:
    """The node and what it is a view of, or was before it was written into."""
    chain = {node}
    while _is_view(node) or (node.target is operator.getitem and node.all_input_nodes[0].target is not markers().again):
        node = node.all_input_nodes[0]
        chain.add(node)
    return chain
