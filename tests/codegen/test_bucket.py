"""Small reductions of gradients that travel together: which, how many, and that nothing else changes."""

from collections import Counter

import pytest
import torch
from torch.fx import Graph, Node

from autopar.codegen.all_ranks import run_all_ranks
from autopar.codegen.bucket import FULL, bucket
from autopar.codegen.emit import Emitted, emit
from autopar.codegen.flight import flights
from autopar.codegen.measure import measure
from autopar.codegen.schedule import TOGETHER, held_until_waited, waits_of
from autopar.codegen.unreduced import cut
from autopar.hardware import load
from autopar.ir.conversion import ALL_REDUCE
from autopar.ir.plan import Plan
from autopar.ir.run import zip_inputs
from autopar.ir.widen import widened
from autopar.ops.flops import collective_of, collectives_of
from autopar.ops.joint import bytes_of
from autopar.verification import EPS, LEARNING_RATE, TOLERANCE, compare, run_serial
from tests.planned import known_way, traced

LAYERS = "transformer.h.*"
SIZE = 4096


def bucketed(plan: Plan, size: int) -> Plan:
    return plan.model_copy(update={"bucket_bytes": dict.fromkeys(plan.mesh.names, size)})


def with_buckets(way: str, size: int) -> Emitted:
    return emit(traced("gpt2").program, bucketed(known_way("gpt2", "2", way).plan, size))


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_small_ones_travel_together_and_large_ones_alone(way: str) -> None:
    apart, together = with_buckets(way, 0), with_buckets(way, SIZE)
    assert Counter(measure(together).collectives) == Counter(measure(apart).collectives), "figures are of each tensor"
    found = 0
    for (_, before), (_, after) in zip(apart.halves(), together.halves(), strict=True):
        alone = [c for n in before.backward.nodes if n.target in TOGETHER and (c := collective_of(n))]
        joined = [n for n in after.backward.nodes if n.target in TOGETHER.values()]
        small = [c for c in alone if c.bytes < SIZE]
        found += len(small)
        assert bool(joined) == any(n > 1 for n in Counter(c.kind for c in small).values())
        assert len(joined) <= len({c.kind for c in small}) + sum(c.bytes for c in small) // (FULL * SIZE)
        assert all(collective_of(n).bytes < (FULL + 1) * SIZE for n in joined)
        assert all(c.bytes < SIZE for n in joined for c in collectives_of([n]))
        left = [c for n in after.backward.nodes if n.target in TOGETHER and (c := collective_of(n))]
        assert sorted(c for c in left if c.bytes >= SIZE) == sorted(c for c in alone if c.bytes >= SIZE)
    assert found > 8, "nothing is small: the test shows nothing"


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_each_has_a_wait_and_memory_of_its_own(way: str) -> None:
    for _, halves in with_buckets(way, SIZE).halves():
        for node in halves.backward.nodes:
            if node.target not in TOGETHER.values():
                continue
            waits = waits_of(node)
            assert len(waits) == len(node.args[0]) > 1
            for wait, sent in zip(waits, node.args[0], strict=True):
                (result,) = wait.all_input_nodes
                assert bytes_of(result) * (1 if collective_of(node).kind == ALL_REDUCE else 2) == bytes_of(sent)
                assert held_until_waited(result) == ([] if collective_of(node).kind == ALL_REDUCE else [sent])


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_training_is_that_of_the_serial_run(way: str) -> None:
    found = traced("gpt2", torch.float64)
    program = widened(found.program)
    emitted = emit(program, bucketed(known_way("gpt2", "2", way, torch.float64).plan, 2 * SIZE))
    state = {**dict(found.model.named_parameters()), **dict(found.model.named_buffers())}
    state = {name: state[name].detach() for name in program.state if program.state[name].kind != "constant"}
    state |= {n: s.value for n, s in program.state.items() if s.value is not None}
    inputs = dict(zip_inputs(program, (), found.kwargs))
    serial = run_serial(program, state, inputs, 2)
    ours = run_all_ranks(emitted, state, inputs, 2, lambda ps: torch.optim.AdamW(ps, lr=LEARNING_RATE, eps=EPS))
    worst = compare(ours, serial, program)[0]
    assert worst.relative_error <= TOLERANCE, worst


def test_they_fly_on_and_wait_for_micro_batches_as_the_others_do() -> None:
    emitted = with_buckets("ddp", SIZE)
    for (region, halves), flight in zip(emitted.halves(), flights(emitted), strict=True):
        found = cut(halves, len(region.local.region.inputs), len(region.local.region.state))
        joined = [n for n in halves.backward.nodes if n.target in TOGETHER.values()]
        assert not [n for n in found.local.nodes if n.target in TOGETHER.values()]
        assert len([n for n in found.reduction.nodes if n.target in TOGETHER.values()]) == len(joined)
        if flight.flying is not None and joined:
            left = [n for n in flight.flying.graph.nodes if n.target in TOGETHER.values() and not waits_of(n)]
            assert left, "all are waited for"


def reductions(*elements: int) -> tuple[Graph, list[Node], list[Node]]:
    """A graph that reduces its inputs, and nothing else; the inputs and the results."""
    graph = Graph()
    given = [graph.placeholder(f"g{k}") for k in range(len(elements))]
    results = []
    for node, count in zip(given, elements, strict=True):
        start = graph.call_function(torch.ops._c10d_functional.all_reduce.default, (node, "sum", "gpu"))
        wait = graph.call_function(torch.ops._c10d_functional.wait_tensor.default, (start,))
        for each in (node, start, wait):
            each.meta["val"] = torch.empty(count)
        results.append(wait)
    graph.output(tuple(results))
    return graph, given, results


def test_what_the_next_graph_reads_is_not_delayed() -> None:
    graph, given, results = reductions(4, 4, 4)
    bucket(graph, {"gpu": 1000}, {results[1]})
    graph.lint()
    (joined,) = (n for n in graph.nodes if n.target in TOGETHER.values())
    assert joined.args[0] == [given[0], given[2]]


def test_buckets_close_at_four_times_the_size_and_large_ones_never_wait() -> None:
    graph, given, _ = reductions(*[750] * 3, 1024, *[750] * 7)
    bucket(graph, {"gpu": 4096}, set())
    graph.lint()
    joined = [n.args[0] for n in graph.nodes if n.target in TOGETHER.values()]
    assert joined == [[*given[:3], *given[4:7]], given[7:]]


def test_the_size_is_where_sending_takes_as_long_as_starting() -> None:
    link = load("h100-sxm").links["intra_node"]
    size = link.bucket_bytes(8)
    assert link.collective_s(ALL_REDUCE, size, 8) == pytest.approx(2 * link.collective_s(ALL_REDUCE, 0, 8), rel=1e-3)
    assert link.bucket_bytes(1) == 0
