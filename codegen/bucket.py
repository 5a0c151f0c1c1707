"""Small reductions of gradients travel together: starting a collective takes as long as sending many bytes.

Biases and norms have gradients of a few kilobytes, each with a reduction of its own. In a backward graph, those that nothing
else in it reads, and of fewer bytes than are sent while one collective starts (a plan's `bucket_bytes`, by mesh axis), wait for
each other until they are some times as many together. Figures count them one by one.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from torch.fx import Graph, Node

from autopar.codegen.schedule import TOGETHER, received, unread, waits_of
from autopar.ops.flops import collective_of
from autopar.ops.joint import bytes_of

FULL = 4
"""So many times the bytes that are sent while one collective starts: a fifth of its time is the start."""


def bucket(graph: Graph, sizes: Mapping[str, int], others: set[Node]) -> None:
    """In place. Results in `others` are not delayed: the next graph reads them."""
    nodes = [n for n in graph.nodes if n.op not in ("placeholder", "output")]
    late = unread(nodes, received(nodes))
    waiting: dict[tuple[Any, ...], list[Node]] = {}
    for node in nodes:
        sent = collective_of(node) if node.target in TOGETHER else None
        waits = waits_of(node)
        if sent is None or not late.issuperset(waits) or sent.bytes >= sizes.get(sent.axis, 0) or reaches(waits[0], others):
            continue
        key = (node.target, *node.args[1:], node.meta["val"].dtype)
        waiting.setdefault(key, []).append(node)
        if sum(bytes_of(n.all_input_nodes[0]) for n in waiting[key]) >= FULL * sizes[sent.axis]:
            join(graph, waiting.pop(key))
    for found in waiting.values():
        join(graph, found)
    last = graph.output_node()
    for node in nodes:
        if node in late:
            last.prepend(node)


def reaches(node: Node, results: set[Node]) -> bool:
    return node in results or any(reaches(user, results) for user in node.users if user.op != "output")


def join(graph: Graph, starts: list[Node]) -> None:
    """Put one collective in the place of the last of several."""
    if len(starts) < 2:
        return
    first, last = starts[0], starts[-1]
    known: Mapping[Any, Any] = TOGETHER
    with graph.inserting_after(last):
        args = ([n.all_input_nodes[0] for n in starts], *last.args[1:])
        together = graph.create_node("call_function", known[last.target], args, name=f"{first.name}_together")
    together.meta = {**first.meta, "val": [n.meta["val"] for n in starts]}
    after = together
    for k, start in enumerate(starts):
        with graph.inserting_after(after):
            part = graph.create_node("call_function", operator.getitem, (together, k), name=f"{start.name}_part")
        part.meta, after = dict(start.meta), part
        start.replace_all_uses_with(part)
        graph.erase_node(start)
