"""Joint graphs: a differentiable local graph, traced once with its backward.

The result knows for each forward node which node of the local graph made it (its origin), so that a plan, which speaks of
the program, can say what happens to it. Profiler and codegen trace with the same function: what the one measures is what
the other emits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from autopar.torch_private import fake_mode, graph_being_traced

aten = torch.ops.aten
ALIASES = frozenset(
    {
        torch.ops._c10d_functional.wait_tensor.default,
        aten._unsafe_view.default,
        aten.detach.default,
        aten.alias.default,
        aten.lift_fresh_copy.default,
    }
)
"""Results share memory with the first argument although the schema does not say so (or, for a wait, by what it means)."""


@dataclass(frozen=True, kw_only=True)
class TensorLike:
    """Shape, dtype and whether a gradient is wanted: what tracing needs to know of an input. No strides: contiguous."""

    shape: tuple[int | torch.SymInt, ...]
    dtype: torch.dtype
    needs_grad: bool

    def empty(self, device: str) -> torch.Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device=device)


@dataclass(frozen=True, kw_only=True)
class Joint:
    """`inputs` and `tangents` are placeholders; `outputs` and `gradients` (one per input, None without) nodes.

    `origin` maps forward nodes to names of nodes of the local graph; `value` maps those names to the nodes (a tuple of
    nodes for several results) that hold their results.
    """

    graph: torch.fx.Graph
    inputs: tuple[torch.fx.Node, ...]
    tangents: tuple[torch.fx.Node, ...]
    outputs: tuple[torch.fx.Node, ...]
    gradients: tuple[torch.fx.Node | None, ...]
    origin: dict[torch.fx.Node, str]
    value: dict[str, Any]

    @property
    def forward(self) -> list[torch.fx.Node]:
        return [n for n in self.graph.nodes if n in self.origin]

    @property
    def backward(self) -> list[torch.fx.Node]:
        return [n for n in self.graph.nodes if n.op == "call_function" and n not in self.origin]


class _Recorder(torch.fx.Interpreter):
    """Runs the local graph and notes which traced nodes each of its nodes made."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.origin: dict[torch.fx.Node, str] = {}
        self.values: dict[str, Any] = {}
        self.seen = 0

    def run_node(self, n: torch.fx.Node) -> Any:
        traced = graph_being_traced()
        count = len(traced.nodes)
        result = super().run_node(n)
        added = len(traced.nodes) - count
        for _, node in zip(range(added), reversed(traced.nodes), strict=False):
            self.origin[node] = n.name
        if n.op == "call_function" and not isinstance(result, int | torch.SymInt):
            self.values[n.name] = result
        return result


def trace_joint(
    graph: torch.fx.Graph,
    inputs: Sequence[TensorLike],
    differentiated: Sequence[bool],
    device: str = "cpu",
) -> Joint:
    """Trace `graph` (placeholders in the order of `inputs`, an output node with a tuple) with its backward.

    `differentiated` says of each output whether a gradient flows into it.
    """
    module = torch.fx.GraphModule(torch.nn.Module(), graph)
    recorder = _Recorder(module)
    with fake_mode():
        fakes = [i.empty(device) for i in inputs]
        leaves = [f.requires_grad_() if i.needs_grad else f for f, i in zip(fakes, inputs, strict=True)]
        wanted = [n for n, i in enumerate(inputs) if i.needs_grad]
        shapes = _output_like(module, leaves)
        tangents = [torch.empty_like(s).contiguous() for s, d in zip(shapes, differentiated, strict=True) if d]

        def forward_and_backward(*flat: torch.Tensor) -> Any:
            given = flat[: len(leaves)]
            outputs = recorder.run(*given)
            ends = [o for o, d in zip(outputs, differentiated, strict=True) if d]
            sources = [given[n] for n in wanted]
            grads: Sequence[Any] = ()
            if ends and sources:
                grads = torch.autograd.grad(ends, sources, list(flat[len(leaves) :]), allow_unused=True)
            return outputs, dict(zip(wanted, grads, strict=False)), recorder.values

        traced = make_fx(forward_and_backward, tracing_mode="real")(*leaves, *tangents)
    return _package(traced.graph, len(leaves), recorder)


def _output_like(module: torch.fx.GraphModule, leaves: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    with torch.no_grad():
        return cast(Sequence[torch.Tensor], module(*leaves))


def _package(graph: torch.fx.Graph, count: int, recorder: _Recorder) -> Joint:
    end = graph.output_node()
    traced: Any = end.args[0]
    outputs, grads, values = tuple(traced[0]), dict(traced[1]), dict(traced[2])
    gradients = [grads.get(i) for i in range(count)]
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    replaced = forget_detached(graph)

    def now(node: Any) -> Any:
        if isinstance(node, tuple | list):
            return tuple(now(n) for n in node)
        while node in replaced:
            node = replaced[node]
        return node

    outputs, gradients = now(outputs), list(now(gradients))
    end.args = ((outputs, tuple(gradients)),)
    graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output"))
    alive = set(graph.nodes)
    return Joint(
        graph=graph,
        inputs=tuple(placeholders[:count]),
        tangents=tuple(placeholders[count:]),
        outputs=outputs,
        gradients=tuple(gradients),
        origin={n: o for n, o in recorder.origin.items() if n in alive and n.op == "call_function"},
        value={name: now(v) for name, v in values.items()},
    )


def forget_detached(graph: torch.fx.Graph) -> dict[torch.fx.Node, torch.fx.Node]:
    """Drop `detach`, which autograd puts around saved results: in a traced graph it is an identity."""
    replaced = {}
    for node in list(graph.nodes):
        if node.target is aten.detach.default:
            (source,) = node.all_input_nodes
            node.replace_all_uses_with(source)
            replaced[node] = source
            graph.erase_node(node)
    return replaced


def alias_base(node: torch.fx.Node) -> torch.fx.Node | None:
    """The node whose memory this one shares, if it is a view (or a wait) of it."""
    first = node.args[0] if node.op == "call_function" and node.args else None
    if not isinstance(first, torch.fx.Node):
        return None
    if node.target in ALIASES:
        return first
    if getattr(node.target, "__name__", "") == "getitem":
        return alias_base(first)
    schema = getattr(node.target, "_schema", None)
    if schema is not None and schema.returns and schema.returns[0].alias_info is not None:
        return first
    return None


def owner(node: torch.fx.Node) -> torch.fx.Node:
    """The node whose memory this one shares in the end; itself if it made its own."""
    while (source := alias_base(node)) is not None:
        node = source
    return node


def bytes_of(node: torch.fx.Node) -> int:
    """Bytes of a traced node's results."""
    value = node.meta.get("val")
    values = value if isinstance(value, tuple | list) else (value,)
    return sum(v.numel() * v.element_size() for v in values if isinstance(v, torch.Tensor))
