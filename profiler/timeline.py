"""The memory of a step over time: every piece of memory made and let go, repeated blocks written out.

A block's own tape says when it reads what it kept for backward for the last time. What enters and leaves a block belongs to
the model's tape, and exists until the model has let it go and no block keeps it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import sympy

from autopar.profiler.closed_form import Forms, candidates
from autopar.profiler.step import Recording
from autopar.profiler.tape import BACKWARD, GRADIENT, MADE, BlockCall, Event, Freed, Kernel, Made, Size, Storage, Tape


@dataclass(frozen=True)
class Change:
    """Memory comes (`sign` 1) or goes (-1). `place` is equal for the same event of equal blocks."""

    storage: Storage
    sign: int
    path: str
    place: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Timeline:
    """`forward_end`: how many of the changes belong to forward."""

    changes: tuple[Change, ...]
    forward_end: int

    @cached_property
    def saved(self) -> Counter[Storage]:
        """What backward needs of what forward made, inputs and state included: storage -> how many such."""
        alive = self.alive(self.forward_end)
        return Counter({storage: count for storage, count in alive.items() if storage.saved})

    def alive(self, count: int) -> Counter[Storage]:
        """What exists after so many changes: storage -> how many such (one per block that has it)."""
        found: Counter[Storage] = Counter()
        for change in self.changes[:count]:
            found[change.storage] += change.sign
        return +found

    @cached_property
    def _forms(self) -> tuple[Forms, np.ndarray, np.ndarray]:
        forms = Forms()
        index = np.array([forms.add(change.storage.bytes) for change in self.changes], dtype=np.int64)
        return forms, index, np.array([change.sign for change in self.changes], dtype=np.int64)

    def peaks(self) -> tuple[sympy.Expr, ...]:
        """Bytes at all points that can be the highest, for some size."""
        forms, index, sign = self._forms
        if not len(index):
            return ()
        levels = np.cumsum(forms.matrix[index] * sign[:, None], axis=0)
        rising = sign > 0
        places = [change.place for change, up in zip(self.changes, rising, strict=True) if up]
        return tuple(forms.expression(row) for row in candidates(levels[rising], places, forms.from_one))

    def bytes(self, sizes: dict[sympy.Symbol, int]) -> np.ndarray:
        """Bytes after each change, at these sizes."""
        forms, index, sign = self._forms
        return np.cumsum(forms.at(sizes)[index] * sign) if len(index) else np.zeros(0, dtype=np.int64)


@dataclass(eq=False)
class _Kept:
    """What a block keeps between its forward and its backward."""

    own: Counter[Storage] = field(default_factory=Counter)
    shared: dict[Storage, Storage] = field(default_factory=dict)


class _Writer:
    def __init__(self, gradients_leave: bool) -> None:
        self.gradients_leave = gradients_leave
        self.changes: list[Change] = []
        self.exists: set[Storage] = set()
        self.holders: Counter[Storage] = Counter()
        self.released: set[Storage] = set()
        self.kept: dict[str, _Kept] = {}
        self.unique = 0

    def add(self, storage: Storage, sign: int, path: str, place: tuple[int, int] | None = None) -> None:
        if place is None:
            self.unique += 1
            place = (-1, self.unique)
        self.changes.append(Change(storage, sign, path, place))
        if self.gradients_leave and storage.kind == GRADIENT:
            self.changes.append(Change(storage, -sign, path, place))

    def make(self, storage: Storage, place: tuple[int, int] | None = None) -> None:
        self.exists.add(storage)
        self.add(storage, 1, storage.path, place)

    def release(self, storage: Storage) -> None:
        """The model has let it go."""
        if storage not in self.exists:
            return
        if self.holders[storage]:
            self.released.add(storage)
        else:
            self.exists.discard(storage)
            self.add(storage, -1, storage.path)

    def unhold(self, storage: Storage) -> None:
        """A block has let it go."""
        self.holders[storage] -= 1
        if not self.holders[storage] and storage in self.released:
            self.released.discard(storage)
            self.release(storage)

    def write(self, tape: Tape) -> None:
        for i, event in enumerate(tape.events):
            if isinstance(event, Made):
                self.make(event.storage)
            elif isinstance(event, Freed):
                self.release(event.storage)
            elif isinstance(event, BlockCall):
                if event.tape.phase == BACKWARD:
                    self.backward(event, following(tape.events, i))
                else:
                    self.forward(event)

    def forward(self, call: BlockCall) -> None:
        tape, own = call.tape, Counter[Storage]()
        freed = {event.storage for event in tape.events if isinstance(event, Freed)}
        leaves = {tape.leaves[slot]: call.leaves[slot] for slot in tape.leaves}
        for i, event in enumerate(tape.events):
            if isinstance(event, Made):
                self.make_inside(call, event.storage, i, own)
            elif isinstance(event, Freed) and own[event.storage]:
                own[event.storage] -= 1
                self.add(event.storage, -1, call.path)
        shared: dict[Storage, Storage] = {s: outer for s, outer in leaves.items() if s not in freed}
        shared |= {s: outer for slot, s in tape.enters.items() if s not in freed and (outer := call.enters[slot]) is not None}
        for outer in shared.values():
            self.holders[outer] += 1
        self.kept[call.path] = _Kept(+own, shared)

    def make_inside(self, call: BlockCall, storage: Storage, i: int, own: Counter[Storage]) -> None:
        """Event `i` of a block's tape makes memory: what leaves the block is the model's, the rest its own."""
        place = id(call.tape), i
        if storage.slot is not None and call.tape.leaves.get(storage.slot) is storage:
            self.make(call.leaves[storage.slot], place)
        else:
            own[storage] += 1
            self.add(storage, 1, call.path, place)

    def backward(self, call: BlockCall, soon_freed: set[Storage]) -> None:
        tape, kept = call.tape, self.kept.pop(call.path)
        own = Counter(kept.own)
        enters = {s: call.enters[slot] for slot, s in tape.enters.items()}
        for i, event in enumerate(tape.events):
            if isinstance(event, Made):
                self.make_inside(call, event.storage, i, own)
            elif isinstance(event, Freed):
                storage = event.storage
                if storage in kept.shared:
                    self.unhold(kept.shared.pop(storage))
                elif (arrived := enters.get(storage)) in soon_freed and arrived is not None:
                    self.release(arrived)
                elif own[storage]:
                    own[storage] -= 1
                    self.add(storage, -1, call.path)
        for outer in kept.shared.values():
            self.unhold(outer)


def following(events: list[Event], i: int) -> set[Storage]:
    """What the model lets go right after event `i`, before anything else happens."""
    found = set()
    for event in events[i + 1 :]:
        if isinstance(event, Made | BlockCall | Kernel):
            break
        found.add(event.storage)
    return found


def timeline(recording: Recording, gradients_leave: bool = False) -> Timeline:
    """All changes of memory in a step, beside state and inputs, in order.

    With `gradients_leave` a parameter's gradient is let go at once, for it is added to a buffer that rests.
    """
    for call in calls(recording):
        for slot, storage in call.tape.enters.items():
            if storage.saved and (outer := call.enters[slot]) is not None:
                outer.saved = True
        for slot, storage in call.tape.leaves.items():
            call.leaves[slot].saved |= storage.saved
    writer = _Writer(gradients_leave)
    writer.write(recording.forward)
    forward_end = len(writer.changes)
    if recording.backward is not None:
        writer.write(recording.backward)
    return Timeline(tuple(writer.changes), forward_end)


def calls(recording: Recording) -> Iterator[BlockCall]:
    for tape in (recording.forward, recording.backward):
        for event in tape.events if tape is not None else ():
            if isinstance(event, BlockCall):
                yield event


def total(storages: Counter[Storage], kinds: tuple[str, ...] | None = (MADE,)) -> Size:
    """Bytes of those of these kinds, of all if None."""
    by_size: Counter[Size] = Counter()
    for storage, count in storages.items():
        if kinds is None or storage.kind in kinds:
            by_size[storage.bytes] += count
    return sympy.Add(*(size * count for size, count in by_size.items()))
