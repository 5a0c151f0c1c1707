"""Joint graphs as JSON, and back. They are found by the local graph that they are traced from, to the last argument."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from torch.fx import Graph, Node

from autopar.cache.tables import NotStorable, graph_of, graph_table
from autopar.ops.joint import Joint, TensorLike
from autopar.torch_private import fake_mode

VERSION = 1


def joint_key(graph: Graph, inputs: Sequence[TensorLike], differentiated: Sequence[bool], device: str, around: str) -> str:
    """A hex digest of what a joint graph depends on; `around`: versions and code. Raises NotStorable."""
    parts = [VERSION, around, graph_table(graph), list(map(repr, inputs)), list(differentiated), device]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def joint_text(joint: Joint) -> str:
    """As JSON; raises NotStorable."""
    numbers = {node: i for i, node in enumerate(joint.graph.nodes)}
    content = {
        "version": VERSION,
        "graph": graph_table(joint.graph),
        "inputs": [numbers[n] for n in joint.inputs],
        "tangents": [numbers[n] for n in joint.tangents],
        "outputs": [numbers[n] for n in joint.outputs],
        "gradients": [None if n is None else numbers[n] for n in joint.gradients],
        "origin": [[numbers[n], name] for n, name in joint.origin.items()],
        "value": [[name, numbered(value, numbers)] for name, value in joint.value.items()],
    }
    return json.dumps(content)


def numbered(value: Any, numbers: dict[Node, int]) -> Any:
    """Of a node its number, of tuples of nodes lists of numbers; raises NotStorable for one that the graph has no more."""
    if isinstance(value, tuple):
        return [numbered(v, numbers) for v in value]
    if value is not None and value not in numbers:
        raise NotStorable(f"{value} is read, and not in the graph")
    return None if value is None else numbers[value]


def joint_of(text: str) -> Joint:
    """From `joint_text`."""
    content = json.loads(text)
    if content["version"] != VERSION:
        raise ValueError(f"version {content['version']}")
    graph = graph_of(content["graph"], fake_mode())
    nodes = list(graph.nodes)

    def noded(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(map(noded, value))
        return None if value is None else nodes[value]

    return Joint(
        graph=graph,
        inputs=noded(content["inputs"]),
        tangents=noded(content["tangents"]),
        outputs=noded(content["outputs"]),
        gradients=noded(content["gradients"]),
        origin={nodes[i]: name for i, name in content["origin"]},
        value={name: noded(value) for name, value in content["value"]},
    )
