"""The boxed calling convention: arguments come in a list that the callee empties, so that each dies at its last use."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx.graph import CodeGen


class Boxed(CodeGen):
    """Generates `forward(self, boxed)`, where `boxed` is a list of the graph's inputs."""

    def gen_fn_def(self, free_vars: list[str], maybe_return_annotation: str, **options: Any) -> str:
        taken = "".join(f"{name}, " for name in free_vars)
        opening = f"    [{taken}] = boxed\n    boxed.clear()\n" if free_vars else ""
        return f"def forward(self, boxed){maybe_return_annotation}:\n{opening}"

    def process_inputs(self, *inputs: Any) -> Any:
        return inputs[0]


def boxed_module(graph: torch.fx.Graph, name: str) -> torch.fx.GraphModule:
    """A module that runs the graph on a list of inputs."""
    graph.set_codegen(Boxed())
    return torch.fx.GraphModule(torch.nn.Module(), graph, class_name=name)
