"""A timeline for the eye: over the whole step how busy the device and each link are, and a typical layer op by op."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from autopar.bytes import human
from autopar.ir.timeline import COMPUTE, WAITS, Event, Timeline
from autopar.seconds import human_s

SLICES = 160
"""Of the whole step: each is as wide as a few pixels."""

BLOCKS = 900
"""A block of a close up is at least this share of it: about a pixel."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """`kind`: forward, backward, again or waits on the device, else the axis' name; `text` says what it is."""

    start_s: float
    end_s: float
    kind: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Track:
    name: str
    busy_s: float
    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True)
class Window:
    """A part of the step: the tracks from `start_s` to `end_s`."""

    title: str
    start_s: float
    end_s: float
    tracks: tuple[Track, ...]


@dataclass(frozen=True, kw_only=True)
class Slice:
    """How long something is busy in one slice of the step, by kind; `where` says which calls that is."""

    seconds: Mapping[str, float]
    where: str


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Of the device or a link, in equal slices of the step."""

    name: str
    busy_s: float
    slices: tuple[Slice, ...]


@dataclass(frozen=True, kw_only=True)
class Tracks:
    """The whole step, without the optimizer's, and a typical layer in both passes."""

    step_s: float
    waited_s: float
    usage: tuple[Usage, ...]
    close: tuple[Window, ...]


def tracks(timeline: Timeline, calls: Sequence[tuple[str, str]]) -> Tracks:
    """`calls`: (region, name) in order."""
    name = typical(calls)
    close = (close_up(timeline, f"{name} {phase}") for phase in ("forward", "backward"))
    return Tracks(
        step_s=timeline.step_s,
        waited_s=timeline.waited_s,
        usage=tuple(usage(timeline, name) for name in timeline.tracks if name != WAITS),
        close=tuple(window for window in close if window is not None),
    )


def usage(timeline: Timeline, track: str) -> Usage:
    """Waits stand on the track of the computation that they keep up."""
    width_s = timeline.step_s / SLICES or 1.0
    seconds: list[Counter[str]] = [Counter() for _ in range(SLICES)]
    calls: list[dict[str, None]] = [{} for _ in range(SLICES)]
    for event in timeline.events:
        if event.track != track and not (track == COMPUTE and event.track == WAITS):
            continue
        last = min(int(event.end_s / width_s), SLICES - 1)
        for place in range(min(int(event.start_s / width_s), SLICES - 1), last + 1):
            inside_s = min(event.end_s, (place + 1) * width_s) - max(event.start_s, place * width_s)
            if inside_s > 0:
                seconds[place][kind(event)] += inside_s  # type: ignore[assignment]
                calls[place][event.call] = None
    slices = tuple(Slice(seconds=dict(s), where=span(list(c))) for s, c in zip(seconds, calls, strict=True))
    return Usage(name=track, busy_s=timeline.busy_s(track), slices=slices)


def span(calls: Sequence[str]) -> str:
    return "" if not calls else calls[0] if len(calls) == 1 else f"{calls[0]} to {calls[-1]}"


def typical(calls: Sequence[tuple[str, str]]) -> str:
    """The middle one of the calls of the region that is called most."""
    most = Counter(region for region, _ in calls).most_common(1)[0][0]
    names = [name for region, name in calls if region == most]
    return names[len(names) // 2]


def close_up(timeline: Timeline, call: str) -> Window | None:
    """What happens while one call computes."""
    own = [e for e in timeline.events if e.call == call and e.track in (COMPUTE, WAITS)]
    if not own:
        return None
    start_s, end_s = min(e.start_s for e in own), max(e.end_s for e in own)
    beside = [e for e in timeline.events if e.end_s > start_s and e.start_s < end_s]
    return window(beside, timeline.tracks, call, start_s, end_s)


def window(events: Iterable[Event], names: Sequence[str], title: str, start_s: float, end_s: float) -> Window:
    """Waits stand on the track of the computation that they keep up."""
    by_track: dict[str, list[Event]] = {name: [] for name in names if name != WAITS}
    for event in events:
        by_track[COMPUTE if event.track == WAITS else event.track].append(event)
    finest_s = (end_s - start_s) / BLOCKS
    found = tuple(
        Track(
            name=name,
            busy_s=sum(min(e.end_s, end_s) - max(e.start_s, start_s) for e in own if e.track != WAITS),
            blocks=tuple(blocks(sorted(own, key=lambda e: e.start_s), finest_s, start_s, end_s)),
        )
        for name, own in by_track.items()
    )
    return Window(title=title, start_s=start_s, end_s=end_s, tracks=found)


def blocks(events: Iterable[Event], finest_s: float, start_s: float, end_s: float) -> Iterator[Block]:
    """Neighbours of one kind and call that nothing visible parts are one block, and so are those too short to see."""
    run: list[Event] = []
    for event in events:
        if run and not joins(run, event, finest_s):
            yield block(run, start_s, end_s)
            run = []
        run.append(event)
    if run:
        yield block(run, start_s, end_s)


def joins(run: Sequence[Event], event: Event, finest_s: float) -> bool:
    near = event.start_s - run[-1].end_s < finest_s
    short = event.end_s - run[0].start_s < finest_s
    return near and (short or (kind(event) == kind(run[-1]) and event.end_s - event.start_s < finest_s))


def kind(event: Event) -> str:
    if event.track not in (COMPUTE, WAITS):
        return event.track
    if event.track == WAITS:
        return "waits"
    return "again" if event.about.get("again") else event.call.rpartition(" ")[2]


def block(run: Sequence[Event], start_s: float, end_s: float) -> Block:
    """Of the kind that takes most of it."""
    seconds: Counter[str] = Counter()
    for event in run:
        seconds[kind(event)] += event.end_s - event.start_s  # type: ignore[assignment]
    return Block(
        start_s=max(run[0].start_s, start_s),
        end_s=min(run[-1].end_s, end_s),
        kind=seconds.most_common(1)[0][0],
        text=single(run[0]) if len(run) == 1 else several(run),
    )


def single(event: Event) -> str:
    took = human_s(event.end_s - event.start_s)
    if event.track == WAITS:
        return f"waits {took} for {event.name}, in {event.call}"
    about = event.about
    what = about.get("collective", event.name)
    if "conversion" in about:
        what = f"{about.get('collective') or about['conversion']} of {about['tensor']} {about['placements']}"
    elif "module" in about:
        what = f"{event.name} ({about['module']}{', ' + about['source'] if about.get('source') else ''})"
    size = f", {human(about['bytes'])}" if "bytes" in about else ""
    return f"{what}: {took}{size}, in {event.call}"


def several(run: Sequence[Event]) -> str:
    took = human_s(sum(e.end_s - e.start_s for e in run))
    sent = sum(e.about.get("bytes", 0) for e in run)
    what = "collectives" if sent else "waits" if all(e.track == WAITS for e in run) else "ops"
    size = f", {human(sent)}" if sent else ""
    return f"{len(run)} {what}: {took}{size}, in {span(list(dict.fromkeys(e.call for e in run)))}"
