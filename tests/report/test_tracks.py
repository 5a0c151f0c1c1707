"""Timelines for the eye: nothing is lost when events become slices and blocks."""

from __future__ import annotations

import pytest

from autopar.ir.timeline import COMPUTE, WAITS, Event, Timeline
from autopar.report.tracks import BLOCKS, SLICES, blocks, close_up, span, tracks, typical


def event(track: str, start_s: float, end_s: float, call: str = "h.0 forward", **about: object) -> Event:
    return Event(track=track, name=f"op_{start_s}", call=call, start_s=start_s, end_s=end_s, about=about)


EVENTS = (
    event(COMPUTE, 0.0, 1.001),
    event(COMPUTE, 1.001, 3.0),
    event(WAITS, 3.0, 4.0),
    event(COMPUTE, 4.0, 6.0, again=True),
    event("gpu", 0.5, 4.0, bytes=1024, collective="all_gather"),
    event(COMPUTE, 6.0, 10.0, call="h.0 backward"),
)
TIMELINE = Timeline(tracks=(COMPUTE, WAITS, "gpu"), events=EVENTS, step_s=10.0, waited_s=1.0)
CALLS = [("start", "start"), ("h.*", "h.0"), ("h.*", "h.1"), ("h.*", "h.2")]


def test_slices_hold_all_seconds_of_their_track() -> None:
    device, gpu = tracks(TIMELINE, [("h.*", "h.0")]).usage
    assert [device.name, gpu.name] == [COMPUTE, "gpu"]
    assert len(device.slices) == SLICES
    totals = {kind: sum(s.seconds.get(kind, 0.0) for s in device.slices) for kind in ("forward", "again", "waits", "backward")}
    assert totals == pytest.approx({"forward": 3.0, "again": 2.0, "waits": 1.0, "backward": 4.0})
    assert sum(s.seconds.get("gpu", 0.0) for s in gpu.slices) == pytest.approx(3.5)
    assert all(sum(s.seconds.values()) <= 10.0 / SLICES * 1.0001 for s in (*device.slices, *gpu.slices))


def test_a_close_up_is_cut_where_its_call_ends() -> None:
    window = close_up(TIMELINE, "h.0 forward")
    assert window is not None
    assert (window.start_s, window.end_s) == (0.0, 6.0)
    assert [block.kind for block in window.tracks[0].blocks] == ["forward", "forward", "waits", "again"]
    assert window.tracks[1].busy_s == 3.5
    assert close_up(TIMELINE, "h.9 forward") is None


def test_what_cannot_be_seen_joins_its_neighbours_and_what_can_does_not() -> None:
    fine = 6.0 / BLOCKS
    tiny = [event(COMPUTE, i * fine / 10, (i + 1) * fine / 10) for i in range(10)]
    large = [event(COMPUTE, 1.0, 2.0), event(COMPUTE, 2.0, 3.0)]
    found = list(blocks([*tiny, *large], fine, 0.0, 6.0))
    assert [(block.start_s, block.end_s) for block in found] == [(0.0, pytest.approx(fine)), (1.0, 2.0), (2.0, 3.0)]
    assert found[0].text.startswith("10 ops: ")


def test_the_typical_call_is_the_middle_one_of_the_most_common_region() -> None:
    assert typical(CALLS) == "h.1"
    assert [span([]), span(["a"]), span(["a", "b", "c"])] == ["", "a", "a to c"]
