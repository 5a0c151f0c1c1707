"""Where gradients flow: kept through decomposition, then worked out per value.

`torch.export` forgets `no_grad` and `detach` when it decomposes. So before that every stop becomes `aten.detach_copy`, an op
that survives, and afterwards `aten.detach`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from autopar.torch_private import OpOverload, pytree

aten = torch.ops.aten
STOPS = (aten.detach.default, aten.detach_.default)
STOP = aten.detach_copy.default
LIKE = ("full_like", "ones_like", "zeros_like", "empty_like", "rand_like", "randn_like", "randint_like", "new_")
"""Ops that take only shape and dtype from a tensor."""


def mark_gradient_stops(module: GraphModule) -> None:
    """Inline blocks under `no_grad` and mark what leaves them; mark every `detach`. In place."""
    for node in list(module.graph.nodes):
        if node.op == "call_function" and str(node.target).endswith("wrap_with_set_grad_enabled"):
            _inline(module, node)
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in STOPS:
            node.target = STOP
    module.graph.lint()
    module.recompile()


def _inline(module: GraphModule, call: Node) -> None:
    """Put the nodes of the block in the place of its call; with gradients off, its outputs pass a stop each."""
    enabled, block, *operands = call.args
    assert isinstance(block, Node)
    body = module.get_submodule(str(block.target))
    assert isinstance(body, GraphModule)
    copies: dict[Node, Any] = dict(zip(body.graph.find_nodes(op="placeholder"), operands, strict=True))
    with module.graph.inserting_before(call):
        for node in body.graph.nodes:
            if node.op not in ("placeholder", "output", "get_attr"):
                copies[node] = module.graph.node_copy(node, lambda n: copies[n])
            elif node.op == "get_attr":
                raise NotImplementedError("a control-flow op under no_grad")
        results: Any = torch.fx.map_arg(body.graph.output_node().args[0], lambda n: copies[n])
        results = [_stop(module.graph, r) if not enabled and isinstance(r, Node) else r for r in results]
    for user in list(call.users):
        assert user.target is operator.getitem, "a block's results are taken apart at once"
        user.replace_all_uses_with(results[user.args[1]])
        module.graph.erase_node(user)
    module.graph.erase_node(call)
    if not block.users:
        module.graph.erase_node(block)


def _stop(graph: Graph, value: Node) -> Node:
    if not isinstance(value.meta.get("val"), torch.Tensor):
        return value
    stop = graph.call_function(STOP, (value,))
    stop.meta = dict(value.meta)
    return stop


def propagate(graph: Graph, outputs: list[Any], out_spec: pytree.TreeSpec) -> None:
    """Set `needs_grad` on every node: reached from a trainable leaf, and reaching the loss, through floating values.

    Without a loss any output will do. Placeholders have it already. Removes stops of what needs no gradient anyway; the others
    become `aten.detach`.
    """
    reached_nodes = _reached(graph)
    loss = loss_of(outputs, lambda node: node in reached_nodes and _is_real_scalar(node.meta["val"]), out_spec)
    wanted = _reaching(outputs if loss is None else [loss])
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        stop = node.target is STOP
        reached = node in reached_nodes and node in wanted
        val = node.meta["val"]
        if node.target is operator.getitem:
            node.meta["needs_grad"] = reached and node.args[0].meta["needs_grad"][node.args[1]]
        elif isinstance(val, tuple | list):
            node.meta["needs_grad"] = tuple(reached and _floating(v) for v in val)
        else:
            node.meta["needs_grad"] = reached and _floating(val)
        if stop:
            _settle(graph, node, needed=node.all_input_nodes[0] in reached_nodes)


def loss_of(outputs: Sequence[Any], is_candidate: Callable[[Any], bool], out_spec: pytree.TreeSpec) -> Any:
    """Of the flattened outputs the only candidate, a differentiable scalar; of several the one called "loss"; or None."""
    scalars = [o for o in outputs if o is not None and is_candidate(o)]
    if len(set(scalars)) == 1:
        return scalars[0]
    tree = pytree.tree_unflatten(list(range(out_spec.num_leaves)), out_spec)
    index = tree.get("loss") if isinstance(tree, Mapping) else getattr(tree, "loss", None)
    return outputs[index] if isinstance(index, int) and outputs[index] in scalars else None


def _reached(graph: Graph) -> set[Node]:
    """The nodes that a trainable leaf leads to, past no stop."""
    found = {node for node in graph.find_nodes(op="placeholder") if node.meta.get("needs_grad")}
    for node in graph.nodes:
        if _passes(node) and any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _passes(node: Node) -> bool:
    return node.op == "call_function" and not _stops(node) and _carries(node.meta["val"])


def _settle(graph: Graph, stop: Node, *, needed: bool) -> None:
    if needed:
        stop.target = aten.detach.default
    else:
        stop.replace_all_uses_with(stop.all_input_nodes[0])
        graph.erase_node(stop)


def _reaching(outputs: list[Any]) -> set[Node]:
    """The nodes from which some floating output is reached without passing a stop."""
    todo = [node for node in outputs if isinstance(node, Node) and _floating(node.meta["val"])]
    seen = set(todo)
    while todo:
        node = todo.pop()
        if not (node.op == "placeholder" or _passes(node)):
            continue
        for source in node.all_input_nodes:
            if source not in seen:
                seen.add(source)
                todo.append(source)
    return seen


def _stops(node: Node) -> bool:
    """Whether no gradient goes to what the node was made from."""
    if not isinstance(node.target, OpOverload):
        return False
    return node.target is STOP or node.target._schema.name.startswith(LIKE, len("aten::"))


def _is_real_scalar(val: torch.Tensor) -> bool:
    return tuple(val.shape) == () and val.dtype.is_floating_point


def _floating(val: Any) -> bool:
    return isinstance(val, torch.Tensor) and (val.dtype.is_floating_point or val.dtype.is_complex)


def _carries(val: Any) -> bool:
    """Whether some part of a node's value can have a gradient."""
    return any(_floating(v) for v in (val if isinstance(val, tuple | list) else [val]))
