"""Where nothing fits the budget: what would help, computed for this program and not guessed.

Each remedy is tried, as far as a few seconds go, by looking for the plan that needs least with it: twice the devices along
each axis, half the micro-batch (and twice as many of them, so a step stays the same), and what would be left if all that is
kept for backward were in host memory. The bytes of a remedy are enough, by a plan that was found; less may do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from autopar.bytes import human
from autopar.errors import AutoparError, BudgetError, SolverError
from autopar.ir.mesh import MeshSpec
from autopar.planning.planner import Planner
from autopar.planning.within import Found
from autopar.solver.check import check
from autopar.solver.problem import Problem, Solution
from autopar.solver.smallest import Clock, smallest

LIMIT_S = 10.0
"""What all remedies together may take."""

SHARE_S = 2.0
"""What the search for the lowest plan of one remedy may take."""

KEPT = (" kept x ", " kept once", " saved inside x ")
"""Words in the names of memory parts that are kept from forward for backward."""


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """`bytes` per device would be enough with it."""

    what: str
    bytes: int

    def __str__(self) -> str:
        return f"{self.what}: {human(self.bytes)} would be enough"


def find_or_advise(
    planner: Planner, mesh: MeshSpec, budget_bytes: int | None, halved: Callable[[], Planner | None] = lambda: None
) -> Found:
    """The best plan; or BudgetError that says what would help. `halved` makes the planner of half the micro-batch."""
    try:
        return planner.find(mesh, budget_bytes)
    except BudgetError as error:
        planner.progress("nothing fits: looking for what would help")
        raise advised(error, what_would_help(planner, mesh, budget_bytes or 0, error.smallest_bytes, halved)) from error


def advised(error: BudgetError, remedies: tuple[Remedy, ...]) -> BudgetError:
    """The same error with the remedies, best first, in its text and as `remedies`."""
    if not remedies:
        return error
    text = f"{error} What would help most here: {'; '.join(map(str, remedies))}."
    found = tuple((remedy.what, remedy.bytes) for remedy in remedies)
    return BudgetError(text, smallest_bytes=error.smallest_bytes, binding=error.binding, remedies=found)


def what_would_help(
    planner: Planner,
    mesh: MeshSpec,
    budget_bytes: int,
    needed_bytes: int,
    halved: Callable[[], Planner | None] = lambda: None,
    time_limit_s: float = LIMIT_S,
) -> tuple[Remedy, ...]:
    """Remedies with which less than `needed_bytes` are enough, those that need least first; what takes too long is left out."""
    clock = Clock(time_limit_s)
    found = [
        *offloaded(planner, mesh, needed_bytes),
        *doubled(planner, mesh, budget_bytes, clock),
        *half(mesh, budget_bytes, planner, halved, clock),
    ]
    return tuple(sorted((r for r in found if r.bytes < needed_bytes), key=lambda remedy: remedy.bytes))


def offloaded(planner: Planner, mesh: MeshSpec, needed_bytes: int) -> Iterator[Remedy]:
    """The largest memory row, without what is kept for backward: of the lowest plan, or of the fastest if that needs less."""
    priced = planner.priced(mesh)
    try:
        loose = planner.loosest(mesh, SHARE_S)
        least = smallest(
            priced.problem, allow=priced.wanted.allow, time_limit_s=SHARE_S, start=loose, enough_bytes=needed_bytes
        )
    except SolverError:
        return
    left = min(without_kept_bytes(priced.problem, plan) for plan in (loose, least.solution))
    yield Remedy(what="all that is kept for backward in host memory", bytes=left)


def without_kept_bytes(problem: Problem, solution: Solution) -> int:
    """Peak bytes of a plan if everything kept for backward were elsewhere."""
    rows = check(problem, solution, claims=False, budget=False).rows
    return round(max(row.bytes - sum(size for name, size in row.parts if any(word in name for word in KEPT)) for row in rows))


def doubled(planner: Planner, mesh: MeshSpec, budget_bytes: int, clock: Clock) -> Iterator[Remedy]:
    """Twice as many devices along each axis, the innermost first; an axis that then divides nothing is left out."""
    for axis in reversed(range(len(mesh))):
        sizes = (*mesh.sizes[:axis], 2 * mesh.sizes[axis], *mesh.sizes[axis + 1 :])
        larger = MeshSpec(sizes, mesh.names, mesh.links)
        what = f"twice as many devices along {mesh.names[axis]} (mesh {larger})"
        if planner.pricing_s(mesh) < clock.left_s:
            yield from lowest(planner, larger, what, budget_bytes)


def half(
    mesh: MeshSpec, budget_bytes: int, planner: Planner, halved: Callable[[], Planner | None], clock: Clock
) -> Iterator[Remedy]:
    """Half the micro-batch, and twice as many micro-batches; it takes a trace of its own."""
    if planner.pricing_s(mesh) + planner.measuring_s < clock.left_s and (smaller := halved()) is not None:
        yield from lowest(smaller, mesh, f"half the micro-batch ({smaller.micro_batches} per step)", budget_bytes)


def lowest(planner: Planner, mesh: MeshSpec, what: str, budget_bytes: int) -> Iterator[Remedy]:
    """Nothing if there is no such plan, or none is found in time."""
    try:
        priced = planner.priced(mesh)
        least = smallest(priced.problem, allow=priced.wanted.allow, time_limit_s=SHARE_S, enough_bytes=budget_bytes)
    except AutoparError:
        return
    yield Remedy(what=what, bytes=least.bytes)
