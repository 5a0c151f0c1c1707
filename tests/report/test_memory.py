"""Memory over a step: the same bytes as `codegen.measure` counts, split by what they are for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from autopar.codegen.emit import Emitted
from autopar.codegen.liveness import alive_bytes
from autopar.codegen.measure import input_bytes, levels, state_bytes
from autopar.hardware import load
from autopar.planning.simulate import simulate
from autopar.report.memory import PLACE, StepMemory, graph_of, memory_of_step
from autopar.report.memory import levels as levels_of
from autopar.report.told import Told
from tests.planned import known_way, planned, tightest
from tests.report.pages import by_known_way
from tests.zoo import ZOO

Made = Callable[[], Emitted]


def memory(emitted: Emitted) -> StepMemory:
    return memory_of_step(emitted, simulate(emitted, load("cpu")))


PLANS = [
    pytest.param(lambda: planned("gpt2", "2x2")[1], id="gpt2"),
    pytest.param(lambda: planned("llama", "4")[1], id="llama"),
    pytest.param(lambda: tightest("gpt2", "2x2")[1], id="gpt2 with much made again", marks=pytest.mark.slow),
    pytest.param(lambda: known_way("mlp", "4", "fsdp"), id="fsdp"),
    pytest.param(lambda: known_way("mlp", "2", "ddp"), id="ddp"),
    pytest.param(lambda: by_known_way(*ZOO["mixtral"].build(), "2x2", "ep"), id="tokens that travel", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("made", PLANS)
def test_the_highest_sample_is_the_plan_s_peak(made: Made) -> None:
    emitted = made()
    found = memory(emitted)
    assert found.peak.total == levels(emitted).highest[1]
    assert sum(thing.bytes for thing in found.living) == found.peak.total


@pytest.mark.parametrize("made", PLANS)
def test_every_call_is_as_high_as_it_is_counted(made: Made) -> None:
    emitted = made()
    counted, highest = levels(emitted), dict[str, int]()
    for sample in memory(emitted).samples:
        assert min(sample.bytes) >= 0, sample
        highest[sample.where] = max(highest.get(sample.where, 0), sample.total)
    assert highest == dict((*counted.forward, *counted.backward, counted.optimizer))


@pytest.mark.parametrize("made", PLANS)
def test_every_node_holds_what_it_is_counted_to(made: Made) -> None:
    for region, halves in made().halves():
        told = Told(region)
        for phase in ("forward", "backward"):
            graph, dying = graph_of(halves, phase, frozenset())
            found = [level.split.total() for level in levels_of(told, halves, phase, frozenset())]
            assert found == alive_bytes(graph, dying)


def test_the_peak_of_the_plan_file_is_met_to_the_byte() -> None:
    plan, emitted, counted = planned("gpt2", "2x2")
    assert memory(emitted).peak.total == plan.peak_bytes == counted.peak_bytes


def test_gradients_over_micro_batches_are_there_all_the_time() -> None:
    _, emitted, _ = planned("gpt2", "2x2")
    several = replace(emitted, plan=emitted.plan.model_copy(update={"micro_batches": 2}))
    once, found = memory(emitted), memory(several)
    assert found.peak.total == levels(several).highest[1]
    assert once.samples[0].bytes[PLACE["gradients"]] == 0
    assert found.samples[0].bytes[PLACE["gradients"]] == once.samples[0].bytes[PLACE["parameters"]]


def test_purposes_are_what_they_say() -> None:
    """FSDP gathers every parameter and keeps activations; its state and batch are those that are counted at rest."""
    emitted = known_way("mlp", "4", "fsdp")
    found = memory(emitted)
    first, peak = found.samples[0].bytes, found.peak.bytes
    at_rest = sum(first[PLACE[purpose]] for purpose in ("parameters", "optimizer", "inputs"))
    assert at_rest == state_bytes(emitted) + input_bytes(emitted)
    assert first[PLACE["optimizer"]] == 2 * first[PLACE["parameters"]], "AdamW's two moments"
    assert peak[PLACE["kept"]] > 0
    assert max(sample.bytes[PLACE["gathered"]] for sample in found.samples) > 0
    assert found.samples[-1].bytes[PLACE["gradients"]] == first[PLACE["parameters"]]


def test_ddp_gathers_nothing() -> None:
    found = memory(known_way("mlp", "2", "ddp"))
    assert {sample.bytes[PLACE["gathered"]] for sample in found.samples} == {0}


def test_samples_are_in_the_order_of_time_and_thinning_keeps_the_peak() -> None:
    _, emitted, _ = planned("gpt2", "2x2")
    found = memory(emitted)
    times = [sample.at_s for sample in found.samples]
    assert times == sorted(times)
    assert times[-1] <= found.step_s
    few = found.thinned(10)
    assert len(few) <= 11
    assert max(sample.total for sample in few) == found.peak.total
