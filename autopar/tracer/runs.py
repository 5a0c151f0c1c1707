"""One node for blocks that follow each other directly, so that decomposition sees as many nodes as there are runs of them."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

from torch.fx import Graph, Node

from autopar.tracer.markers import is_number, markers

Source = tuple[int, int]
"""Where an input of a step comes from: (-1, position among the inputs of the run), or (step of the run, its output)."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One call of a block in a run, and the meta of the node that stood for it."""

    call: int
    sources: tuple[Source, ...]
    meta: dict[str, Any]


def contract(graph: Graph) -> dict[int, list[Step]]:
    """Let one `same_block` node stand for several in a row where only the last one's results are used by others; in place.

    Returns the steps of every such node that is left, by the call that it names.
    """
    steps: dict[int, list[Step]] = {}
    row: list[Node] = []
    for node in [*graph.nodes]:
        if node.target is markers().again:
            row.append(node)
        elif not is_number(node) and not (node.target is operator.getitem and node.args[0] in row):
            for run in _runs(row):
                steps[run[-1].args[2]] = _merge(graph, run)  # type: ignore[index]
            row = []
    return steps


def _runs(row: list[Node]) -> list[list[Node]]:
    """Cut a row of calls after each whose results are used by anything but later calls of the same run."""
    if not row:
        return []
    last = {row[-1]}
    while True:
        run_of, number = {}, 0
        for node in row:
            run_of[node] = number
            number += node in last
        more = {node for node in row if node not in last and any(run_of.get(user) != run_of[node] for user in _readers(node))}
        if not more:
            break
        last |= more
    runs: list[list[Node]] = [[] for _ in range(number)]
    for node in row:
        runs[run_of[node]].append(node)
    return runs


def _readers(call: Node) -> set[Node]:
    return {reader for result in call.users for reader in result.users}


def _merge(graph: Graph, run: list[Node]) -> list[Step]:
    """Give the last call of a run the inputs of all and erase the others."""
    made: dict[Node, Source] = {result: (i, result.args[1]) for i, call in enumerate(run) for result in call.users}  # type: ignore[misc]
    outer: dict[Node, Source] = {}
    steps = []
    for call in run:
        inputs: Any = call.args[0]
        for node in inputs:
            if node not in made:
                outer.setdefault(node, (-1, len(outer)))
        steps.append(Step(call=call.args[2], sources=tuple((made | outer)[n] for n in inputs), meta=dict(call.meta)))  # type: ignore[arg-type]
    run[-1].args = (list(outer), *run[-1].args[1:])
    for call in reversed(run[:-1]):
        for result in list(call.users):
            graph.erase_node(result)
        graph.erase_node(call)
    return steps
