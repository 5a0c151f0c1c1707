"""What runs emitted graphs: names of backends, layouts of what compiled code is given, what it must not reuse."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.distributed as dist
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
from autopar.codegen.emit import bind, emit
from autopar.codegen.schedule import ALL_REDUCE, TOGETHER
from autopar.errors import BackendError, InputError
from autopar.ops.collectives import all_gather_into, all_reduce_together
from autopar.ops.flops import collectives_of
from tests.planned import known_way, traced
from tests.processes import run_processes

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


def test_reductions_together_are_begun_as_one() -> None:
    """And are collectives as before, of as many bytes."""
    plan = known_way("gpt2", "2", "ddp").plan.model_copy(update={"bucket_bytes": {"gpu": 4096}})
    graph = bind(emit(traced("gpt2").program, plan).halves()[1][1].backward, {"gpu": "0"})
    before = Counter(map(str, collectives_of(graph.nodes)))
    eager(graph, "Backward")
    targets = [node.target for node in graph.nodes]
    assert all_reduce_together in targets
    assert TOGETHER[ALL_REDUCE] not in targets
    assert Counter(map(str, collectives_of(graph.nodes))) == before


@pytest.mark.slow
def test_whichever_is_waited_for_first_all_have_come() -> None:
    run_processes(2, reduce_together)


def reduce_together(rank: int) -> None:
    """Three under way at once, each large enough to take a while."""
    shapes, wait = ((3,), (500, 1000), (), (2, 2)), torch.ops._c10d_functional.wait_tensor
    for first in range(len(shapes)):
        given = [[torch.full(shape, 10.0 * k + rank) for shape in shapes] for k in range(3)]
        reduced = [all_reduce_together(tensors, "sum", dist.group.WORLD.group_name) for tensors in given]
        for k, parts in enumerate(reduced):
            wait(parts[first])
            assert all(torch.equal(part, torch.full(shape, 20.0 * k + 1)) for part, shape in zip(parts, shapes, strict=True))
            assert all(torch.equal(wait(part), part) for part in parts)
            assert all(torch.equal(t, torch.full(t.shape, 10.0 * k + rank)) for t in given[k]), "what is sent stays"
