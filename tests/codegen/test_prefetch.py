"""Gathers that the call before starts: which, when, in which memory; and that all is sent once, and read once it is there."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.fx import Graph

from autopar.codegen import prefetch
from autopar.codegen.all_ranks import run_all_ranks
from autopar.codegen.emit import Emitted, emit
from autopar.codegen.flight import flights
from autopar.codegen.liveness import peak
from autopar.codegen.measure import Levels, dying_inputs, levels
from autopar.codegen.prefetch import Leg, Legs, Own, joined, legs
from autopar.codegen.schedule import WAIT, gathers_of_state, started
from autopar.codegen.split import placeholders, results_of
from autopar.hardware import Hardware, load
from autopar.ir.run import zip_inputs
from autopar.ir.timeline import WAITS
from autopar.ir.widen import widened
from autopar.ops.flops import collective_of, collectives_of
from autopar.planning.simulate import simulate
from autopar.verification import EPS, LEARNING_RATE, TOLERANCE, compare, run_serial
from tests.hardware_toy import toy_hardware
from tests.planned import known_way, traced


@pytest.fixture(scope="module")
def fsdp() -> Emitted:
    return known_way("gpt2", "2", "fsdp")


def found(emitted: Emitted) -> Legs:
    return legs(emitted, flights(emitted))


def in_order(legs: Legs) -> tuple[Sequence[Leg], Sequence[Leg]]:
    """The legs of both passes, each as it runs."""
    return legs.forward, legs.backward[::-1]


def test_the_layers_gathers_start_in_the_call_before(fsdp: Emitted) -> None:
    forward, backward = in_order(found(fsdp))
    assert forward[0].lead is None, "of an embedding the rows are looked up where they rest"
    for way in (forward, backward):
        for before, after in pairwise(way):
            assert before.ahead is None or before.ahead is after.lead
        assert way[-1].ahead is None
    assert all(leg.lead and before.ahead for before, leg in pairwise(forward[:3]))
    assert any(leg.ahead for leg in backward)


def test_they_start_after_the_graph_s_own_and_before_the_most_of_its_work(fsdp: Emitted) -> None:
    leg = found(fsdp).forward[1]
    nodes = list(leg.graph.nodes)
    next_ones = [i for i, n in enumerate(nodes) if "of_next" in n.meta]
    state = {n for n in placeholders(leg.graph) if not n.name.startswith("next_")}
    own = [nodes.index(n) for n in gathers_of_state([n for n in nodes if "of_next" not in n.meta], state)]
    waits = [i for i, n in enumerate(nodes) if n.target is WAIT]
    products = [i for i, n in enumerate(nodes) if n.target is torch.ops.aten.addmm.default]
    assert max(own) < min(next_ones)
    assert max(next_ones) < max(products)
    assert min(waits) < min(next_ones)


def test_all_is_sent_once(fsdp: Emitted) -> None:
    def sent(graphs: Sequence[Graph]) -> Counter[str]:
        return Counter(str(c) for graph in graphs for c in collectives_of(graph.nodes))

    for phase, way in zip(("forward", "backward"), in_order(found(fsdp)), strict=True):
        own = sent([getattr(halves, phase) for _, halves in fsdp.halves()])
        led = [
            leg.lead.graph for before, leg in zip((None, *way), way, strict=False) if leg.lead and not (before and before.ahead)
        ]
        assert sent([*led, *(leg.graph for leg in way)]) == own


def test_what_travels_between_graphs_is_waited_for(fsdp: Emitted) -> None:
    for way in in_order(found(fsdp)):
        for leg in way:
            travelling = [n for n in placeholders(leg.graph) if started(n)]
            assert len(travelling) == (len(leg.lead.starts) if leg.lead else 0)
            assert all([user.target for user in n.users if user.op != "output"] == [WAIT] for n in travelling)
            results = results_of(leg.graph)
            ahead = results[len(results) - len(leg.ahead.starts) :] if leg.ahead else ()
            assert all(collective_of(n) is not None and "of_next" in n.meta for n in ahead)


def test_nothing_raises_the_peak(fsdp: Emitted) -> None:
    check_levels(fsdp, levels(fsdp))


def check_levels(emitted: Emitted, level: Levels) -> None:
    """Counted on the graphs that run, with what they are given and what they start."""
    _, highest = level.highest
    made, flown = found(emitted), flights(emitted)
    for i, (_, halves) in enumerate(emitted.halves()):
        dying = {n.name for n in dying_inputs(halves)} - level.lasting[i]
        for leg, graph, free, extra in (
            (made.forward[i], halves.forward, highest - level.forward[i][1], 0),
            (
                made.backward[i],
                halves.backward,
                highest - level.backward[i][1],
                0 if (flying := flown[i].flying) is None else flying.extra_bytes,
            ),
        ):
            die = dying if graph is halves.backward else set()
            own = peak(graph, {n for n in placeholders(graph) if n.name in die})
            given = leg.lead.bytes if leg.lead else 0
            now = given + peak(leg.graph, {n for n in placeholders(leg.graph) if n.name in die or started(n)})
            assert now <= own + leg.extra_bytes + extra
            assert leg.extra_bytes + extra <= free


def test_without_room_they_start_where_they_raise_nothing(fsdp: Emitted, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every call were at the peak of the step."""
    real, free = levels(fsdp), starting(found(fsdp))
    forward = tuple((where, real.highest[1]) for where, _ in real.forward)
    backward = tuple((where, real.highest[1]) for where, _ in real.backward)
    flat = replace(real, forward=forward, backward=backward)
    monkeypatch.setattr(prefetch, "levels", lambda emitted: flat)
    made = legs(fsdp, [replace(f, flying=None, room_bytes=0) for f in flights(fsdp)])
    assert all(leg.extra_bytes == 0 for way in in_order(made) for leg in way)
    places = starting(made)
    assert any(places)
    assert all(now is None or now >= before for now, before in zip(places, free, strict=True) if before is not None)
    assert places != free


def starting(legs: Legs) -> list[int | None]:
    """For each leg, how many nodes of its own run before it starts the next one's gathers."""
    found = []
    for leg in (*legs.forward, *legs.backward):
        nodes = [n for n in leg.graph.nodes if n.op == "call_function"]
        found.append(next((i for i, n in enumerate(nodes) if "of_next" in n.meta), None))
    return found


def test_calls_that_do_the_same_share_their_graphs(fsdp: Emitted) -> None:
    call, (_, halves) = fsdp.program.calls[1], fsdp.halves()[1]
    state = range(len(call.inputs), len(placeholders(halves.forward)))
    made = joined([Own(graph=halves.forward, state=state, dying=frozenset(), room_bytes=1e9)] * 5)
    assert made[0].lead is not None
    assert {leg.lead for leg in made} == {made[0].lead}
    assert [leg.ahead for leg in made] == [*[made[0].lead] * 4, None]
    assert len({leg.graph for leg in made[:4]}) == 1


@pytest.mark.parametrize("way", ["fsdp", "zero2"])
def test_on_two_axes_a_layer_waits_only_where_it_begins_and_ends(way: str) -> None:
    """Every kernel takes 1 s and every collective 0.5 s, so a single kernel hides one. Of a layer's 24 gathers all are hidden
    but the last legs of what the first norm needs, and in backward of the first matrix; of its reductions all but the last."""
    emitted = known_way("gpt2", "2x2", way)
    timeline = simulate(emitted, counting_kernels())
    path = emitted.program.calls[2].path

    def waited(phase: str) -> dict[str, float]:
        call = f"{path} {phase}"
        return {e.name: e.end_s - e.start_s for e in timeline.events if e.track == WAITS and e.call == call}

    gathers = [e for e in timeline.events if e.track in ("node", "gpu") and e.call == f"{path} forward"]
    assert len(gathers) == 24
    assert waited("forward").keys() == {"ln_1_weight_gather_node_all_gather", "ln_1_bias_gather_node_all_gather"}
    last = {"grad_ln_1_weight_gather_node_reduce_scatter", "grad_ln_1_bias_gather_node_reduce_scatter"}
    assert waited("backward").keys() <= {"mlp_c_proj_weight_gather_node_all_gather_again", *last}
    assert {*waited("forward").values(), *waited("backward").values()} == {0.5}


def counting_kernels() -> Hardware:
    """Kernels take a second each, collectives over two devices half of one."""
    hardware = toy_hardware(flops_per_s=1e30, bytes_per_s=1e30, link_bytes_per_s=1e30)
    links = {name: replace(link, latency_s=0.5) for name, link in hardware.links.items()}
    return replace(hardware, launch_s=1.0, links=links)


def test_it_hides_more(fsdp: Emitted, monkeypatch: pytest.MonkeyPatch) -> None:
    from autopar.planning import simulate as module

    hardware = replace(load("cpu"), overlap=1.0)
    with_it = simulate(fsdp, hardware)

    def alone(emitted: Emitted, flown: Any) -> Legs:
        def leg(graph: Graph) -> Leg:
            return Leg(graph=graph, lead=None, ahead=None, extra_bytes=0)

        backward = [
            h.backward if f.flying is None else f.flying.graph for (_, h), f in zip(emitted.halves(), flown, strict=True)
        ]
        return Legs(forward=tuple(leg(h.forward) for _, h in emitted.halves()), backward=tuple(map(leg, backward)))

    monkeypatch.setattr(module, "legs", alone)
    without = simulate(fsdp, hardware)
    assert with_it.waited_s < without.waited_s
    assert sorted((e.call, e.name) for e in with_it.events if e.track == "gpu") == sorted(
        (e.call, e.name) for e in without.events if e.track == "gpu"
    ), "and each collective has the same name"


@pytest.mark.parametrize(("mesh", "way"), [("2", "fsdp"), ("2x2", "fsdp"), ("2x2", "zero2"), ("2x2", "2d"), ("2x2x2", "fsdp")])
def test_numbers_are_those_of_the_serial_run(mesh: str, way: str) -> None:
    """Also of parameters that several collectives bring, and of those that backward keeps."""
    model, kwargs = traced("gpt2", torch.float64).model, traced("gpt2", torch.float64).kwargs
    program = widened(traced("gpt2", torch.float64).program)
    emitted = emit(program, known_way("gpt2", mesh, way, torch.float64).plan)
    assert any(leg.ahead for leg in found(emitted).forward)
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    state = {name: state[name].detach() for name in program.state if program.state[name].kind != "constant"}
    state |= {n: s.value for n, s in program.state.items() if s.value is not None}
    inputs = dict(zip_inputs(program, (), kwargs))
    serial = run_serial(program, state, inputs, 2)
    ours = run_all_ranks(emitted, state, inputs, 2, lambda ps: torch.optim.AdamW(ps, lr=LEARNING_RATE, eps=EPS))
    worst = compare(ours, serial, program)[0]
    assert worst.relative_error <= TOLERANCE, worst
