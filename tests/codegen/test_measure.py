"""The liveness peak of graphs small enough to count by hand."""

from operator import getitem
from typing import Any

import torch
from torch.fx import Graph, Node

from autopar.codegen.liveness import peak
from autopar.codegen.measure import count
from autopar.torch_private import OpOverload

aten = torch.ops.aten
KIB = 1024


class Small:
    """A graph over float32 tensors, each node with the value that it would have."""

    def __init__(self) -> None:
        self.graph = Graph()

    def input(self, *shape: int) -> Node:
        node = self.graph.placeholder(f"x{len(self.graph.nodes)}")
        node.meta["val"] = torch.empty(shape, device="meta")
        return node

    def __call__(self, op: OpOverload, *args: Any) -> Node:
        node = self.graph.call_function(op, args)
        node.meta["val"] = op(*(a.meta["val"] if isinstance(a, Node) else a for a in args))
        return node

    def peak(self, *results: Node, dying: tuple[Node, ...] = ()) -> int:
        self.graph.output(results)
        return peak(self.graph, set(dying))


def test_a_value_dies_at_its_last_reader() -> None:
    small = Small()
    x = small.input(256)
    a = small(aten.abs.default, x)
    b = small(aten.abs.default, a)
    c = small(aten.abs.default, b)
    assert small.peak(c) == 2 * KIB  # a and b, then b and c; the input was there before


def test_what_is_read_later_stays() -> None:
    small = Small()
    x = small.input(256)
    a = small(aten.abs.default, x)
    b = small(aten.abs.default, a)
    c = small(aten.abs.default, b)
    d = small(aten.add.Tensor, c, a)
    assert small.peak(d) == 3 * KIB  # a, b, c; then a, c, d


def test_results_live_to_the_end() -> None:
    small = Small()
    x = small.input(256)
    a = small(aten.abs.default, x)
    b = small(aten.abs.default, a)
    c = small(aten.abs.default, b)
    assert small.peak(a, b, c) == 3 * KIB


def test_aliases_count_once_and_hold_what_they_look_into() -> None:
    small = Small()
    x = small.input(16, 16)
    a = small(aten.abs.default, x)
    view = small(aten.view.default, a, [256])
    turned = small(aten.t.default, a)
    b = small(aten.abs.default, view)
    c = small(aten.abs.default, turned)
    assert small.peak(b, c) == 3 * KIB  # a is held by `turned` until c is made


def test_a_view_of_an_input_costs_nothing() -> None:
    small = Small()
    x = small.input(16, 16)
    assert small.peak(small(aten.t.default, x)) == 0


def test_dying_inputs_make_room() -> None:
    def chain() -> tuple[Small, Node, Node]:
        small = Small()
        x = small.input(256)
        a = small(aten.abs.default, x)
        return small, x, small(aten.abs.default, a)

    small, x, last = chain()
    assert small.peak(last) == 2 * KIB
    small, x, last = chain()
    assert small.peak(last, dying=(x,)) == KIB  # a beside x (counted by the caller), then a and the last in place of x


def test_results_of_one_node_count_with_it() -> None:
    small = Small()
    x = small.input(16, 16)
    node = small(aten.var_mean.correction, x, [1])
    assert small.peak(node) == 2 * 16 * 4
    first = Small()
    x = first.input(16, 16)
    both = first(aten.var_mean.correction, x, [1])
    taken = [first.graph.call_function(getitem, (both, i)) for i in range(2)]
    for i, part in enumerate(taken):
        part.meta["val"] = both.meta["val"][i]
    assert first.peak(*taken) == 2 * 16 * 4


def test_results_of_one_node_die_one_by_one() -> None:
    """One of two results is read last at the very end; the other, which nobody takes, dies at once."""
    small = Small()
    x = small.input(256)
    both = small(aten.sort.default, x)
    values = small.graph.call_function(getitem, (both, 0))
    values.meta["val"] = both.meta["val"][0]
    later = small(aten.abs.default, x)
    latest = small(aten.abs.default, x)
    total = small(aten.addcmul.default, values, later, latest)
    assert small.peak(total) == 4 * KIB  # values (1) and indices (2); then values, later, latest and total


def test_flops_of_a_product_by_hand() -> None:
    small = Small()
    a, b = small.input(2, 3), small.input(3, 5)
    product = small(aten.mm.default, a, b)
    small.graph.output((product,))
    figures = count(small.graph)
    assert (figures.flops, figures.collectives, figures.peak_bytes) == (2 * 2 * 3 * 5, (), 2 * 5 * 4)
