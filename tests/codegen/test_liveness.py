"""Results that take the memory of an operand: only where nothing else reads it, with the same numbers, and counted so."""

import operator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import Graph, Node

from autopar.codegen.backend import eager
from autopar.codegen.liveness import POINTWISE, alive_bytes, overwritten
from autopar.codegen.schedule import ALL_REDUCE, TOGETHER, WAIT

aten, c10d = torch.ops.aten, torch.ops._c10d_functional
ALL_GATHER = c10d.all_gather_into_tensor.default
KIB = 1024


class Sketch:
    """A graph that gets its values as it is written, on real inputs."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.given: list[Tensor] = []

    def input(self, value: Tensor) -> Node:
        self.given.append(value)
        return self._with(self.graph.placeholder(f"x{len(self.given)}"), value)

    def __call__(self, op: Any, *args: Any, **kwargs: Any) -> Node:
        value = op(*(a.meta["val"] if isinstance(a, Node) else a for a in args), **kwargs)
        return self._with(self.graph.call_function(op, args, kwargs), value)

    def start(self, collective: Any, sent: Node) -> Node:
        """Of a collective that does not run."""
        gathers = collective is ALL_GATHER
        value = torch.cat([sent.meta["val"]] * 2) if gathers else sent.meta["val"]
        return self._with(self.graph.call_function(collective, (sent, 2 if gathers else "sum", "gpu")), value)

    def wait(self, start: Node) -> Node:
        return self._with(self.graph.call_function(WAIT, (start,)), start.meta["val"])

    def taken(self, *results: Node) -> dict[Node, Node]:
        self.graph.output(results)
        return overwritten(list(self.graph.nodes))

    @staticmethod
    def _with(node: Node, value: Tensor) -> Node:
        node.meta["val"] = value
        return node


@pytest.fixture
def sketch() -> Sketch:
    return Sketch()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_last_reader_takes_the_place(sketch: Sketch) -> None:
    x = sketch.input(draw(16, 16))
    a = sketch(aten.mm.default, x, x)
    b = sketch(aten.mul.Tensor, x, a)
    c = sketch(aten.neg.default, b)
    assert sketch.taken(c) == {b: a, c: b}
    alive = alive_bytes(sketch.graph, set())
    assert alive == [0, KIB, KIB, KIB, KIB]


def test_what_others_have_stays(sketch: Sketch) -> None:
    """Inputs, saved values, what is read later, and that through a view."""
    x = sketch.input(draw(16, 16))
    a, b, c = (sketch(aten.mm.default, x, x) for _ in range(3))
    turned = sketch(aten.t.default, b)
    of_input = sketch(aten.neg.default, x)
    of_saved = sketch(aten.neg.default, a)
    of_read_again = sketch(aten.neg.default, b)
    late = sketch(aten.mm.default, turned, c)
    twice = sketch(aten.mul.Tensor, c, sketch(aten.t.default, c))
    assert sketch.taken(a, of_input, of_saved, of_read_again, late, twice) == {}


def test_what_does_not_fit_is_not_taken(sketch: Sketch) -> None:
    """Broadcasts, parts, other dtypes and other orders of elements."""
    x = sketch.input(draw(16, 16))
    row = sketch(aten.sum.dim_IntList, x, [0], True)
    wide = sketch(aten.add.Tensor, row, x)
    whole = sketch(aten.mm.default, x, x)
    part = sketch(aten.neg.default, sketch(aten.slice.Tensor, whole, 0, 0, 8))
    precise = sketch(aten.add.Tensor, sketch(aten.mm.default, x, x), sketch.input(draw(16, 16).double()))
    turned = sketch(aten.neg.default, sketch(aten.t.default, sketch(aten.mm.default, x, x)))
    sent = sketch.start(ALL_REDUCE, sketch(aten.t.default, sketch(aten.mm.default, x, x)))
    assert sketch.taken(wide, part, precise, turned, sketch.wait(sent)) == {}


def test_what_is_on_its_way_stays(sketch: Sketch) -> None:
    x = sketch.input(draw(16, 16))
    a, b = (sketch(aten.mm.default, x, x) for _ in range(2))
    start = sketch.start(ALL_GATHER, a)
    early = sketch(aten.neg.default, a)
    whole = sketch.wait(start)
    late = sketch(aten.mul.Tensor, a, early)
    returned = sketch.start(ALL_GATHER, b)
    never_waited_for = sketch(aten.neg.default, b)
    assert sketch.taken(whole, late, returned, never_waited_for) == {late: a}


def test_reductions_take_the_place_of_what_they_send(sketch: Sketch) -> None:
    x = sketch.input(draw(16, 16))
    a, b = (sketch(aten.mm.default, x, x) for _ in range(2))
    free = sketch.start(ALL_REDUCE, a)
    reduced = sketch.wait(free)
    held = sketch.wait(sketch.start(ALL_REDUCE, b))
    after = sketch(aten.neg.default, b)
    assert sketch.taken(reduced, held, after) == {free: a, after: b}
    assert max(alive_bytes(sketch.graph, set())) == 3 * KIB


def test_reductions_together_are_made_beside_what_they_send(sketch: Sketch) -> None:
    x = sketch.input(draw(16, 16))
    a, b = (sketch(aten.mm.default, x, x) for _ in range(2))
    both = sketch.graph.call_function(TOGETHER[ALL_REDUCE], ([a, b], "sum", "gpu"))
    both.meta["val"] = [a.meta["val"], b.meta["val"]]
    parts = [sketch.graph.call_function(operator.getitem, (both, k)) for k in range(2)]
    for part in parts:
        part.meta["val"] = a.meta["val"]
    assert sketch.taken(*map(sketch.wait, parts)) == {}
    assert max(alive_bytes(sketch.graph, set())) == 4 * KIB
    assert alive_bytes(sketch.graph, set())[-1] == 2 * KIB


@pytest.mark.parametrize("op", list(POINTWISE), ids=str)
def test_each_op_makes_the_same_in_place(op: Any) -> None:
    """Bit for bit, whichever operand's memory it is."""
    tensors = [a for a in op._schema.arguments if isinstance(a.type, torch.TensorType) and a.name != "alpha"]
    rest = [2.0] * sum(a.name in ("exponent", "threshold") for a in op._schema.arguments)
    for place in range(len(tensors)):
        sketch = Sketch()
        given = [sketch.input(draw(16, 16, seed=k).abs() + 0.5) for k in range(len(tensors))]
        given[place] = sketch(aten.clone.default, given[place])
        result = sketch(op, *given, *rest)
        expected = result.meta["val"]
        assert sketch.taken(result) == {result: given[place]}
        (found,) = eager(sketch.graph, "Sketch").forward(list(sketch.given))
        assert torch.equal(found, expected)
        assert POINTWISE[op][0] in {n.target for n in sketch.graph.nodes}


def test_there_is_an_op_for_each() -> None:
    for op, (into, name) in POINTWISE.items():
        kernels = {a.name: a for a in into._schema.arguments}
        assert kernels[name].kwarg_only
        assert kernels[name].alias_info.is_write
        assert [a.name for a in op._schema.arguments] == [n for n in kernels if n != name]
