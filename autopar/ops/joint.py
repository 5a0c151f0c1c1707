"""Joint graphs: a differentiable local graph, traced once with its backward.

The result knows for each forward node which node of the local graph made it (its origin), so that a plan, which speaks of
the program, can say what happens to it. Profiler and codegen trace with the same function: what the one measures is what
the other emits.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from autopar.ir.autocast import no_autocast
from autopar.ops.casts import Wide
from autopar.torch_private import TorchDispatchMode, fake_mode, gradient_numbers, running_sequence_number, storage_key

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


class _Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes each op that runs while it is on into a graph, as torch's `make_fx` does, in a fifth of its time.

    It leaves out what our graphs have no use for: symbolic sizes, constants that are followed, Python functions that are
    intercepted. `origin`: the nodes written while `current` was set, with what it was. `gradients`: autograd's nodes, by
    number, with what was current when they came. Nodes are named after either, and their meta says it as "step".
    """

    def __init__(self, graph: torch.fx.Graph) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = graph
        self.written: dict[int, torch.fx.Node] = {}
        self.alive: list[torch.Tensor] = []
        self.origin: dict[torch.fx.Node, str] = {}
        self.current: str | None = None
        self.gradients: dict[int, str] = {}

    def placeholder(self, tensor: torch.Tensor, name: str) -> torch.fx.Node:
        return self.write(tensor, self.graph.placeholder(name))

    def node(self, value: Any) -> Any:
        """The node that made a tensor; tuples of nodes for tuples of tensors; anything else as it is."""
        if isinstance(value, tuple | list):
            return tuple(self.node(v) for v in value)
        if not isinstance(value, torch.Tensor):
            return value
        assert id(value) in self.written, f"a tensor of shape {list(value.shape)} was made out of sight of the tracer"
        return self.written[id(value)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = torch.fx.node.map_aggregate((args, kwargs or {}), lambda a: self.node(a) if isinstance(a, torch.Tensor) else a)
        if torch.Tag.inplace_view in func.tags:
            self.remember_shape(args[0])
        if is_write(func) and len(sharing := self.sharing(args[0])) > 1 and sharing[0] is not args[0]:
            return self.write_part(func, (args, kwargs or {}), given, sharing)
        result = func(*args, **(kwargs or {}))
        self.call(func, given, result)
        return result

    def call(self, func: Any, given: Any, result: Any) -> torch.fx.Node:
        """Append the call of an op: (args, kwargs) in nodes, and what came out."""
        running = running_sequence_number()
        step = self.current if running is None else self.gradients.get(running)
        name = called(step, func.overloadpacket.__name__)
        args, kwargs = given
        node = self.graph.create_node("call_function", func, args, kwargs, name=name if self.current else f"grad_{name}")
        node.meta["step"] = step
        return self.write(result, node)

    def sharing(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The tensors so far that share memory with this one, the one that made it first."""
        memory = storage_key(tensor)
        return [t for t in self.alive if storage_key(t) == memory]

    def write_part(self, func: Any, real: Any, given: Any, sharing: Sequence[torch.Tensor]) -> torch.Tensor:
        """A write into a view, as some backward formulas do. A graph has no memory for the other views to see it in: the part
        is made anew, put into a copy of the whole, and the other views are taken from that."""
        (part, *_), whole = real[0], sharing[0]
        plain = getattr(getattr(aten, func.overloadpacket.__name__.removesuffix("_")), func._overloadname)
        node = self.call(plain, given, plain(*real[0], **real[1]))
        self.written[id(part)] = node
        self.put(whole, aten.as_strided_scatter.default, (self.written[id(whole)], node, *place_of(part)))
        for other in sharing[1:]:
            if other is not part:
                self.put(other, aten.as_strided.default, (self.written[id(whole)], *place_of(other)))
        return cast(torch.Tensor, part)

    def put(self, tensor: torch.Tensor, func: Any, given: tuple[Any, ...]) -> None:
        """What stands for a tensor from here on."""
        self.written[id(tensor)] = self.call(func, (given, {}), torch.empty_like(tensor))

    def remember_gradients(self, value: Any, step: str) -> None:
        """Which of autograd's nodes the step has made for its result."""
        for tensor in value if isinstance(value, tuple | list) else (value,):
            if isinstance(tensor, torch.Tensor) and tensor.grad_fn is not None:
                self.gradients |= dict.fromkeys(gradient_numbers(tensor, self.gradients), step)

    def remember_shape(self, tensor: torch.Tensor) -> None:
        """Before an op changes it in place."""
        shaped_so = tensor.detach()
        for node in self.graph.nodes:
            if node.meta.get("val") is tensor:
                node.meta["val"] = shaped_so

    def write(self, result: Any, node: torch.fx.Node) -> torch.fx.Node:
        if self.current is not None:
            self.origin[node] = self.current
        if isinstance(result, tuple | list):
            node.meta["val"] = result
            for i, part in enumerate(result):
                if isinstance(part, torch.Tensor):
                    getitem = self.graph.create_node("call_function", operator.getitem, (node, i), name=f"{node.name}_{i}")
                    getitem.meta["step"] = node.meta["step"]
                    self.write(part, getitem)
        elif isinstance(result, torch.Tensor):
            node.meta["val"] = result
            self.written[id(result)] = node
            self.alive.append(result)
        return node


def is_write(func: Any) -> bool:
    """Whether an op writes into its first argument."""
    arguments = func._schema.arguments
    return bool(arguments) and arguments[0].alias_info is not None and arguments[0].alias_info.is_write


def place_of(tensor: torch.Tensor) -> tuple[list[int], list[int], int]:
    return list(tensor.shape), list(tensor.stride()), int(tensor.storage_offset())


@no_autocast()
def trace_joint(
    graph: torch.fx.Graph,
    inputs: Sequence[TensorLike],
    differentiated: Sequence[bool],
    device: str = "cpu",
) -> Joint:
    """Trace `graph` (placeholders in the order of `inputs`, an output node with a tuple) with its backward.

    `differentiated` says of each output whether a gradient flows into it. Where a node's meta has a "gradient_dtype", gradients
    pass it in that dtype (see `autopar.ops.casts`). Autocast is off: the casts that it makes are in the graph already.
    """
    tape = _Tape(torch.fx.Graph())
    with fake_mode():
        fakes = [i.empty(device) for i in inputs]
        leaves = [f.requires_grad_() if i.needs_grad else f for f, i in zip(fakes, inputs, strict=True)]
        names = [n.name for n in graph.nodes if n.op == "placeholder"]
        given = tuple(tape.placeholder(leaf, name) for leaf, name in zip(leaves, names, strict=True))
        outputs, values = _run(graph, leaves, tape)
        ends = [o for o, d in zip(outputs, differentiated, strict=True) if d]
        leaving = [n.name for n, d in zip(returned(graph), differentiated, strict=True) if d]
        upstream = [torch.empty_like(end).contiguous() for end in ends]
        with _before_first_call(tape.graph):
            tangents = tuple(tape.placeholder(t, f"grad_{name}") for t, name in zip(upstream, leaving, strict=True))
        wanted = [n for n, i in enumerate(inputs) if i.needs_grad]
        gradients: dict[int, torch.Tensor | None] = {}
        if ends and wanted:
            with tape:
                found = torch.autograd.grad(ends, [leaves[n] for n in wanted], upstream, allow_unused=True)
            gradients = dict(zip(wanted, found, strict=True))
    return _package(
        Joint(
            graph=tape.graph,
            inputs=given,
            tangents=tangents,
            outputs=tape.node(outputs),
            gradients=tuple(tape.node(gradients.get(i)) for i in range(len(leaves))),
            origin=tape.origin,
            value={name: tape.node(value) for name, value in values.items()},
        )
    )


def _run(
    graph: torch.fx.Graph, inputs: Sequence[torch.Tensor], tape: _Tape
) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """The outputs of a local graph, and what each of its nodes made, with the tape on."""
    env = dict(zip([n for n in graph.nodes if n.op == "placeholder"], inputs, strict=True))
    made = {}
    wide = Wide()
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
        tape.current = node.name
        with tape:
            env[node] = wide.run(node, args) if node.meta.get("gradient_dtype") else node.target(*args, **kwargs)
        tape.remember_gradients(env[node], node.name)
        if not isinstance(env[node], int | torch.SymInt):
            made[node.name] = env[node]
    tape.current = None
    return tuple(env[node] for node in returned(graph)), made


def returned(graph: torch.fx.Graph) -> tuple[torch.fx.Node, ...]:
    nodes: Any = graph.output_node().args[0]
    return tuple(nodes)


def called(step: str | None, op: str) -> str:
    """A name for a node: after the step that it is part of, and its op, if that is not in the step's name anyway.

    >>> called("mlp_fc_linear", "linear"), called("w_gather_gpu", "all_gather_into_tensor"), called(None, "add")
    ('mlp_fc_linear', 'w_gather_gpu_all_gather', 'add')
    """
    short = op.removesuffix("_into_tensor").removesuffix("_tensor").removesuffix("_single").removeprefix("_")
    if step is None:
        return short
    return step if short in step else f"{step}_{short}"


def _before_first_call(graph: torch.fx.Graph) -> AbstractContextManager[None]:
    """Nodes that are written inside it follow the placeholders."""
    return graph.inserting_before(next((n for n in graph.nodes if n.op != "placeholder"), None))


def _package(joint: Joint) -> Joint:
    """Without what nothing reads, without `detach`, and without autograd's own graph behind the values."""
    replaced = forget_detached(joint.graph)

    def now(node: Any) -> Any:
        if isinstance(node, tuple | list):
            return tuple(now(n) for n in node)
        while node in replaced:
            node = replaced[node]
        return node

    outputs, gradients = now(joint.outputs), now(joint.gradients)
    joint.graph.output((outputs, gradients))
    joint.graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output"))
    alive = set(joint.graph.nodes)
    for node in alive - {joint.graph.output_node()}:
        node.meta["val"] = torch.fx.node.map_aggregate(node.meta.get("val"), without_grad)
    return replace(
        joint,
        outputs=outputs,
        gradients=gradients,
        origin={n: o for n, o in joint.origin.items() if n in alive},
        value={name: now(v) for name, v in joint.value.items()},
    )


def without_grad(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) and value.requires_grad else value


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
