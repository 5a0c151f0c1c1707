"""What a fusing compiler makes again for nothing is not saved: pointwise functions of what is there in backward anyway.

A plan says what is kept as eager PyTorch sees it: each op writes its result, so a result that backward reads is there anyway.
Fused, most of them would be written for backward alone. So what is a pointwise function of saved values that remain, or of
state that backward takes, is made again where backward first reads it, in the kernel that reads it; likewise the softmax of
outputs of the region, whose memory lasts. FLOPs and collectives stay those of the plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch.fx import Graph, Node

from autopar.codegen.emit import Emitted
from autopar.codegen.measure import measure
from autopar.codegen.split import Halves, copy_node, copy_placeholder, placeholders, prune, results_of
from autopar.ops.flops import node_flops
from autopar.ops.joint import alias_base

SOFTMAX = frozenset({torch.ops.aten._log_softmax.default, torch.ops.aten._softmax.default})
LONGEST = 16
"""How many ops may be needed to make one value again."""


def lean(emitted: Emitted) -> Emitted:
    """The program with fewer saved values; as it is if its counted peak would rise."""
    made: dict[int, Halves] = {}
    regions = {}
    for name, region in emitted.regions.items():
        for halves in region.classes:
            if id(halves) not in made:
                made[id(halves)] = lean_halves(halves)
        regions[name] = replace(region, classes=tuple(made[id(halves)] for halves in region.classes))
    found = replace(emitted, regions=regions)
    return found if measure(found).peak_bytes <= measure(emitted).peak_bytes else emitted


def lean_halves(halves: Halves) -> Halves:
    forward = {n.name: n for n in halves.forward.nodes}
    backward = {n.name: n for n in placeholders(halves.backward)}
    saved = list(halves.saved)
    returned = list(results_of(halves.forward)[: -len(saved)]) if saved else []
    for name in reversed(halves.saved):
        node = forward[name]
        if node in returned or (is_written_anyway(node) and any(map(is_extern, readers(backward[name])))):
            continue
        there = {n for n in backward if n != name and (n in saved or n not in halves.saved)}
        if node.target in SOFTMAX:
            there |= {n.name for n in returned}
        sources = needed(node, there)
        if sources is not None:
            saved.remove(name)
            saved += sorted(sources - set(backward) - set(saved))
    if saved == list(halves.saved):
        return halves
    return replace(
        halves,
        forward=returning(halves.forward, [*returned, *(forward[name] for name in saved)]),
        backward=without(halves, saved, forward),
        saved=tuple(saved),
    )


def is_written_anyway(node: Node) -> bool:
    """Whether forward needs its result in memory: something that is not fused makes it or reads it."""
    return is_extern(node) or any(map(is_extern, readers(node)))


def readers(node: Node) -> Iterator[Node]:
    """What reads a value, or views of it."""
    for user in node.users:
        if user.op == "call_function" and alias_base(user) is not None:
            yield from readers(user)
        else:
            yield user


def is_extern(node: Node) -> bool:
    """Whether it runs as a kernel of its own: matrix products, convolutions, attention, collectives, custom ops."""
    return node.op == "call_function" and (getattr(node.target, "namespace", "aten") != "aten" or node_flops(node) > 0)


def is_fused(node: Node) -> bool:
    """A pointwise op, a softmax, or a view."""
    return node.target in SOFTMAX or torch.Tag.pointwise in getattr(node.target, "tags", ()) or alias_base(node) is not None


def needed(node: Node, there: set[str]) -> set[str] | None:
    """What it is made of, among what is there by name; None if that does not do, or takes too many ops."""
    made: set[Node] = set()
    sources: set[str] = set()
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if one is not node and one.name in there:
            sources.add(one.name)
        elif one not in made:
            if one.op != "call_function" or is_extern(one) or not is_fused(one) or len(made) == LONGEST:
                return None
            made.add(one)
            waiting += one.all_input_nodes
    return sources


def returning(graph: Graph, results: list[Node]) -> Graph:
    """The graph with these results of it."""
    new, env = Graph(), dict[Node, Node]()
    new.graph_copy(graph, env)
    new.output(tuple(env[n] for n in results))
    prune(new)
    return new


def without(halves: Halves, saved: Sequence[str], forward: Mapping[str, Node]) -> Graph:
    """The backward graph that takes only these saved values, and makes the others again just before they are first read."""
    graph, env = Graph(), dict[Node, Node]()
    given = placeholders(halves.backward)
    taken, tangents = given[: len(halves.backward_inputs)], given[len(halves.backward_inputs) + len(halves.saved) :]
    by_name: dict[str, Node] = {}

    def need(node: Node) -> Node:
        if node.name not in by_name:
            made = {source: need(source) for source in node.all_input_nodes}
            by_name[node.name] = copy_node(graph, node, made, "_again")
            by_name[node.name].meta["again"] = True
        return by_name[node.name]

    for node in (*taken, *(forward[name] for name in saved), *tangents):
        by_name[node.name] = copy_placeholder(graph, node)
    for node in halves.backward.nodes:
        if node.op == "placeholder":
            continue
        for source in node.all_input_nodes:
            if source.op == "placeholder":
                env[source] = need(forward[source.name] if source.name in halves.saved else source)
        if node.op == "call_function":
            env[node] = copy_node(graph, node, env)
    graph.output(tuple(env[n] for n in results_of(halves.backward)))
    return graph
