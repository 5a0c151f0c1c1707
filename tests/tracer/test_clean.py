"""Each pass, before and after."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import Graph

from autopar.torch_private import pytree
from autopar.tracer import clean, trace
from autopar.tracer.gradients import STOP, propagate

aten = torch.ops.aten
X = torch.empty(4, 6, device="meta")
ONE_OUTPUT = pytree.tree_flatten((0,))[1]


def graph_of(*ops: tuple[Any, tuple[Any, ...], dict[str, Any]]) -> Graph:
    """x -> the ops in turn -> output; each is (target, further args, kwargs)."""
    graph = Graph()
    node = graph.placeholder("x")
    node.meta["val"], node.meta["needs_grad"] = X, True
    for target, args, kwargs in ops:
        before = node.meta["val"]
        node = graph.call_function(target, (node, *args), kwargs)
        node.meta["val"] = before if target is STOP else target(before, *args, **kwargs)
    graph.output((node,))
    return graph


def targets(graph: Graph) -> list[str]:
    return [str(node.target).removeprefix("aten.") for node in graph.nodes if node.op == "call_function"]


IDENTITY = [
    (aten.reshape.default, ([4, 6],), {}),
    (aten.expand.default, ([-1, 6],), {}),
    (aten.slice.Tensor, (0, 0, 2**63 - 1), {}),
    (aten.clone.default, (), {}),
    (aten.alias.default, (), {}),
    (aten._to_copy.default, (), {"dtype": torch.float32}),
    (aten.dropout.default, (0.0, True), {}),
    (aten.dropout.default, (0.5, False), {}),
]
KEPT = [
    (aten.reshape.default, ([6, 4],), {}),
    (aten.slice.Tensor, (0, 1, 2**63 - 1), {}),
    (aten.slice.Tensor, (0, 0, 2**63 - 1, 2), {}),
    (aten.clone.default, (), {"memory_format": torch.contiguous_format}),
    (aten._to_copy.default, (), {"dtype": torch.float64}),
    (aten.dropout.default, (0.5, True), {}),
]


@pytest.mark.parametrize("op", IDENTITY, ids=str)
def test_identities_go(op: tuple[Any, tuple[Any, ...], dict[str, Any]]) -> None:
    graph = graph_of(op, (aten.neg.default, (), {}))
    clean.drop_identities(graph)
    assert targets(graph) == ["neg.default"]


@pytest.mark.parametrize("op", KEPT, ids=str)
def test_what_does_something_stays(op: tuple[Any, tuple[Any, ...], dict[str, Any]]) -> None:
    graph = graph_of(op, (aten.neg.default, (), {}))
    clean.drop_identities(graph)
    assert len(targets(graph)) == 2


def test_one_name_for_one_meaning() -> None:
    graph = graph_of((aten.view.default, ([24],), {}), (aten.clone.default, (), {"memory_format": torch.contiguous_format}))
    clean.canonical_names(graph)
    assert targets(graph) == ["reshape.default", "contiguous.default"]


def test_memory_that_holds_anything_holds_zeros() -> None:
    """`x.new_empty(…).bernoulli_(p)`, as a dropout of channels draws its mask."""
    graph = Graph()
    empty = graph.call_function(aten.empty.memory_format, ([4, 6],), {"memory_format": torch.contiguous_format})
    graph.output((graph.call_function(aten.empty_permuted.default, ([4, 6], [1, 0])), empty))
    clean.canonical_names(graph)
    assert targets(graph) == ["zeros.default", "zeros.default"]
    assert [(node.args, node.kwargs) for node in graph.nodes if node.op == "call_function"] == [(([4, 6],), {})] * 2


def test_contiguous_before_a_reshape_goes() -> None:
    graph = graph_of((aten.contiguous.default, (), {}), (aten.reshape.default, ([24],), {}))
    clean.drop_identities(graph)
    assert targets(graph) == ["reshape.default"]


def test_checks_and_dead_code_go() -> None:
    graph = graph_of((aten.neg.default, (), {}))
    x, neg = list(graph.nodes)[:2]
    with graph.inserting_after(neg):
        graph.call_function(aten._assert_tensor_metadata.default, (neg,))
        graph.call_function(aten.exp.default, (x,))
    clean.drop_checks(graph)
    assert targets(graph) == ["exp.default", "neg.default"] or targets(graph) == ["neg.default", "exp.default"]
    clean.drop_dead(graph)
    assert targets(graph) == ["neg.default"]


def test_native_dropout_without_its_mask_is_dropout() -> None:
    graph = graph_of((aten.neg.default, (), {}))
    neg = list(graph.nodes)[1]
    with graph.inserting_after(neg):
        pair = graph.call_function(aten.native_dropout.default, (neg, 0.5, True))
    with graph.inserting_after(pair):
        import operator

        first = graph.call_function(operator.getitem, (pair, 0))
    graph.output_node().args = ((first,),)
    clean.whole_dropout(graph)
    assert targets(graph) == ["neg.default", "dropout.default"]
    graph.lint()


class LossAndMore(nn.Module):
    """Its second output reads what the loss reads, and nothing else reads that output."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.linear(x)
        return {"loss": y.sum(), "more": y.exp()}


def test_gradients_come_from_the_loss_alone() -> None:
    program = trace(LossAndMore(), (torch.randn(4, 6),))
    flows = {str(n.target): n.meta["needs_grad"] for n in program.regions["model"].graph.nodes if n.op == "call_function"}
    assert flows["aten.linear.default"]
    assert not flows["aten.exp.default"]
    assert program.values[program.loss or ""].needs_grad


def test_gradients_end_at_stops_and_integers() -> None:
    ops = [(aten.neg.default, (), {}), (STOP, (), {}), (aten.exp.default, (), {})]
    graph = graph_of(*ops)
    propagate(graph, [list(graph.nodes)[-2]], ONE_OUTPUT)
    assert targets(graph) == ["neg.default", "detach.default", "exp.default"]
    assert [n.meta["needs_grad"] for n in graph.nodes if n.op == "call_function"] == [False, False, False]
    graph = graph_of((aten.neg.default, (), {}), (aten.exp.default, (), {}))
    propagate(graph, [list(graph.nodes)[-2]], ONE_OUTPUT)
    assert [n.meta["needs_grad"] for n in graph.nodes if n.op == "call_function"] == [True, True]
    graph = graph_of((aten.argmax.default, (), {}))
    propagate(graph, [list(graph.nodes)[-2]], ONE_OUTPUT)
    assert [n.meta["needs_grad"] for n in graph.nodes if n.op == "call_function"] == [False]


@pytest.mark.parametrize(
    ("like", "left"),
    [
        (X, ["neg.default", "abs.default"]),
        (X.double(), ["neg.default", "_to_copy.default", "abs.default"]),
        (X.expand(3, *X.shape), ["neg.default", "expand.default", "abs.default"]),
    ],
)
def test_what_is_copied_over_a_tensor_stands_for_it(like: torch.Tensor, left: list[str]) -> None:
    """In its dtype and shape."""
    graph = Graph()
    node, over = graph.placeholder("x"), graph.placeholder("over")
    for target in (aten.neg.default, aten.copy.default, aten.abs.default):
        node.meta["val"] = like if node.target is aten.copy.default else X
        node = graph.call_function(target, (over, node) if target is aten.copy.default else (node,))
        node.meta["val"] = like if target is aten.copy.default else X
    graph.output((node,))
    clean.canonical_names(graph)
    assert targets(graph) == left


class LossFromOutput(nn.Module):
    """What it returns beside the loss is what the loss was computed with."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.linear(x)
        return {"loss": y.sum(), "predicted": y}


def test_what_is_returned_beside_the_loss_is_detached() -> None:
    program = trace(LossFromOutput(), (torch.randn(4, 6),))
    predicted = next(v for v in program.outputs if v not in (None, program.loss))
    assert not program.values[predicted or ""].needs_grad
    flows = {str(n.target): n.meta["needs_grad"] for n in program.regions["model"].graph.nodes if n.op == "call_function"}
    assert flows == {"aten.linear.default": True, "aten.sum.dim_IntList": True, "aten.detach.default": False}
