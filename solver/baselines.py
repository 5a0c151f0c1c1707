"""The known ways to parallelize, as the same model with x fixed: what a user compares with, and the floor under a search.

A baseline names what each mesh axis is for: batch, tensor or sequence; from that follow the strategies that a unit may take,
and where parameters rest. Among what is left (column or row parallelism, where a sum is reduced) a small program without
memory chooses, so that each baseline is the fastest of its family. What backward keeps is then written down directly (see
`checkpointing`): a baseline depends on no solver's luck under a budget.

ZeRO-2 is ZeRO-3 that keeps gathered parameters from forward to backward. ZeRO-1 takes the time of ZeRO-2 and needs more
memory, for whole gradients until the optimizer's step: its peak is reckoned on a problem with such gradients; as a plan it
is ZeRO-2's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, TypeVar

from autopar.ir.placement import Placement
from autopar.solver.check import TOLERANCE, check
from autopar.solver.checkpointing import Policy, choices_of, with_choices
from autopar.solver.problem import ClassChoice, Problem, Solution, Unit
from autopar.solver.restriction import Restriction
from autopar.solver.roles import BATCH, EXPERT, HIDDEN, SEQUENCE, TENSOR, TENSOR_KINDS
from autopar.solver.smallest import Clock
from autopar.solver.two_stage import shard
from autopar.solver.vicinity import Vicinity

Checkpoint = Literal["none", "selective", "full"]
"""What backward makes again: nothing; norms and pointwise work, and attention if that helps; all of a layer but its input."""
CHECKPOINTS: tuple[Checkpoint, ...] = ("none", "selective", "full")

Option = TypeVar("Option")
Roles = Collection[str | None]
Purposes = tuple[str, ...]
"""What each mesh axis is for: BATCH, TENSOR, SEQUENCE or EXPERT."""

NORM_KINDS = frozenset({"norm", "reduction"})
BATCH_WISHES: Sequence[Roles] = ({BATCH}, {None})
WITHIN_TOKEN: Roles = frozenset({TENSOR, HIDDEN, "partial", None})


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """`inner`: what the last axes are for (BATCH: nothing of their own), the others being for the batch.

    With `sequence` activations between tensor-parallel products are cut along the sequence. `zero`: the stage of ZeRO, from
    0 (parameters rest whole) to 3; they rest cut along the batch axes, and along SEQUENCE ones. `outer`: how many batch
    axes it needs. With `within` parameters rest cut along the last axis only.
    """

    inner: str = BATCH
    sequence: bool = False
    zero: int = 0
    outer: int = 0
    within: bool = False

    def purposes(self, axes: int) -> Iterator[Purposes]:
        """All assignments of axes: the last one, two, ... are the inner ones."""
        if self.inner == BATCH:
            if axes > self.outer:
                yield (BATCH,) * axes
            return
        for inner in range(1, axes - self.outer + 1):
            yield (BATCH,) * (axes - inner) + (self.inner,) * inner


BASELINES: dict[str, Baseline] = {
    "ddp": Baseline(),
    "zero1": Baseline(zero=1),
    "zero2": Baseline(zero=2),
    "fsdp": Baseline(zero=3),
    "hsdp": Baseline(zero=3, outer=1, within=True),
    "tp": Baseline(inner=TENSOR),
    "tp+sp": Baseline(inner=TENSOR, sequence=True),
    "2d": Baseline(inner=TENSOR, sequence=True, zero=3, outer=1),
    "ulysses": Baseline(inner=SEQUENCE, zero=3),
    "ep": Baseline(inner=EXPERT, zero=3),
}
"""DDP; ZeRO-1, 2, 3; ZeRO-3 within nodes and DDP across them; Megatron tensor parallelism, without and with sequence
parallelism; ZeRO-3 across nodes with that within; sequence parallelism with attention by heads, and ZeRO-3 over all axes;
ZeRO-3 where tokens travel to their experts along the inner axes."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One way with one checkpoint: the fastest of its variants that fits, else the smallest; figures by the checker."""

    name: str
    checkpoint: Checkpoint
    purposes: Purposes
    solution: Solution
    peak_bytes: float
    fits: bool

    @property
    def cost_s(self) -> float:
        return self.solution.cost_s


def try_baselines(
    problem: Problem,
    names: Iterable[str] = tuple(BASELINES),
    *,
    checkpoints: Iterable[Checkpoint] = CHECKPOINTS,
    gap: float = 1e-3,
    time_limit_s: float = 60,
) -> list[Tried]:
    """Each baseline with each checkpoint, whether it fits the budget or not; those without a place here are left out.

    `time_limit_s` is for each small program. Raises KeyError for a name that is not in BASELINES.
    """
    drafts = Drafts(problem, gap, time_limit_s)
    return [
        best
        for name in names
        for checkpoint in checkpoints
        if (best := best_of(tries(problem, name, checkpoint, drafts))) is not None
    ]


def solve_baselines(
    problem: Problem,
    names: Iterable[str] = tuple(BASELINES),
    *,
    checkpoints: Iterable[Checkpoint] = CHECKPOINTS,
    gap: float = 1e-3,
    time_limit_s: float = 60,
    over_budget: bool = False,
) -> dict[str, Solution | None]:
    """The best plan of each baseline; None where it has no place here, or does not fit the budget.

    With `over_budget` one that does not fit comes back all the same: to be shown, not to be run.
    """
    names = tuple(names)
    tried = try_baselines(problem, names, checkpoints=checkpoints, gap=gap, time_limit_s=time_limit_s)
    best = {name: best_of(t for t in tried if t.name == name) for name in names}
    return {name: t.solution if t is not None and (t.fits or over_budget) else None for name, t in best.items()}


def best_of(tried: Iterable[Tried]) -> Tried | None:
    """The fastest that fits, else the one with the lowest peak."""
    return min(tried, key=lambda t: (not t.fits, t.cost_s if t.fits else t.peak_bytes), default=None)


class Drafts:
    """Strategies and conversions of each family, found once: what ZeRO stages and checkpoints have in common."""

    def __init__(self, problem: Problem, gap: float, time_limit_s: float) -> None:
        self.problem, self.gap, self.time_limit_s = replace(problem, budget_bytes=None), gap, time_limit_s
        self.vicinity = Vicinity(self.problem)
        self.known: dict[tuple[Baseline, Purposes], Solution | None] = {}
        self.judged: dict[tuple[int, tuple[ClassChoice, ...]], Solution] = {}

    def of(self, wanted: Baseline, purposes: Purposes) -> Solution | None:
        """The fastest plan of the family, keeping all that backward reads; None if there is none."""
        family = replace(wanted, zero=min(wanted.zero, 1))
        if (family, purposes) not in self.known:
            self.known[family, purposes] = self.solve(family, purposes)
        return self.known[family, purposes]

    def checkpointed(self, wanted: Baseline, purposes: Purposes, policy: Policy) -> Solution | None:
        """The draft under a policy; judged once."""
        draft = self.of(wanted, purposes)
        if draft is None:
            return None
        choices = choices_of(self.problem, draft, policy)
        key = (id(draft), tuple(choices.values()))
        if key not in self.judged:
            self.judged[key] = with_choices(self.problem, draft, choices)
        return self.judged[key]

    def solve(self, wanted: Baseline, purposes: Purposes) -> Solution | None:
        if not has_place(wanted, purposes, self.problem):
            return None
        space = self.vicinity.of(family(wanted, purposes, self.problem))
        return shard(space, math.inf, self.gap, Clock(self.time_limit_s))


def tries(problem: Problem, name: str, checkpoint: Checkpoint, drafts: Drafts) -> Iterator[Tried]:
    """All variants of a baseline with a checkpoint."""
    for purposes in BASELINES[name].purposes(problem.axes):
        yield from variants(problem, name, purposes, checkpoint, drafts)


def variants(problem: Problem, name: str, purposes: Purposes, checkpoint: Checkpoint, drafts: Drafts) -> Iterator[Tried]:
    """Those of one assignment of axes."""
    wanted = BASELINES[name]
    for policy in policies(wanted, checkpoint):
        solution = drafts.checkpointed(wanted, purposes, policy)
        if solution is None:
            continue
        peak = whole_gradients_peak(problem, solution) if wanted.zero == 1 else solution.peak_bytes
        yield Tried(
            name=name,
            checkpoint=checkpoint,
            purposes=purposes,
            solution=solution,
            peak_bytes=peak,
            fits=fits(problem, peak),
        )


def incumbents(problem: Problem, *, gap: float = 1e-3, time_limit_s: float = 60) -> list[Solution]:
    """What a search may begin with: of all baselines the fastest that fits, and the one with the lowest peak seen on the way.

    Cheaper than `try_baselines`: tensor and sequence parallelism along the last axis only, and no family whose plan without
    checkpoints is slower than what was found already.
    """
    drafts = Drafts(problem, gap, time_limit_s)
    families = [
        (name, purposes) for name, b in BASELINES.items() if b.zero != 1 for purposes in [*b.purposes(problem.axes)][:1]
    ]
    draft_s = {key: draft.cost_s for key in families if (draft := drafts.of(BASELINES[key[0]], key[1])) is not None}
    seen: list[Tried] = []
    for key in sorted(draft_s, key=draft_s.__getitem__):
        best = best_of(seen)
        if best is None or not best.fits or draft_s[key] < best.cost_s:
            seen += [t for checkpoint in CHECKPOINTS for t in variants(problem, *key, checkpoint, drafts)]
    fitting = [t for t in seen if t.fits]
    best, lowest = best_of(fitting), min(fitting, key=lambda t: t.peak_bytes, default=None)
    return [t.solution for t in ((best,) if lowest is best else (best, lowest)) if t is not None]


def fits(problem: Problem, peak_bytes: float) -> bool:
    return problem.budget_bytes is None or peak_bytes <= problem.budget_bytes * (1 + TOLERANCE)


def policies(wanted: Baseline, checkpoint: Checkpoint) -> list[Policy]:
    """What people who use this baseline may mean by the checkpoint; the best of these is taken.

    With tensor or sequence axes, activations may be gathered again (Megatron's sequence parallelism does) or kept as they
    came. ZeRO-3 may leave the first and last layers gathered, as FSDP does with the root module.
    """
    redo = {"none": ("none",), "selective": ("cheap", "attention"), "full": ("all",)}[checkpoint]
    communicate = (True,) if checkpoint == "full" else (False, True) if wanted.inner != BATCH else (False,)
    reshard = ("always", "repeated") if wanted.zero == 3 else ("never",)
    return [Policy(redo=r, communicate=c, reshard=s) for r, c, s in product(redo, communicate, reshard)]


def whole_gradients_peak(problem: Problem, solution: Solution) -> float:
    """The solution's peak if gradients of parameters stay whole from when they appear until the optimizer's step."""
    state = {}
    for name, group in problem.state.items():
        whole = max(group.grad_bytes_at.values(), default=0.0)
        state[name] = replace(group, grad_bytes_at=dict.fromkeys(group.bytes_at, whole))
    return check(replace(problem, state=state), solution, claims=False, budget=False).peak_bytes


def family(wanted: Baseline, purposes: Purposes, problem: Problem) -> Restriction:
    """Strategies and resting places of the baseline."""
    strategies = {(r.name, u.name): frozenset(chosen(wanted, u, purposes)) for r in problem.regions for u in r.units}
    rest = {group: frozenset(resting(wanted, state.bytes_at, purposes)) for group, state in problem.state.items()}
    return Restriction(
        strategy=lambda region, unit, index: index in strategies[region, unit],
        rest=lambda group, placement: placement in rest[group],
    )


def has_place(wanted: Baseline, purposes: Purposes, problem: Problem) -> bool:
    """Whether some unit can do on all axes at once what they are for, so that no device does another's work.

    What needs the sequence (between tensor-parallel products, or but for attention by heads) must find it.
    """
    outer = purposes[: purposes.index(wanted.inner)]
    inner = len(purposes) - len(outer)
    needed: set[tuple[str, ...]] = {purposes}
    if wanted.sequence and not wanted.outer:
        needed.add((*outer, *(SEQUENCE,) * inner))
    able = {s.roles for region in problem.regions for unit in region.units for s in unit.strategies}
    by_heads = (*outer, *(TENSOR,) * inner)
    heads = {s.roles for r in problem.regions for u in r.units if u.kind == "attention" for s in u.strategies}
    return needed <= able and (wanted.inner != SEQUENCE or by_heads in heads)


def chosen(wanted: Baseline, unit: Unit, purposes: Purposes) -> list[int]:
    """The unit's strategies that do on each axis what the axis is for, as far as the unit can; never empty."""
    left = list(range(len(unit.strategies)))
    for axis, purpose in enumerate(purposes):
        left = first_met(left, lambda i, axis=axis: unit.strategies[i].roles[axis], wishes(wanted, unit, purpose))  # type: ignore[misc]
    return left


def wishes(wanted: Baseline, unit: Unit, purpose: str) -> Sequence[Roles]:
    """Roles that a unit may have on an axis of this purpose, best first."""
    if purpose == BATCH:
        return BATCH_WISHES
    if purpose == EXPERT:
        return ({EXPERT}, *BATCH_WISHES)
    if purpose == SEQUENCE:
        return ({TENSOR}, {None}) if unit.kind == "attention" else ({SEQUENCE}, WITHIN_TOKEN)
    if unit.kind in TENSOR_KINDS:
        return ({TENSOR}, WITHIN_TOKEN, {*WITHIN_TOKEN, SEQUENCE})
    if wanted.sequence and (unit.kind in NORM_KINDS or is_residual_add(unit)):
        return ({SEQUENCE}, WITHIN_TOKEN)
    return ({*WITHIN_TOKEN, SEQUENCE},) if wanted.sequence else (WITHIN_TOKEN, {SEQUENCE})


def is_residual_add(unit: Unit) -> bool:
    """Of pointwise units with several operands only sums of differentiable values pass partial sums on."""
    return unit.kind == "pointwise" and len(unit.operands) > 1 and any("partial" in s.roles for s in unit.strategies)


def resting(wanted: Baseline, options: Iterable[Placement], purposes: Purposes) -> list[Placement]:
    """Where a parameter may rest: on batch axes whole, or cut if any dim divides; on a tensor axis as its reader likes."""
    left = list(options)
    for axis, purpose in enumerate(purposes):
        if purpose != TENSOR:
            cut = ({True}, {False}) if wanted.zero and (axis == len(purposes) - 1 or not wanted.within) else ({False},)
            left = first_met(left, lambda p, axis=axis: isinstance(p.states[axis], int), cut)  # type: ignore[misc]
    return left


def first_met(options: list[Option], trait: Callable[[Option], object], wishes: Iterable[Collection[object]]) -> list[Option]:
    """The options whose trait is in the first set that holds any's; all if none does."""
    for wish in wishes:
        if met := [option for option in options if trait(option) in wish]:
            return met
    return options


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table that people compare: figures are None where there is no such plan on this mesh."""

    name: str
    cost_s: float | None
    peak_bytes: float | None
    fits: bool


def compare(problem: Problem, solutions: Mapping[str, Solution | None]) -> list[Row]:
    """What each solution costs and needs, by the independent checker; fitting ones first, cheapest first."""
    rows = [compared(problem, name, solution) for name, solution in solutions.items()]
    return sorted(rows, key=lambda row: (not row.fits, row.cost_s is None, row.cost_s))


def compared(problem: Problem, name: str, solution: Solution | None) -> Row:
    if solution is None:
        return Row(name=name, cost_s=None, peak_bytes=None, fits=False)
    verdict = check(problem, solution, budget=False)
    return Row(name=name, cost_s=verdict.cost_s, peak_bytes=verdict.peak_bytes, fits=fits(problem, verdict.peak_bytes))
