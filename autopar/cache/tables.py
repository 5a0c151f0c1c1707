"""FX graphs as tables that JSON can hold: a row per node, arguments as tagged values, targets by name.

Reading runs nothing: a target is an operator of torch, or a function that autopar has by that name, and values are made of
numbers and names. What has no such form is NotStorable.
"""

from __future__ import annotations

import operator
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import Graph, Node

from autopar.ir.placement import Placement
from autopar.torch_private import OpOverload, fake_like, is_fake

NAMESPACES = ("aten", "prims", "_c10d_functional", "autopar")
"""Of operators of torch and of ours; those of others may come and go."""
PLAIN = (type(None), bool, int, str)
NAMED = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}


class NotStorable(Exception):
    """Something in a graph has no form as data."""


def graph_table(graph: Graph) -> list[Any]:
    """One row per node: op, name, target, arguments, meta."""
    numbers = {node: i for i, node in enumerate(graph.nodes)}
    rows = []
    for node in graph.nodes:
        target = target_name(node.target) if node.op == "call_function" else str(node.target)
        if node.op not in ("placeholder", "call_function", "output"):
            raise NotStorable(f"a node that is a {node.op}")
        given = [encoded(tuple(node.args), numbers), encoded(dict(node.kwargs), numbers)]
        rows.append([node.op, node.name, target, *given, encoded(dict(node.meta), numbers)])
    return rows


def graph_of(rows: list[Any], mode: Any) -> Graph:
    """The graph of a table; tensors in its metas are fake tensors of `mode`."""
    graph = Graph()
    nodes: list[Node] = []
    for op, name, target, args, kwargs, meta in rows:
        args, kwargs = decoded(args, nodes, mode), decoded(kwargs, nodes, mode)
        found = target_of(target) if op == "call_function" else target
        node = graph.create_node(op, found, args, kwargs, name=name)
        if node.name != name:
            raise ValueError(f"two nodes are called {name}")
        node.meta = decoded(meta, nodes, mode)
        nodes.append(node)
    graph.lint()
    return graph


def encoded(value: Any, numbers: Mapping[Node, int]) -> Any:
    """As JSON; raises NotStorable."""
    if type(value) in PLAIN:
        return value
    if isinstance(value, Node):
        return ["node", numbers[value]]
    if type(value) is float:
        return ["float", value.hex()]
    if isinstance(value, torch.Tensor):
        return encoded_tensor(value)
    for tag, kind in NAMED.items():
        if isinstance(value, kind):
            return [tag, str(value).removeprefix("torch.")]
    if isinstance(value, torch.device):
        return ["device", str(value)]
    if isinstance(value, Placement):
        return ["placement", str(value)]
    if type(value) is slice:
        return ["slice", *(encoded(v, numbers) for v in (value.start, value.stop, value.step))]
    if isinstance(value, dict):
        return ["dict", *([encoded(k, numbers), encoded(v, numbers)] for k, v in value.items())]
    if type(value) in (tuple, torch.Size):
        return ["tuple", *(encoded(v, numbers) for v in value)]
    if isinstance(value, list):
        return ["list", *(encoded(v, numbers) for v in value)]
    raise NotStorable(f"a {type(value).__name__}")


def encoded_tensor(value: torch.Tensor) -> list[Any]:
    """What is known of a tensor without data."""
    if not is_fake(value) and not value.is_meta:
        raise NotStorable("a tensor with data")
    sizes = [*value.shape, *value.stride(), value.storage_offset()]
    if not all(type(n) is int for n in sizes):
        raise NotStorable("a tensor of symbolic sizes")
    dtype = str(value.dtype).removeprefix("torch.")
    return ["tensor", list(value.shape), list(value.stride()), dtype, str(value.device), value.requires_grad]


def decoded(value: Any, nodes: list[Node], mode: Any) -> Any:
    """From `encoded`; raises what malformed content leads to."""
    if not isinstance(value, list):
        return value
    tag, *rest = value
    return READERS[tag](rest, lambda v: decoded(v, nodes, mode), nodes, mode)


def _tensor(rest: list[Any], _: Any, __: Any, mode: Any) -> torch.Tensor:
    shape, stride, dtype, device, needs_grad = rest
    return fake_like(mode, shape, stride, named("dtype", dtype), torch.device(device)).requires_grad_(needs_grad)


def named(tag: str, name: str) -> Any:
    """A dtype, layout or memory format by its name; raises ValueError."""
    found = getattr(torch, name, None)
    if not isinstance(found, NAMED[tag]):
        raise ValueError(f"{name!r} is no {tag}")
    return found


Reader = Callable[[list[Any], Callable[[Any], Any], list[Node], Any], Any]
READERS: Mapping[str, Reader] = {
    "node": lambda rest, inner, nodes, mode: nodes[rest[0]],
    "float": lambda rest, inner, nodes, mode: float.fromhex(rest[0]),
    "tensor": _tensor,
    "device": lambda rest, inner, nodes, mode: torch.device(rest[0]),
    "placement": lambda rest, inner, nodes, mode: Placement.parse(rest[0]),
    "slice": lambda rest, inner, nodes, mode: slice(*map(inner, rest)),
    "dict": lambda rest, inner, nodes, mode: {inner(k): inner(v) for k, v in rest},
    "tuple": lambda rest, inner, nodes, mode: tuple(map(inner, rest)),
    "list": lambda rest, inner, nodes, mode: list(map(inner, rest)),
    **{tag: (lambda rest, inner, nodes, mode, tag=tag: named(tag, rest[0])) for tag in NAMED},  # type: ignore[misc]
}


def target_name(target: Any) -> str:
    """ "op aten.add.Tensor" or "function autopar.ops.collectives gather"; raises NotStorable."""
    if isinstance(target, OpOverload):
        if target.namespace not in NAMESPACES:
            raise NotStorable(f"the operator {target}, which others define")
        return f"op {target}"
    module, name = getattr(target, "__module__", ""), getattr(target, "__name__", "")
    text = f"function {module} {name}"
    if not is_own(module) or found_function(module, name) is not target:
        raise NotStorable(f"the function {module}.{name}")
    return text


def target_of(text: str) -> Any:
    """Raises ValueError for what is no such name."""
    kind, *names = text.split(" ")
    if kind == "op" and len(names) == 1 and re.fullmatch(r"\w+\.\w+\.\w+", names[0]):
        namespace, packet, overload = names[0].split(".")
        if namespace in NAMESPACES:
            found = getattr(getattr(getattr(torch.ops, namespace), packet), overload)
            if isinstance(found, OpOverload):
                return found
    elif kind == "function" and len(names) == 2 and is_own(names[0]):
        return found_function(*names)
    raise ValueError(f"{text!r} names nothing that a graph may call")


def is_own(module: str) -> bool:
    return module in (operator.getitem.__module__, "operator") or module.startswith(("autopar.ops.", "autopar.ir."))


def found_function(module: str, name: str) -> Any:
    """What a module that is loaded has by that name and defines itself; raises ValueError."""
    found = vars(sys.modules[module]).get(name) if module in sys.modules else None
    if not callable(found) or getattr(found, "__module__", None) != module:
        raise ValueError(f"{module} has no function {name}")
    return found
