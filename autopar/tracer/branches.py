"""`torch.cond` in a traced graph: both branches become plain ops, and a choice.

Branches are functions of their operands without side effects, so both can be computed; `where` takes the results of the one
that is meant. Gradients are those of that branch alone: what an operand gets from a branch passes another `where`, so that a
nan in the backward of the branch that was not taken (the root of a negative number, say) ends there.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from autopar.errors import TraceError
from autopar.tracer.failures import at

aten = torch.ops.aten
COND = torch.ops.higher_order.cond
INLINED = ("cond", "wrap_with_set_grad_enabled", "wrap_with_autocast")
"""Names of ops with graphs of their own that become plain ops, here or elsewhere."""


def inline_branches(module: GraphModule) -> None:
    """Put both branches and the choice in the place of each `torch.cond`, inner ones first. In place.

    Raises TraceError for other control flow (loops), and for a condition on a dim that was left open.
    """
    for child in module.children():
        if isinstance(child, GraphModule):
            inline_branches(child)
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target is COND:
            _inline(module, node)
        elif is_control_flow(node) and str(node.target) not in INLINED:
            raise TraceError(
                f"the model uses {node.target}{at(node)}, which cannot be traced: use a Python loop over a fixed number of "
                "steps, torch.cond, or ops of whole tensors; or keep a function whole (`autopar.op_rule`, docs/rules.md)"
            )
    module.graph.lint()
    module.recompile()


def is_control_flow(node: Node) -> bool:
    """Whether its target is one of torch's ops that take functions."""
    return any(base.__name__ == "HigherOrderOperator" for base in type(node.target).__mro__)


def _inline(module: GraphModule, call: Node) -> None:
    predicate, *branches, operands = call.args
    if not isinstance(predicate, Node) or not isinstance(predicate.meta["val"], torch.Tensor):
        raise TraceError(
            f"torch.cond{at(call)} depends on a dim that is dynamic: leave it out of `dynamic`, or use `if` on its size"
        )
    graph = module.graph
    with graph.inserting_before(call):
        flag = _made(call, aten.reshape.default, (predicate, []), predicate.meta["val"].reshape([]))
        other = _made(call, aten.logical_not.default, (flag,), flag.meta["val"])
        results = []
        for branch, taken in zip(branches, (flag, other), strict=True):
            results.append(_copy(module, call, branch, [_only_if(call, taken, operand) for operand in operands]))  # type: ignore[union-attr]
        chosen = [_choice(call, flag, left, right) for left, right in zip(*results, strict=True)]
    for user in list(call.users):
        assert user.target is operator.getitem, "results of a cond are taken apart at once"
        user.replace_all_uses_with(chosen[user.args[1]])  # type: ignore[index]
        graph.erase_node(user)
    graph.erase_node(call)
    for branch in branches:
        assert isinstance(branch, Node)
        if not branch.users:
            graph.erase_node(branch)
            module.delete_submodule(str(branch.target))


def _copy(module: GraphModule, call: Node, branch: Any, operands: list[Any]) -> list[Any]:
    """What a branch returns for these operands."""
    body = module.get_submodule(str(branch.target))
    assert isinstance(body, GraphModule)
    copies: dict[Node, Any] = dict(zip(body.graph.find_nodes(op="placeholder"), operands, strict=True))
    for node in body.graph.nodes:
        if node.op == "call_function":
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: copies[n])
            copies[node] = _made(call, node.target, args, node.meta.get("val"), kwargs, f"{branch.target}_{node.name}")
        elif node.op not in ("placeholder", "output"):
            raise TraceError(f"a branch of torch.cond{at(call)} holds {node.op} {node.target}, which cannot be traced")
    results: Any = torch.fx.map_arg(body.graph.output_node().args[0], lambda n: copies[n])
    return list(results)


def _only_if(call: Node, flag: Node, operand: Any) -> Any:
    """The operand, which gets a gradient only if the flag is set."""
    if not isinstance(operand, Node) or not _differentiable(operand.meta.get("val")):
        return operand
    stopped = _made(call, aten.detach.default, (operand,), operand.meta["val"])
    return _made(call, aten.where.self, (flag, operand, stopped), operand.meta["val"])


def _choice(call: Node, flag: Node, left: Any, right: Any) -> Any:
    if left is right or (not isinstance(left, Node) and not isinstance(right, Node) and left == right):
        return left
    if not all(isinstance(side, Node) and isinstance(side.meta["val"], torch.Tensor) for side in (left, right)):
        raise TraceError(f"torch.cond{at(call)} returns numbers that differ between its branches; return tensors")
    return _made(call, aten.where.self, (flag, left, right), left.meta["val"])


def _made(
    call: Node, target: Any, args: tuple[Any, ...], val: Any, kwargs: dict[str, Any] | None = None, name: str = ""
) -> Node:
    """A node that the call made, as its meta says; called after it, since a graph's own names may be taken unknown to it."""
    label = f"{call.name}_{name or target.name().partition('::')[2].partition('.')[0]}"
    node = call.graph.create_node("call_function", target, args, kwargs or {}, name=label)
    kept = ("stack_trace", "nn_module_stack", "custom")
    node.meta = {key: call.meta[key] for key in kept if key in call.meta} | {"val": val}
    return node


def _differentiable(val: Any) -> bool:
    return isinstance(val, torch.Tensor) and (val.is_floating_point() or val.is_complex())


def drop_idle_choices(graph: Graph) -> None:
    """Choices between a value and itself: no gradient had to be kept from them. In place."""
    for node in list(graph.nodes):
        if node.target is aten.where.self and node.args[1] is node.args[2]:
            _, left, _ = node.args
            if isinstance(left, Node) and left.meta["val"].shape == node.meta["val"].shape:
                node.replace_all_uses_with(left)
                graph.erase_node(node)
