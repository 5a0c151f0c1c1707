"""The whole local forward program as one module that calls its regions: for reading, and for checking by others."""

from __future__ import annotations

from operator import getitem

import torch

from autopar.codegen.emit import Emitted
from autopar.ops.draws import KEY


def forward_graph(emitted: Emitted) -> torch.fx.GraphModule:
    """A differentiable module: placeholders for inputs, state, mesh coordinates and keys of random draws; one call per region
    call; outputs."""
    root = torch.nn.Module()
    graph = torch.fx.Graph()
    program = emitted.program
    values = {name: graph.placeholder(identifier(name)) for name in program.inputs if name}
    state = {name: graph.placeholder(identifier(name)) for name in program.state}
    coordinates = [graph.placeholder(f"coordinate_{name}") for name in emitted.plan.mesh.names]
    draws = [any(unit.sites for unit in emitted.regions[call.region].local.units) for call in program.calls]
    keys = [[graph.placeholder(f"{KEY}_{i}")] if drawn else [] for i, drawn in enumerate(draws)]
    for i, call in enumerate(program.calls):
        target = identifier(call.region)
        if not hasattr(root, target):
            root.add_module(target, emitted.regions[call.region].local.module)
        args = (*(values[v] for v in call.inputs), *(state[s] for s in call.state), *coordinates, *keys[i])
        result = graph.create_node("call_module", target, args, name=identifier(call.path or call.region))
        for j, value in enumerate(call.outputs):
            values[value] = graph.call_function(getitem, (result, j))
    graph.output(tuple(values[v] for v in program.outputs if v))
    return torch.fx.GraphModule(root, graph, class_name="ParallelForward")


def identifier(name: str) -> str:
    """A name as a Python identifier: "transformer.h.*" -> "transformer_h"."""
    text = "".join(c if c.isalnum() else "_" for c in name).strip("_")
    return text if text and not text[0].isdigit() else f"v_{text}"
