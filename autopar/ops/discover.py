"""Which loops an op has, found by trying: cut dims of its operands on small shapes, run the pieces, put results together.

A loop is believed if the pieces give the whole op's results and gradients for every set of sizes and every draw of numbers,
alone and (for one draw) together with each other loop that was found. The rest stays whole, and what stood in the way is said.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import torch

from autopar.ops.apart import apart
from autopar.ops.small import Form, SmallCall, Unsuited, ends
from autopar.ops.trial import DOMAINS, SCALES, Loop, Trial, call_op, cut, evenly, quiet, trials_of

MOST_GUESSES = 512
"""Of sets of dims that may be one loop, among all that have one size."""
LEAST_SETS = 2
"""A loop must have been cut in so many sets of sizes, if there are as many: a call with nothing but tiny dims has one."""
SUMMANDS = (2, 3)

Guess = tuple[int | None, ...]
"""Per operand the dim that may be cut, None: it is not cut."""


@dataclass(frozen=True)
class Finding:
    """What was found of an op's calls of one kind; `reason` why nothing was, else "". `spelled`: position of the argument
    that spells the first result's shape, and is to be made local."""

    loops: tuple[Loop, ...] = ()
    linear: bool = False
    spelled: int | None = None
    reason: str = ""

    @property
    def found(self) -> bool:
        return bool(self.loops) or self.linear


@cache
def discover(ways: tuple[tuple[SmallCall, ...], ...]) -> Finding:
    """What an op can be cut along; tried on the first of these ways to shrink its call on which it runs. Runs once in a
    process for calls that shrink to the same."""
    reason = "no small operands are to the numbers among its arguments as those of the program are"
    for calls, domain in itertools.product(ways, DOMAINS):
        try:
            trials = [trial for call in calls for trial in trials_of(call, domain)]
            require_informative(trials)
        except Exception as error:
            reason = said(error) if calls == ways[0] else reason
            continue
        return best(trials)
    return Finding(reason=reason)


def said(error: Exception) -> str:
    if isinstance(error, Unsuited):
        return str(error)
    first = (str(error).strip().splitlines() or [""])[0]
    return f"it does not run on small tensors on the CPU ({type(error).__name__}: {first[:160]})"


def require_informative(trials: Sequence[Trial]) -> None:
    """Raises Unsuited if nothing can be learned: from a result that is always the same, anything would follow."""
    if not any(x is not None for x in trials[0].operands):
        if not ends_in_shape(trials[0]):
            raise Unsuited("it reads no tensor, and no argument is a shape")
        return
    for j, result in enumerate(trials[0].whole.results):
        seen = torch.cat([t.whole.results[j].flatten() for t in trials])
        if result.numel() and bool((seen == seen[0]).all()):
            raise Unsuited(f"its result {j} is the same whatever it reads")


def ends_in_shape(trial: Trial) -> list[int]:
    """Positions of arguments that may spell the first result's shape."""
    form = trial.call.form
    return [i for i, (_, value) in enumerate(form.arguments[: form.positional]) if ends(value, trial.shape)]


def best(trials: Sequence[Trial]) -> Finding:
    """With each argument that may spell the result's shape made local, or none: what allows most."""
    found = [search(trials, None)]
    for position in ends_in_shape(trials[0]):
        found.append(search([replace(t, spelled=position) for t in trials], position))
    return max(found, key=lambda finding: len(finding.loops))


def search(trials: Sequence[Trial], spelled: int | None) -> Finding:
    loops: list[Loop] = []
    for loop in fitting(trials, loops):
        together = (holds(trials[:: len(SCALES)], [loop, other]) for other in loops)
        if not overlaps(loop, loops) and holds(trials, [loop]) and all(together):
            loops.append(loop)
    linear = is_linear(trials)
    reason = "" if loops or linear else "pieces of its operands do not give pieces, or summands, of its results"
    return Finding(tuple(sorted(loops, key=position)), linear, spelled, reason)


def fitting(trials: Sequence[Trial], loops: Sequence[Loop]) -> Iterator[Loop]:
    """The loops of all guesses of which forward gives the right results; `loops` grows with those that are believed.

    Most guesses are of operands that do not belong together, and kernels may write past the end of such: batch norm with
    statistics of fewer channels does. So forward runs in another process (if that dies, in one per guess, but for dims that
    have their loop by then), and backward runs here on what forward has shown to belong together.
    """
    known = list(guesses(trials[0]))
    found = apart([partial(fits, trials, guess) for guess in known])
    for i, guess in enumerate(known):
        if found is not None:
            yield from (Loop(tuple(ins), tuple(outs), reduced) for ins, outs, reduced in found[i])
        elif not any(d is not None and loop.operands[j] == d for loop in loops for j, d in enumerate(guess)):
            (alone,) = apart([partial(fits, trials, guess)]) or ((),)
            yield from (Loop(tuple(ins), tuple(outs), reduced) for ins, outs, reduced in alone)


def fits(trials: Sequence[Trial], guess: Guess) -> list[tuple[Guess, Guess, bool]]:
    loops = [loop for loop in seen(trials[0], guess) if holds(trials, [loop], forward_only=True)]
    return [(loop.operands, loop.results, loop.reduced) for loop in loops]


def position(loop: Loop) -> tuple[int, ...]:
    """In the order of the dims of results, then of operands."""
    return tuple(99 if d is None else d for d in (*loop.results, *loop.operands))


def guesses(trial: Trial) -> Iterator[Guess]:
    """Sets of dims that may be one loop: they have one size, and are of different operands. All that have it, and those that
    line up from the left or right, come first, then few dims before many; for an op that spells a shape, also none."""
    forms = trial.call.form.operands
    known: dict[Guess, None] = {}
    for size in sorted({n for o in forms if o is not None for n in o.shape if n > 1}):
        dims = [[d for d, n in enumerate(o.shape if o is not None else ()) if n == size] for o in forms]
        known |= dict.fromkeys(itertools.chain(aligned(forms, dims), itertools.islice(chosen(dims), MOST_GUESSES)))
    if trial.spelled is not None:
        known[(None,) * len(forms)] = None
    yield from known


def aligned(forms: Sequence[Form | None], dims: Sequence[Sequence[int]]) -> Iterator[Guess]:
    ranks = [len(o.shape) if o is not None else 0 for o in forms]
    yield tuple(own[0] if own else None for own in dims)
    yield tuple(own[-1] if own else None for own in dims)
    for d in range(max(ranks, default=0)):
        yield tuple(d if d in own else None for own in dims)
        yield tuple(r - 1 - d if r - 1 - d in own else None for own, r in zip(dims, ranks, strict=True))


def chosen(dims: Sequence[Sequence[int]]) -> Iterator[Guess]:
    able = [i for i, own in enumerate(dims) if own]
    for count in range(1, len(able) + 1):
        for operands in itertools.combinations(able, count):
            for picked in itertools.product(*(dims[i] for i in operands)):
                at = dict(zip(operands, picked, strict=True))
                yield tuple(at.get(i) for i in range(len(dims)))


def overlaps(loop: Loop, loops: Sequence[Loop]) -> bool:
    """Whether a dim of it is another's already."""
    mine = (*loop.operands, *loop.results)
    return any(
        a is not None and a == b for other in loops for a, b in zip(mine, (*other.operands, *other.results), strict=True)
    )


def seen(trial: Trial, guess: Guess) -> Iterator[Loop]:
    """The loops that the shapes of a first piece allow: which dim of each result has become smaller."""
    if all(d is None for d in guess):
        yield from (spread(trial, d) for d, n in enumerate(trial.shape) if n > 1 and trial.spelled is not None)
        return
    count = pieces_of(trial, guess)
    if count is None:
        return
    shapes = [trial.shape]
    if trial.spelled is not None:
        sizes = enumerate(trial.shape)
        shapes += [(*trial.shape[:d], n // count, *trial.shape[d + 1 :]) for d, n in sizes if n % count == 0 and n > 1]
    for shape in shapes:
        try:
            with quiet():
                mine = [cut(x, d, count, 0) for x, d in zip(trial.operands, guess, strict=True)]
                spelled = shape if trial.spelled is not None else None
                results = call_op(trial.call.form, mine, spelled, trial.spelled)
        except Exception:
            continue
        loop = loop_of(trial, guess, [tuple(r.shape) for r in results], count)
        if loop is not None:
            yield loop


def spread(trial: Trial, dim: int) -> Loop:
    """A loop of the first result only, where its shape is an argument."""
    return Loop((None,) * len(trial.operands), (dim, *[None] * (len(trial.whole.results) - 1)))


def loop_of(trial: Trial, guess: Guess, shapes: Sequence[tuple[int, ...]], count: int) -> Loop | None:
    """None if results have other shapes, or lack the loop where that has no meaning: partial sums need a gradient, what is
    the same on all devices must not have one, and one result cannot be a sum where another is the same everywhere."""
    dims: list[int | None] = []
    if len(shapes) != len(trial.whole.results):
        return None
    for whole, local in zip((r.shape for r in trial.whole.results), shapes, strict=True):
        if len(whole) != len(local):
            return None
        smaller = [d for d, (a, b) in enumerate(zip(whole, local, strict=True)) if a != b]
        if len(smaller) > 1 or any(whole[d] != local[d] * count for d in smaller):
            return None
        dims.append(smaller[0] if smaller else None)
    lacking = {form.needs_grad for form, d in zip(trial.call.form.results, dims, strict=True) if d is None}
    if len(lacking) > 1 or (lacking == {False} and all(d is None for d in dims)):
        return None
    return Loop(guess, tuple(dims), reduced=True in lacking)


def pieces_of(trial: Trial, guess: Guess) -> int | None:
    """Into how many pieces this trial cuts the dims of a guess; None if their sizes differ, or nothing divides them."""
    sizes = {x.shape[d] for x, d in zip(trial.operands, guess, strict=True) if x is not None and d is not None}
    return trial.call.parts_of(sizes.pop()) if len(sizes) == 1 else None


def holds(trials: Sequence[Trial], loops: Sequence[Loop], *, forward_only: bool = False) -> bool:
    """Whether these loops may be cut together in every trial that can cut them all evenly, and that there are enough."""
    sets = set()
    for trial in trials:
        cuts = [(loop, count) for loop in loops if (count := count_of(trial, loop)) is not None]
        if len(cuts) < len(loops):
            continue
        if not trial.holds(cuts, forward_only=forward_only):
            return False
        sets.add(trial.call)
    return len(sets) >= min(LEAST_SETS if len(loops) == 1 else 1, len({trial.call for trial in trials}))


def count_of(trial: Trial, loop: Loop) -> int | None:
    """Into how many pieces to cut a loop; None where its dims in results are not divided by as many."""
    if all(d is None for d in loop.operands):
        (at,) = (d for d in loop.results if d is not None)
        count = next((p for p in (2, 3, 5) if trial.shape[at] % p == 0), None)
    else:
        count = pieces_of(trial, loop.operands)
    sizes = [r.shape[d] for r, d in zip(trial.whole.results, loop.results, strict=True) if d is not None]
    try:
        return None if count is None else count if all(evenly(n, count) for n in sizes) else None
    except ValueError:
        return None


def is_linear(trials: Sequence[Trial]) -> bool:
    """Whether partial sums of all operands give partial sums of all results."""
    form = trials[0].call.form
    if not all(o is not None and o.needs_grad for o in form.operands) or not all(r.needs_grad for r in form.results):
        return False
    return trials[0].domain.low is None and all(t.passes_sums(count) for t in trials for count in SUMMANDS)
