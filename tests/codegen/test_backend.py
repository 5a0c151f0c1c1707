"""What runs emitted graphs: names of backends, layouts of what compiled code is given, what it must not reuse."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.fx import Graph

from autopar.codegen import backend
from autopar.codegen.backend import (
    ALL_GATHER,
    Compiled,
    Inductor,
    eager,
    is_on_its_way,
    laid_out,
    require_backend,
    require_compiler,
)
from autopar.codegen.emit import bind
from autopar.errors import BackendError, InputError
from autopar.ops.collectives import all_gather_into
from autopar.ops.flops import collectives_of
from tests.planned import known_way

c10d = torch.ops._c10d_functional


def test_a_backend_that_is_none() -> None:
    with pytest.raises(InputError, match='"eager" or "inductor", not \'nvfuser\''):
        require_backend("nvfuser")
    require_backend("inductor")


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "cpp_compiler", lambda: None)
    with pytest.raises(BackendError, match=r"apt install g\+\+.*CXX.*backend=\"eager\""):
        require_compiler()


def doubled(given: list[Tensor]) -> list[Tensor]:
    (x,) = given
    return [x * 2, x]


def test_inputs_come_as_they_were_compiled_for() -> None:
    given = torch.arange(6.0).view(2, 3)
    result, extra = Compiled(doubled, ((3, 1),), 2).forward([given.t().contiguous().t()])
    assert extra.stride() == (3, 1)
    assert torch.equal(result, given * 2)
    assert Compiled(doubled, ((3, 1),), 2).forward([given])[1] is given
    assert len(Compiled(doubled, ((3, 1),), 1).forward([given])) == 1


def test_the_stride_of_a_dim_of_one_element_says_nothing() -> None:
    row = torch.ones(3, 1).t()
    assert row.stride() == (1, 1)
    assert laid_out(row, (3, 1)) is row


def test_what_a_collective_sends_that_nobody_waits_for() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    away = graph.call_function(c10d.reduce_scatter_tensor.default, (x, "sum", 2, "0"))
    start = graph.call_function(c10d.reduce_scatter_tensor.default, (x, "sum", 2, "0"))
    waited = graph.call_function(c10d.wait_tensor.default, (start,))
    graph.output((away, waited, x))
    assert [is_on_its_way(n) for n in (away, start, waited, x)] == [True, False, False, False]


def test_a_graph_that_inductor_fails_on_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no lowering\nand more")

    monkeypatch.setattr(backend, "compile_by_inductor", fail)
    graph = Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.ones(2)
    graph.output((graph.call_function(torch.ops.aten.neg.default, (x,)),))
    with pytest.raises(BackendError, match=r"failed on HeadForward \(3 nodes\): no lowering\. backend=\"eager\""):
        Inductor()(graph, "HeadForward")


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_gathers_on_cpus_are_begun_in_memory_given_to_them(device: str) -> None:
    """And are collectives as before, of as many bytes."""
    graph = bind(known_way("gpt2", "2", "fsdp").halves()[1][1].forward, {"gpu": "0"})
    before = Counter(map(str, collectives_of(graph.nodes)))
    for node in graph.nodes:
        if node.target is ALL_GATHER:
            node.meta["val"] = node.meta["val"].to(device)
    eager(graph, "Forward")
    targets = {ALL_GATHER, all_gather_into} & {node.target for node in graph.nodes}
    assert targets == ({all_gather_into} if device == "cpu" else {ALL_GATHER})
    assert Counter(map(str, collectives_of(graph.nodes))) == before
