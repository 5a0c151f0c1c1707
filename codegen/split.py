"""From one joint graph to a forward and a backward graph: the plan says what is kept, the rest is made again.

Backward may read a forward value only if the plan keeps it, or keeps what it takes to redo it. Views are free: the owner of
the memory is what is kept. A value that backward needs and the plan does not provide is a broken invariant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from autopar.codegen.local import LocalRegion
from autopar.ir.plan import PlannedClass
from autopar.ops.joint import Joint, alias_base


@dataclass(frozen=True, kw_only=True)
class Halves:
    """`forward`: the joint graph's inputs -> outputs, then saved values. `backward`: `backward_inputs` (positions among
    the joint graph's inputs that it takes again: state and coordinates), saved values, tangents -> gradients.

    `gradients` are the positions of the inputs that the backward graph's results belong to.
    """

    forward: torch.fx.Graph
    backward: torch.fx.Graph
    saved: tuple[str, ...]
    backward_inputs: tuple[int, ...]
    gradients: tuple[int, ...]


def owner(node: torch.fx.Node) -> torch.fx.Node:
    while (source := alias_base(node)) is not None:
        node = source
    return node


class Splitter:
    """Builds the two graphs for one class of calls."""

    def __init__(self, local: LocalRegion, joint: Joint, keep: PlannedClass) -> None:
        self.local, self.joint, self.keep = local, joint, keep
        self.step = {n.name: n.meta for n in local.graph.nodes}
        self.forward_nodes = set(joint.origin)
        self.state = {n for n in joint.inputs[len(local.region.inputs) :]}
        self.keepable = self.kept_values()
        self.saved: dict[torch.fx.Node, None] = {}

    def kept_values(self) -> set[torch.fx.Node]:
        """Owners of what the plan keeps: tensors at placements, and the insides of units."""
        placeholders = {n.name: n for n in self.local.graph.nodes if n.op == "placeholder"}
        found = {self.joint.inputs[list(placeholders).index(name)] for name in self.local.resident}
        for kept in self.keep.kept:
            name = self.local.values[kept.tensor, kept.placement]
            if name in placeholders:
                found.add(self.joint.inputs[list(placeholders).index(name)])
            else:
                found.add(owner(self.joint.value[name]))
        inside = set(self.keep.kept_internals)
        values = {owner(v) for name in self.local.values.values() for v in self.value(name)}
        found |= {
            n for n, o in self.joint.origin.items() if self.step[o].get("unit") in inside and owner(n) is n and n not in values
        }
        return found

    def value(self, name: str) -> list[torch.fx.Node]:
        found = self.joint.value.get(name)
        return [found] if isinstance(found, torch.fx.Node) else []

    def may_redo(self, node: torch.fx.Node) -> bool:
        step = self.step[self.joint.origin[node]]
        if "unit" in step:
            return step["unit"] in self.keep.redone
        return any((c.tensor, c.before, c.after) == step["conversion"] for c in self.keep.reconverted)

    def backward(self) -> tuple[torch.fx.Graph, tuple[int, ...], tuple[int, ...]]:
        graph = torch.fx.Graph()
        env: dict[torch.fx.Node, torch.fx.Node] = {}
        for tangent in self.joint.tangents:
            env[tangent] = copy_placeholder(graph, tangent)
        first = next(iter(graph.nodes), None)
        taken: dict[torch.fx.Node, None] = {}

        def given(node: torch.fx.Node) -> torch.fx.Node:
            with graph.inserting_before(first) if first is not None else graph.inserting_after(None):
                return copy_placeholder(graph, node)

        def need(node: torch.fx.Node) -> torch.fx.Node:
            if node in env:
                return env[node]
            if node in self.state:
                taken[node] = None
                env[node] = given(node)
            elif node in self.keepable:
                self.saved[node] = None
                env[node] = given(node)
            else:
                if node.op == "placeholder":
                    raise AssertionError(
                        f"{self.local.region.name}: backward reads input {node.name}, which the plan does not keep"
                    )
                is_free = alias_base(node) is not None or getattr(node.target, "__name__", "") == "getitem"
                if node in self.forward_nodes and not is_free and not self.may_redo(node):
                    where = self.joint.origin[node]
                    raise AssertionError(
                        f"{self.local.region.name}: backward reads {node.name} of {where}, which the plan does not provide"
                    )
                for source in node.all_input_nodes:
                    need(source)
                again = "_again" if node in self.forward_nodes else ""
                env[node] = copy_node(graph, node, env, again)
            return env[node]

        for node in self.joint.backward:
            need(node)
        gradients = tuple(i for i, g in enumerate(self.joint.gradients) if g is not None)
        results = tuple(need(self.joint.gradients[i]) for i in gradients)  # type: ignore[arg-type]
        graph.output(results)
        prune(graph)
        order = {n: i for i, n in enumerate(self.joint.inputs)}
        return graph, tuple(order[n] for n in taken), gradients

    def halves(self) -> Halves:
        backward, taken, gradients = self.backward()
        saved = list(self.saved)
        names = [self.joint.inputs[i].name for i in taken] + [n.name for n in saved] + [n.name for n in self.joint.tangents]
        arrange_placeholders(backward, names)
        forward = self.forward(saved)
        return Halves(
            forward=forward,
            backward=backward,
            saved=tuple(n.name for n in saved),
            backward_inputs=taken,
            gradients=gradients,
        )

    def forward(self, saved: Iterable[torch.fx.Node]) -> torch.fx.Graph:
        graph = torch.fx.Graph()
        env: dict[torch.fx.Node, torch.fx.Node] = {n: copy_placeholder(graph, n) for n in self.joint.inputs}
        for node in self.joint.graph.nodes:
            if node in self.forward_nodes:
                env[node] = copy_node(graph, node, env)
        graph.output((*(env[n] for n in self.joint.outputs), *(env[n] for n in saved)))
        prune(graph)
        return graph


def copy_placeholder(graph: torch.fx.Graph, node: torch.fx.Node) -> torch.fx.Node:
    new = graph.create_node("placeholder", node.name, name=node.name)
    new.meta = dict(node.meta)
    return new


def copy_node(
    graph: torch.fx.Graph, node: torch.fx.Node, env: Mapping[torch.fx.Node, torch.fx.Node], suffix: str = ""
) -> torch.fx.Node:
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
    new = graph.create_node(node.op, node.target, args, kwargs, name=node.name + suffix)
    new.meta = dict(node.meta)
    return new


def prune(graph: torch.fx.Graph) -> None:
    """Remove what nothing reads; collectives included (their results are what they are run for)."""
    graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output"))


def arrange_placeholders(graph: torch.fx.Graph, names: list[str]) -> None:
    """Put the placeholders in this order, adding those that the graph lost for want of readers."""
    existing = {str(n.target): n for n in graph.nodes if n.op == "placeholder"}
    first_call: Any = next(n for n in graph.nodes if n.op != "placeholder")
    for name in names:
        first_call.prepend(existing[name])


def split(local: LocalRegion, joint: Joint, keep: PlannedClass) -> Halves:
    return Splitter(local, joint, keep).halves()
