"""Order of collectives within a graph: started early, waited for late, one gathered parameter ahead."""

from typing import Any

import torch
from torch.fx import Graph, Node

from autopar.codegen.liveness import peak
from autopar.codegen.schedule import WAIT, is_start, schedule
from tests.planned import known_way

aten, c10d = torch.ops.aten, torch.ops._c10d_functional
KIB = 1024


class Program:
    """A graph over float32 tensors on an axis of two devices."""

    def __init__(self) -> None:
        self.graph = Graph()

    def input(self, name: str, *shape: int) -> Node:
        return self._with(self.graph.placeholder(name), torch.empty(shape, device="meta"))

    def __call__(self, op: Any, *args: Any, name: str) -> Node:
        node = self.graph.create_node("call_function", op, args, name=name)
        return self._with(node, op(*(a.meta["val"] if isinstance(a, Node) else a for a in args)))

    def gather(self, x: Node, name: str) -> Node:
        """The wait; the start is named with "_start"."""
        value = x.meta["val"]
        started = self.graph.create_node(
            "call_function", c10d.all_gather_into_tensor.default, (x, 2, "gpu"), name=f"{name}_start"
        )
        self._with(started, value.new_empty(2 * value.shape[0], *value.shape[1:]))
        waited = self.graph.create_node("call_function", WAIT, (started,), name=name)
        return self._with(waited, started.meta["val"])

    def reduce(self, x: Node, name: str) -> Node:
        value = x.meta["val"]
        started = self.graph.create_node(
            "call_function", c10d.reduce_scatter_tensor.default, (x, "sum", 2, "gpu"), name=f"{name}_start"
        )
        self._with(started, value.new_empty(value.shape[0] // 2, *value.shape[1:]))
        waited = self.graph.create_node("call_function", WAIT, (started,), name=name)
        return self._with(waited, started.meta["val"])

    @staticmethod
    def _with(node: Node, value: torch.Tensor) -> Node:
        node.meta["val"] = value
        return node

    def order(self, results: tuple[Node, ...], state: tuple[Node, ...] = ()) -> list[str]:
        self.graph.output(results)
        schedule(self.graph, state)
        return [n.name for n in self.graph.nodes if n.op == "call_function"]


def test_what_is_independent_runs_between_start_and_wait() -> None:
    p = Program()
    x, y = p.input("x", 4, 4), p.input("y", 8, 4)
    whole = p.gather(x, "whole")
    doubled = p(aten.abs.default, y, name="doubled")
    both = p(aten.add.Tensor, whole, doubled, name="both")
    assert p.order((both,)) == ["whole_start", "doubled", "whole", "both"]


def test_the_next_parameter_is_gathered_when_the_one_before_has_come() -> None:
    p = Program()
    x = p.input("x", 4, 4)
    weights = [p.input(f"w{i}", 2, 4) for i in range(3)]
    for i, w in enumerate(weights):
        x = p(aten.mm.default, x, p.gather(w, f"g{i}"), name=f"mm{i}")
    assert p.order((x,), tuple(weights)) == [
        *("g0_start", "g1_start", "g0", "mm0"),
        *("g2_start", "g1", "mm1"),
        *("g2", "mm2"),
    ]


def test_a_gather_of_what_is_computed_is_not_ahead() -> None:
    p = Program()
    x = p.input("x", 2, 4)
    once = p(aten.abs.default, x, name="once")
    whole = p.gather(once, "whole")
    assert p.order((p(aten.abs.default, whole, name="twice"),), (x,))[:2] == ["once", "whole_start"]


def test_a_parameter_that_backward_keeps_is_ahead_like_any_other() -> None:
    """The caller gets what is gathered too, by the name of the start."""
    p = Program()
    x = p.input("x", 4, 4)
    weights = [p.input(f"w{i}", 2, 4) for i in range(3)]
    kept = []
    for i, w in enumerate(weights):
        whole = p.gather(w, f"g{i}")
        kept.append(whole.all_input_nodes[0])
        x = p(aten.mm.default, x, whole, name=f"mm{i}")
    assert p.order((x, *kept), tuple(weights)) == [
        *("g0_start", "g1_start", "g0", "mm0"),
        *("g2_start", "g1", "mm1"),
        *("g2", "mm2"),
    ]


def test_of_several_legs_each_is_ahead() -> None:
    """While a product runs, the next parameter's last leg travels, and the leg before it of the one after that."""
    p = Program()
    x = p.input("x", 4, 4)
    weights = [p.input(f"w{i}", 1, 4) for i in range(4)]
    for i, w in enumerate(weights):
        x = p(aten.mm.default, x, p.gather(p.gather(w, f"half{i}"), f"whole{i}"), name=f"mm{i}")
    assert p.order((x,), tuple(weights)) == [
        *("half0_start", "half1_start", "half0", "whole0_start"),
        *("half2_start", "half1", "whole1_start", "whole0", "mm0"),
        *("half3_start", "half2", "whole2_start", "whole1", "mm1"),
        *("half3", "whole3_start", "whole2", "mm2"),
        *("whole3", "mm3"),
    ]


def test_three_legs_and_legs_that_several_share_are_made_once() -> None:
    p = Program()
    x = p.input("x", 8, 8)
    weights = [p.input(f"w{i}", 1, 8) for i in range(2)]
    for i, w in enumerate(weights):
        half = p.gather(p.gather(w, f"quarter{i}"), f"half{i}")
        x = p(aten.mm.default, x, p.gather(half, f"whole{i}"), name=f"mm{i}")
        x = p(aten.mm.default, x, p.gather(half, f"other{i}"), name=f"more{i}")
    names = p.order((x,), tuple(weights))
    assert len(names) == len(set(names)) == 2 * (4 * 2 + 2)
    for i in range(2):
        assert names.index(f"other{i}_start") < names.index(f"mm{i}"), "hidden behind the product before"
    assert names.index("half1_start") < names.index("more0")


def test_one_gradient_is_on_its_way_while_the_next_is_computed() -> None:
    p = Program()
    x = p.input("x", 4, 4)
    results = []
    for i in range(3):
        x = p(aten.abs.default, x, name=f"abs{i}")
        results.append(p.reduce(x, f"r{i}"))
    assert p.order((*results, x)) == [
        *("abs0", "r0_start"),
        *("abs1", "r0", "r1_start"),
        *("abs2", "r1", "r2_start", "r2"),
    ]


def test_a_gradient_of_several_legs_goes_on_when_the_next_one_is_there() -> None:
    """Its first leg travels while the next gradient is computed, its second while the one after that is."""
    p = Program()
    x = p.input("x", 4, 4)
    results = []
    for i in range(3):
        x = p(aten.abs.default, x, name=f"abs{i}")
        results.append(p.reduce(p.reduce(x, f"a{i}"), f"b{i}"))
    assert p.order((*results, x)) == [
        *("abs0", "a0_start"),
        *("abs1", "a0", "b0_start", "a1_start"),
        *("abs2", "a1", "b0", "b1_start", "a2_start"),
        *("a2", "b1", "b2_start", "b2"),
    ]


def test_a_leg_whose_source_is_read_here_starts_where_it_is_written() -> None:
    p = Program()
    x = p.input("x", 4, 4)
    first = p.reduce(p(aten.abs.default, x, name="made"), "first")
    second = p.reduce(first, "second")
    read = p(aten.abs.default, first, name="read")
    last = p(aten.abs.default, x, name="last")
    assert p.order((second, read, last)) == ["made", "first_start", "first", "second_start", "read", "last", "second"]


def test_what_is_being_sent_is_not_written_into() -> None:
    p = Program()
    x = p.input("x", 4, 4)
    sent = p(aten.abs.default, x, name="sent")
    result = p.reduce(sent, "result")
    written = p(aten.add_.Tensor, sent, x, name="written")
    names = p.order((result, written))
    assert names.index("result") < names.index("written")


def test_what_is_sent_lasts_until_the_wait() -> None:
    p = Program()
    x = p.input("x", 256)
    sent = p(aten.abs.default, x, name="sent")  # 1 KiB, sent until `result`
    result = p.reduce(sent, "result")  # 0.5 KiB
    other = p(aten.abs.default, x, name="other")  # 1 KiB
    last = p(aten.abs.default, other, name="last")  # 1 KiB, in place of nothing
    p.order((result, last))
    assert peak(p.graph, set()) == 3.5 * KIB


def test_what_is_returned_on_its_way_lasts_to_the_end() -> None:
    p = Program()
    x = p.input("x", 256)
    sent = p(aten.abs.default, x, name="sent")  # 1 KiB
    result = p.reduce(sent, "result")  # 0.5 KiB
    last = p(aten.abs.default, x, name="last")  # 1 KiB
    p.graph.output((result.args[0], last))
    p.graph.erase_node(result)
    assert peak(p.graph, set()) == 2.5 * KIB


def test_emitted_graphs_compute_while_parameters_travel() -> None:
    """Under FSDP parameters are gathered; all matrices but a call's first have something to hide behind."""
    halves = known_way("gpt2", "2", "fsdp").regions["transformer.h.*"].classes[0]
    of_state = [n for n in halves.forward.nodes if is_start(n) and n.all_input_nodes[0].op == "placeholder"]
    gathers = [n for n in of_state if n.meta["val"].ndim == 2]
    assert len(gathers) > 1, "the plan gathers nothing: the test shows nothing"
    order = {n: i for i, n in enumerate(halves.forward.nodes)}
    hidden = [
        any(order[start] < order[n] < order[next(iter(start.users))] for n in computing(halves.forward)) for start in gathers
    ]
    assert sum(hidden) >= len(hidden) - 1


def computing(graph: Graph) -> list[Node]:
    return [n for n in graph.nodes if n.target in (aten.mm.default, aten.addmm.default, aten.native_layer_norm.default)]
