"""Copies of a block's traced nodes in the place of every further call of it."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch.fx import Graph, Node

from autopar.torch_private import OpOverload
from autopar.tracer.checkpoints import moved_mark
from autopar.tracer.markers import between, is_number, markers, mutated
from autopar.tracer.once import Once, Template, Unrepeatable
from autopar.tracer.runs import Step

if TYPE_CHECKING:
    from autopar.tracer.capture import Captured


def check_writes(graph: Graph, once: Once) -> None:
    """Raise Unrepeatable if code between blocks writes into what a block returned, where that is a view of something else."""
    marks = markers()
    returned = {node.args[1]: node.args[0] for node in graph.nodes if node.target is marks.leave}
    views = {node for outputs in returned.values() for node in outputs if _is_view(node)}
    for call in (node for node in graph.nodes if node.target is marks.again):
        template = once.calls[call.args[2]][0]
        outputs, stopped = returned[template.index], template.result.stopped
        views |= {user for user in call.users if _is_view(outputs[user.args[1]]) or user.args[1] in stopped}
    for node in graph.nodes:
        if any(_chain(written) & views for written in mutated(node)):
            raise Unrepeatable(f"{node.name} writes into a view that a block returned")


def expand(captured: Captured, once: Once, steps: Mapping[int, list[Step]], names: Mapping[str, str]) -> None:
    """Replace every `same_block` by copies of the nodes of the blocks that it stands for; in place.

    `steps` is what `contract` returned; `names` maps every name of a parameter or buffer to its canonical one.

    Raises Unrepeatable if a traced block uses a tensor that is neither its argument nor its state.
    """
    copier = Copier(captured, once, steps, names)
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
    """Knows the traced blocks of a graph and copies them."""

    def __init__(self, captured: Captured, once: Once, steps: Mapping[int, list[Step]], names: Mapping[str, str]) -> None:
        self.captured, self.once, self.steps, self.names = captured, once, steps, names
        self.graph = captured.graph
        self.enters: dict[Any, Node] = {}
        self.leaves: dict[Any, Node] = {}
        self.state: dict[str, Node] = {
            captured.state_of[n.name]: n for n in self.graph.find_nodes(op="placeholder") if n.name in captured.state_of
        }

    def copy(self, call: Node) -> None:
        results: list[list[Node]] = []
        inputs: Any = call.args[0]
        with self.graph.inserting_before(call):
            for step in self.steps[call.args[2]]:  # type: ignore[index]
                results.append(self._step(step, [inputs[j] if i < 0 else results[i][j] for i, j in step.sources]))
        stopped = self.once.calls[call.args[2]][0].result.stopped  # type: ignore[index]
        for user in list(call.users):
            for stop in list(user.users) if user.args[1] in stopped else ():
                stop.replace_all_uses_with(user)
                self.graph.erase_node(stop)
            user.replace_all_uses_with(results[-1][user.args[1]])  # type: ignore[index]
            self.graph.erase_node(user)
        self.graph.erase_node(call)

    def _step(self, step: Step, inputs: list[Node]) -> list[Node]:
        """A copy of the block for these inputs; what it returns."""
        template, block = self.once.calls[step.call]
        enter, leave = self.enters[template.index], self.leaves[template.index]
        made = dict(zip(enter.args[0], inputs, strict=True))  # type: ignore[arg-type]
        state = self._state(template, block.path)
        moved = Moved(enter.meta, step.meta, step.call)
        skipped = (markers().enter, markers().leave)

        def placed(node: Node) -> Node:
            if node in made:
                return made[node]
            if node.name in self.captured.state_of and self.captured.state_of[node.name] in state:
                return self._placeholder(state[self.captured.state_of[node.name]], node)
            if is_number(node):
                return node
            raise Unrepeatable(f"{template.block.path} uses {node.name}, which is neither its argument nor its own")

        for node in between(enter):
            if node.target not in skipped and not is_number(node):
                made[node] = copy = self.graph.node_copy(node, placed)
                copy.meta = moved.meta(node)
        return [made[node] for node in leave.args[0]]  # type: ignore[union-attr]

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
    """The meta of a copied node: module paths, source lines and checkpoints as if it had been traced at the call."""

    def __init__(self, enter: dict[str, Any], call: dict[str, Any], number: int) -> None:
        self.enter, self.call, self.number = enter, call, number
        self.paths = (_path(enter), _path(call))
        self.lines = (enter.get("stack_trace") or "", call.get("stack_trace") or "")

    def meta(self, node: Node) -> dict[str, Any]:
        meta = dict(node.meta)
        if stack := meta.get("nn_module_stack"):
            meta["nn_module_stack"] = {key: (self._path(path), kind) for key, (path, kind) in stack.items()}
        trace, (old, new) = meta.get("stack_trace"), self.lines
        if trace and old != new and trace.startswith(old):
            meta["stack_trace"] = new + trace.removeprefix(old)
        return moved_mark(meta, self.enter, self.call, self.number)

    def _path(self, path: str) -> str:
        old, new = self.paths
        return new + path.removeprefix(old) if path == old or path.startswith(f"{old}.") else path


def _path(meta: dict[str, Any]) -> str:
    stack = meta.get("nn_module_stack")
    return str(next(reversed(stack.values()))[0]) if stack else ""


def _is_view(node: Node) -> bool:
    return isinstance(node.target, OpOverload) and any(r.alias_info is not None for r in node.target._schema.returns)


def _chain(node: Node) -> set[Node]:
    """The node and what it is a view of, or was before it was written into."""
    chain = {node}
    while _is_view(node) or (node.target is operator.getitem and node.all_input_nodes[0].target is not markers().again):
        node = node.all_input_nodes[0]
        chain.add(node)
    return chain
