"""Checks in torch's own code that only raise an error: whether matrices had an inverse, a factor, a solution.

They read data and have no result, so no plan has them: it is assumed that they pass. Torch keeps them in order by a token that
goes from one to the next, in at the beginning and out at the end.
"""

from __future__ import annotations

import operator

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from autopar.tracer.failures import source_of

CHECKS = frozenset({torch.ops.aten._linalg_check_errors.default})


def drop_checks_of_data(exported: ExportedProgram) -> list[str]:
    """Take them out of the graph, in place, and the token with the last of all effects; says what is assumed by that."""
    from torch.export.graph_signature import InputKind, OutputKind

    found: dict[str, None] = {}
    effects = [node for node in exported.graph.nodes if node.target is torch.ops.higher_order.with_effects]
    for node in effects:
        token, op, *given = node.args
        if op not in CHECKS:
            return []
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
