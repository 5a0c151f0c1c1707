"""Checks in torch's own code that only raise an error: whether matrices had an inverse, a factor, a solution.

They read data and have no result, so no plan has them: it is assumed that they pass, and what did not pass is nan. Torch keeps
them in order by a token that goes from one to the next, in at the beginning and out at the end; torch 2.11 drops them itself,
as code without a result.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from autopar.tracer.failures import source_of

aten = torch.ops.aten
CHECKS = frozenset({aten._linalg_check_errors.default})
CHECKED = {
    aten.linalg_inv_ex.default: (1, "linalg.inv"),
    aten.linalg_cholesky_ex.default: (1, "linalg.cholesky"),
    aten._linalg_solve_ex.default: (3, "linalg.solve"),
}
"""What functions with a check become: which result has the numbers of errors, and the function."""


def checks_that_torch_drops(exported: ExportedProgram, called: frozenset[Any]) -> list[str]:
    """As `drop_checks_of_data`, where no check is in the graph any more; `called`: the model's own ops, which want none."""
    graph, found = exported.graph, dict[str, None]()
    for node in list(graph.nodes):
        if node.target not in CHECKED or node.target in called:
            continue
        position, name = CHECKED[node.target]
        rest = node.next
        while rest.target is operator.getitem and rest.args[0] is node:
            rest = rest.next
        mark_failures(graph, rest, before(graph, rest, operator.getitem, node, position))
        found[f"{source_of(node) or 'the model'} raises no error in torch.{name}"] = None
    return list(found)


def drop_checks_of_data(exported: ExportedProgram) -> list[str]:
    """Take them out of the graph, in place, and the token with the last of all effects; says what is assumed by that."""
    from torch.export.graph_signature import InputKind, OutputKind

    found: dict[str, None] = {}
    effects = [node for node in exported.graph.nodes if node.target is torch.ops.higher_order.with_effects]
    for node in effects:
        token, op, *given = node.args
        if op not in CHECKS:
            return []
        assert isinstance(given[0], Node)
        mark_failures(exported.graph, node, given[0])
        found[f"{source_of(node) or 'the model'} raises no error in torch.{str(given[1]).removeprefix('torch.')}"] = None
        for user in list(node.users):
            assert user.target is operator.getitem, f"{user} uses an effect"
            assert isinstance(token, Node)
            user.replace_all_uses_with(token)
            exported.graph.erase_node(user)
        exported.graph.erase_node(node)
    signature, output = exported.graph_signature, exported.graph.output_node()
    returned = output.args[0]
    assert isinstance(returned, tuple | list)
    kept = [i for i, spec in enumerate(signature.output_specs) if spec.kind is not OutputKind.TOKEN]
    output.args = (tuple(returned[i] for i in kept),)
    signature.output_specs[:] = [signature.output_specs[i] for i in kept]
    placeholders = {node.name: node for node in exported.graph.find_nodes(op="placeholder")}
    for spec in [spec for spec in signature.input_specs if spec.kind is InputKind.TOKEN]:
        signature.input_specs.remove(spec)
        exported.graph.erase_node(placeholders[spec.arg.name])
    return list(found)


def mark_failures(graph: Graph, check: Node, info: Node) -> None:
    """Before the check: of the op whose numbers of errors, one per matrix, are `info`, the first result is nan where that is
    not zero."""
    source = info.args[0]
    assert isinstance(source, Node)
    for result in [user for user in source.users if user.args[1] == 0]:
        users = list(result.users)
        failed = before(graph, check, aten.ne.Scalar, info, 0)
        for _ in range(result.meta["val"].ndim - info.meta["val"].ndim):
            failed = before(graph, check, aten.unsqueeze.default, failed, -1)
        marked = before(graph, check, aten.masked_fill.Scalar, result, failed, math.nan)
        for user in users:
            user.replace_input_with(result, marked)


def before(graph: Graph, place: Node, op: Any, *args: Any, **kwargs: Any) -> Node:
    """A new node, from where the place is from."""
    with graph.inserting_before(place):
        node = graph.call_function(op, args, kwargs)
    given, named = torch.fx.map_arg((args, kwargs), lambda n: n.meta["val"])
    node.meta = {**place.meta, "val": op(*given, **named)}
    return node
