"""A backward graph without its reductions of gradients, and what brings them later.

A gradient at rest is a linear function of a local one: all-reduces, reduce-scatters and moves. So sums of local gradients
may wait for their reduction. `cut` finds, in a backward graph as it was emitted, the collectives that only such gradients need
and all that follows them; three graphs are made of it: `local` without that part, `closing` that adds sums just before it,
and `reduction`, that part alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.fx import Graph, Node

from autopar.codegen.schedule import TOGETHER, started
from autopar.codegen.split import Halves, copy_node, copy_placeholder, placeholders, prune, results_of
from autopar.ops.joint import alias_base, bytes_of

aten, c10d = torch.ops.aten, torch.ops._c10d_functional
SUMMING = frozenset({*TOGETHER, *TOGETHER.values()})
COLLECTIVES = SUMMING | {c10d.all_gather_into_tensor.default, c10d.all_to_all_single.default}
MOVES = frozenset(
    {
        aten.add.Tensor,
        aten.cat.default,
        aten.clone.default,
        aten.index_select.default,
        aten.constant_pad_nd.default,
        aten._to_copy.default,
    }
)
"""Linear in what they move; views and waits beside them. A cast is, but for rounding."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """`reductions`: the nodes that wait; `sums`: what they read, in order; `results`: which of the graph's results they make;
    `coordinates`: the placeholders of the device's place on the mesh axes, which they may read as well."""

    graph: Graph
    reductions: frozenset[Node]
    sums: tuple[Node, ...]
    results: tuple[int, ...]
    coordinates: tuple[Node, ...]

    @property
    def bytes(self) -> int:
        """Of the local gradients that are kept until they are reduced."""
        return sum(bytes_of(node) for node in self.sums)

    @cached_property
    def local(self) -> Graph:
        """The graph's arguments -> its results but for those that wait, then what these are made of."""
        graph, env = Graph(), dict[Node, Node]()
        for node in self.graph.nodes:
            if node.op == "placeholder":
                env[node] = copy_placeholder(graph, node)
            elif node.op != "output" and node not in self.reductions:
                env[node] = copy_node(graph, node, env)
        kept = [env[n] for i, n in enumerate(results_of(self.graph)) if i not in self.results]
        graph.output((*kept, *(env[n] for n in self.sums)))
        prune(graph)
        return graph

    @cached_property
    def closing(self) -> Graph:
        """The graph's arguments, then sums -> its results, those of the sums included. Its order is that of the graph."""
        graph, env = Graph(), dict[Node, Node]()
        env |= {node: copy_placeholder(graph, node) for node in placeholders(self.graph)}
        waiting = {node: copy_placeholder(graph, node, "sum_") for node in self.sums}
        added: dict[Node, Node] = {}
        for node in self.graph.nodes:
            if node.op == "call_function":
                env[node] = copy_node(graph, node, env | added if node in self.reductions else env)
            if node in waiting:
                added[node] = graph.call_function(aten.add.Tensor, (env[node], waiting[node]))
                added[node].meta = dict(node.meta)
        graph.output(tuple(env[n] for n in results_of(self.graph)))
        return graph

    @cached_property
    def reduction(self) -> Graph:
        """Coordinates, then sums -> the results that waited."""
        graph, env = Graph(), dict[Node, Node]()
        env |= {node: copy_placeholder(graph, node) for node in self.coordinates}
        env |= {node: copy_placeholder(graph, node, "sum_") for node in self.sums}
        for node in self.graph.nodes:
            if node.op == "call_function" and node not in env and all(n in env for n in node.all_input_nodes):
                env[node] = copy_node(graph, node, env)
        results = results_of(self.graph)
        graph.output(tuple(env[results[i]] for i in self.results))
        prune(graph)
        return graph


def cut(halves: Halves, inputs: int, state: int) -> Cut:
    """Of the backward graph of a region with so many inputs and tensors of state."""
    results = results_of(halves.backward)
    given = dict(zip(halves.backward_inputs, placeholders(halves.backward), strict=False))
    # keys of random draws, which come after coordinates, are tables
    coordinates = tuple(node for k, node in given.items() if k >= inputs + state and not node.meta["val"].shape)
    places = derived(halves.backward, coordinates)
    into_inputs = {node for node, k in zip(results, halves.gradients, strict=True) if k < inputs}
    movable: set[Node] = set()
    for node in reversed(halves.backward.nodes):
        if is_linear(node, places) and node not in into_inputs and all(n in movable or n.op == "output" for n in node.users):
            movable.add(node)
    reductions: set[Node] = set()
    for node in halves.backward.nodes:
        if node in movable and (node.target in COLLECTIVES or any(n in reductions for n in node.all_input_nodes)):
            reductions.add(node)
    read = [n for node in halves.backward.nodes if node in reductions for n in node.all_input_nodes]
    return Cut(
        graph=halves.backward,
        reductions=frozenset(reductions),
        sums=tuple(dict.fromkeys(n for n in read if n not in reductions and n not in places)),
        results=tuple(i for i, node in enumerate(results) if node in reductions),
        coordinates=coordinates,
    )


def derived(graph: Graph, sources: Iterable[Node]) -> set[Node]:
    """The sources, and what is made of them alone."""
    found = set(sources)
    for node in graph.nodes:
        if node.all_input_nodes and node.op == "call_function" and found.issuperset(node.all_input_nodes):
            found.add(node)
    return found


def is_linear(node: Node, places: set[Node]) -> bool:
    """Whether what it makes is linear in what it reads, apart from places on the mesh."""
    if node.op != "call_function" or node in places:
        return False
    if node.target in SUMMING:
        return node.args[1] == "sum"
    return node.target in COLLECTIVES or node.target in MOVES or alias_base(node) is not None or started(node) is not None
