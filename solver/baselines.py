"""The known ways to parallelize, as the same model with x fixed: what a user compares with, and the floor under a search.

A baseline names what each mesh axis is for (batch or tensor); from that follow the strategies that a unit may take, and where
parameters rest. Gathers, reductions and column or row parallelism are still found by the solver, so that each baseline is the
cheapest plan of its family. ZeRO-1 and ZeRO-2 are not among them: here a parameter, its gradient and its optimizer state rest
at one placement.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from autopar.errors import BudgetError, SolverError
from autopar.ir.placement import Placement
from autopar.solver.check import TOLERANCE, check
from autopar.solver.problem import Problem, Solution, Unit
from autopar.solver.restriction import Restriction
from autopar.solver.roles import BATCH, HIDDEN, SEQUENCE, TENSOR, TENSOR_KINDS
from autopar.solver.search import solve

Checkpoint = Literal["none", "full"]
"""What backward may run again: nothing, or whatever pays off. Gathers of sharded parameters may always run again."""

Option = TypeVar("Option")
Roles = Collection[str | None]
LOG = logging.getLogger("autopar.solver")

NORM_KINDS = frozenset({"norm", "reduction"})
BATCH_WISHES: Sequence[Roles] = ({BATCH}, {None})
WITHIN_TOKEN: Roles = frozenset({TENSOR, HIDDEN, "partial", None})


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """`tensor`: the last axis is for tensor parallelism, with activations cut along the sequence in between if `sequence`;
    the other axes are for the batch, with parameters cut along them at rest if `sharded`. `axes`: how many it needs."""

    tensor: bool = False
    sequence: bool = False
    sharded: bool = False
    axes: int = 1

    def purposes(self, axes: int) -> tuple[str, ...]:
        """What each axis is for: BATCH or TENSOR."""
        return (*[BATCH] * (axes - 1), TENSOR if self.tensor else BATCH)


BASELINES: dict[str, Baseline] = {
    "ddp": Baseline(),
    "fsdp": Baseline(sharded=True),
    "tp": Baseline(tensor=True),
    "tp+sp": Baseline(tensor=True, sequence=True),
    "2d": Baseline(tensor=True, sequence=True, sharded=True, axes=2),
}
"""DDP; ZeRO-3; Megatron tensor parallelism, without and with sequence parallelism; ZeRO-3 across nodes with that within."""


def baseline(name: str, problem: Problem, checkpoint: Checkpoint = "none") -> Restriction | None:
    """What the baseline allows in this problem; None if the mesh or the model has no place for it.

    Raises KeyError for a name that is not in BASELINES.
    """
    wanted = BASELINES[name]
    if problem.axes < wanted.axes or not has_place(wanted, problem):
        return None
    strategies = {(r.name, u.name): frozenset(chosen(wanted, u, problem.axes)) for r in problem.regions for u in r.units}
    rest = {group: frozenset(resting(wanted, state.bytes_at, problem.axes)) for group, state in problem.state.items()}
    again = checkpoint == "full"
    state = {name: frozenset(region.state) for name, region in problem.region.items()}
    return Restriction(
        strategy=lambda region, unit, index: index in strategies[region, unit],
        rest=lambda group, placement: placement in rest[group],
        redo=lambda region, unit: again,
        reconvert=lambda region, tensor: again or (wanted.sharded and tensor in state[region]),
    )


def has_place(wanted: Baseline, problem: Problem) -> bool:
    """Whether on every axis some unit can do what the axis is for; with `sequence` alone (no FSDP) also along the sequence."""
    needed = set(enumerate(wanted.purposes(problem.axes)))
    if wanted.sequence and not wanted.sharded:
        needed.add((problem.axes - 1, SEQUENCE))
    strategies = (s for region in problem.regions for unit in region.units for s in unit.strategies)
    return needed <= {place for s in strategies for place in enumerate(s.roles)}


def chosen(wanted: Baseline, unit: Unit, axes: int) -> list[int]:
    """The unit's strategies that do on each axis what the axis is for, as far as the unit can; never empty."""
    left = list(range(len(unit.strategies)))
    for axis, purpose in enumerate(wanted.purposes(axes)):
        wishes = BATCH_WISHES if purpose == BATCH else tensor_wishes(wanted, unit)
        left = first_met(left, lambda i, axis=axis: unit.strategies[i].roles[axis], wishes)  # type: ignore[misc]
    return left


def tensor_wishes(wanted: Baseline, unit: Unit) -> Sequence[Roles]:
    """Roles that a unit may have on a tensor axis, best first."""
    if unit.kind in TENSOR_KINDS:
        return ({TENSOR}, WITHIN_TOKEN, {*WITHIN_TOKEN, SEQUENCE})
    if wanted.sequence and (unit.kind in NORM_KINDS or is_residual_add(unit)):
        return ({SEQUENCE}, WITHIN_TOKEN)
    return ({*WITHIN_TOKEN, SEQUENCE},) if wanted.sequence else (WITHIN_TOKEN, {SEQUENCE})


def is_residual_add(unit: Unit) -> bool:
    """Of pointwise units with several operands only sums of differentiable values pass partial sums on."""
    return unit.kind == "pointwise" and len(unit.operands) > 1 and any("partial" in s.roles for s in unit.strategies)


def resting(wanted: Baseline, options: Iterable[Placement], axes: int) -> list[Placement]:
    """Where a parameter may rest: on batch axes whole, or cut if any dim divides; on a tensor axis as its reader likes."""
    left = list(options)
    for axis, purpose in enumerate(wanted.purposes(axes)):
        if purpose == BATCH:
            wishes = ({True}, {False}) if wanted.sharded else ({False},)
            left = first_met(left, lambda p, axis=axis: isinstance(p.states[axis], int), wishes)  # type: ignore[misc]
    return left


def first_met(options: list[Option], trait: Callable[[Option], object], wishes: Iterable[Collection[object]]) -> list[Option]:
    """The options whose trait is in the first set that holds any's; all if none does."""
    for wish in wishes:
        if met := [option for option in options if trait(option) in wish]:
            return met
    return options


def solve_baselines(
    problem: Problem,
    names: Iterable[str] = tuple(BASELINES),
    *,
    checkpoint: Checkpoint = "none",
    gap: float = 1e-3,
    time_limit_s: float = 5,
    over_budget: bool = False,
) -> dict[str, Solution | None]:
    """The cheapest plan of each baseline; None where it has no place here, or does not fit the budget.

    `time_limit_s` is for each. With `over_budget` one that does not fit comes back as if it had all memory: to be shown,
    not to be run.
    """
    found = {}
    for name in names:
        found[name] = solve_baseline(problem, name, checkpoint, gap, time_limit_s)
        if found[name] is None and over_budget and problem.budget_bytes is not None:
            found[name] = solve_baseline(replace(problem, budget_bytes=None), name, checkpoint, gap, time_limit_s)
    return found


def solve_baseline(problem: Problem, name: str, checkpoint: Checkpoint, gap: float, time_limit_s: float) -> Solution | None:
    allow = baseline(name, problem, checkpoint)
    if allow is None:
        return None
    try:
        return solve(problem, gap=gap, time_limit_s=time_limit_s, allow=allow)
    except (BudgetError, SolverError) as error:
        LOG.info("baseline %s: %s", name, error)
        return None


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
    fits = problem.budget_bytes is None or verdict.peak_bytes <= problem.budget_bytes * (1 + TOLERANCE)
    return Row(name=name, cost_s=verdict.cost_s, peak_bytes=verdict.peak_bytes, fits=fits)
