"""The clock of a step: resources are used one at a time, nothing is read before it is there, and what overlaps is hidden."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from autopar.codegen.emit import Emitted
from autopar.hardware import Hardware, load
from autopar.ops.flops import collective_of
from autopar.planning.simulate import COMPUTE, WAITS, Timeline, simulate
from tests.planned import known_way

CPU = replace(load("cpu"), overlap=1.0)


def faster(hardware: Hardware, times: float) -> Hardware:
    """With links so many times as fast."""
    links = {
        name: replace(link, bytes_per_s=link.bytes_per_s * times, latency_s=link.latency_s / times)
        for name, link in hardware.links.items()
    }
    return replace(hardware, links=links)


def on(track: str, timeline: Timeline) -> list[tuple[float, float]]:
    return [(e.start_s, e.end_s) for e in timeline.events if e.track == track]


@pytest.fixture(scope="module")
def fsdp() -> Emitted:
    return known_way("gpt2", "2", "fsdp")


def test_each_resource_does_one_thing_at_a_time(fsdp: Emitted) -> None:
    timeline = simulate(fsdp, CPU)
    for track in (COMPUTE, "gpu"):
        spans = on(track, timeline)
        assert len(spans) > 10
        assert all(end <= start + 1e-12 for (_, end), (start, _) in pairwise(spans))


def test_the_step_is_what_is_computed_and_what_is_waited_for(fsdp: Emitted) -> None:
    timeline = simulate(fsdp, CPU)
    assert timeline.step_s == pytest.approx(timeline.busy_s(COMPUTE) + timeline.waited_s)
    assert 0 < timeline.waited_s < timeline.busy_s("gpu"), "some of what is sent is hidden, not all"


def test_free_links_leave_the_computation(fsdp: Emitted) -> None:
    timeline = simulate(fsdp, faster(CPU, 1e9))
    assert timeline.step_s == pytest.approx(timeline.busy_s(COMPUTE))


def test_slow_links_leave_the_communication(fsdp: Emitted) -> None:
    timeline = simulate(fsdp, faster(CPU, 1e-6))
    assert timeline.step_s == pytest.approx(timeline.busy_s("gpu"), rel=1e-2)


def test_what_takes_the_device_s_computing_power_hides_nothing(fsdp: Emitted) -> None:
    timeline = simulate(fsdp, replace(CPU, overlap=0.0))
    assert timeline.step_s >= timeline.busy_s(COMPUTE) + timeline.busy_s("gpu") * 0.999


def test_the_schedule_hides_more_than_one_thing_after_the_other(fsdp: Emitted) -> None:
    """Graphs whose collectives are all waited for at once take as long as all of it added up."""
    timeline = simulate(fsdp, CPU)
    assert timeline.step_s < 0.9 * (timeline.busy_s(COMPUTE) + timeline.busy_s("gpu"))


def test_a_timeline_says_of_each_event_what_it_is(fsdp: Emitted) -> None:
    timeline = simulate(fsdp, CPU)
    assert {e.track for e in timeline.events} <= set(timeline.tracks) == {COMPUTE, WAITS, "gpu"}
    assert timeline.busy_s(WAITS) == pytest.approx(timeline.waited_s)
    sent = [e.about for e in timeline.events if e.track == "gpu"]
    started = [n for _, h in fsdp.halves() for n in (*h.forward.nodes, *h.backward.nodes) if collective_of(n)]
    assert len(sent) == len(started) < sum(c.count for c in fsdp.plan.figures.collectives), "small ones travel together"
    assert sum(a["bytes"] for a in sent) == sum(c.bytes for c in fsdp.plan.figures.collectives)
    first = next(a for a in sent if a.get("tensor") == "transformer_wte_weight")
    assert (first["conversion"], first["placements"]) == ("gather", "[S(0)] -> [R]")
    product = next(e for e in timeline.events if e.name == "mlp_c_fc_addmm")
    assert (product.call, product.about["module"]) == ("transformer.h.0 forward", "mlp.c_fc")
    assert product.about["source"].startswith("pytorch_utils.py:")
