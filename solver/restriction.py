"""What a search may choose from: everything, or what a baseline (DDP, FSDP, ...) allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from autopar.ir.placement import Placement
from autopar.solver.problem import Problem, Solution


@dataclass(frozen=True, kw_only=True)
class Restriction:
    """Predicates on single choices; None allows all.

    `strategy(region, unit, index)`, `rest(state group, placement)`, `boundary(boundary, placement)`; `redo(region, unit)`
    says whether the unit may run again in backward, `reconvert(region, tensor)` whether its conversions may.
    """

    strategy: Callable[[str, str, int], bool] | None = None
    rest: Callable[[str, Placement], bool] | None = None
    boundary: Callable[[str, Placement], bool] | None = None
    redo: Callable[[str, str], bool] | None = None
    reconvert: Callable[[str, str], bool] | None = None

    def admits(self, problem: Problem, solution: Solution) -> bool:
        """Whether every choice of the solution is allowed."""
        return (
            all(self.rest is None or self.rest(group, placement) for group, placement in solution.rest.items())
            and all(self.boundary is None or self.boundary(name, placement) for name, placement in solution.boundaries.items())
            and all(self._admits_region(name, solution) for name in problem.region)
        )

    def _admits_region(self, name: str, solution: Solution) -> bool:
        choice = solution.regions[name]
        redone = {unit for keep in choice.classes for unit in keep.redone}
        again = {tensor for keep in choice.classes for tensor, _, _ in keep.reconverted}
        return (
            all(self.strategy is None or self.strategy(name, unit, index) for unit, index in choice.strategies.items())
            and all(self.redo is None or self.redo(name, unit) for unit in redone)
            and all(self.reconvert is None or self.reconvert(name, tensor) for tensor in again)
        )


FREE = Restriction()


def fix(solution: Solution, allow: Restriction = FREE) -> Restriction:
    """Only the strategies, boundaries and resting places of `solution`; what backward keeps stays open."""
    return Restriction(
        strategy=lambda region, unit, index: solution.regions[region].strategies[unit] == index,
        rest=lambda group, placement: solution.rest[group] == placement,
        boundary=lambda boundary, placement: solution.boundaries[boundary] == placement,
        redo=allow.redo,
        reconvert=allow.reconvert,
    )


def split(multiplicity: int) -> tuple[int, ...]:
    """Class sizes of which any number of calls can be made up, largest first: the last calls, whose backward comes first
    while most is still kept, get the smallest classes.

    >>> split(32), split(6), split(1)
    ((16, 8, 4, 2, 1, 1), (3, 2, 1), (1,))
    """
    parts, size = [], 1
    while multiplicity > 0:
        parts.append(min(size, multiplicity))
        multiplicity -= parts[-1]
        size *= 2
    return tuple(sorted(parts, reverse=True))
