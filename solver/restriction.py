"""What a search may choose from: everything, or what a baseline (DDP, FSDP, ...) or the user's constraints allow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

from autopar.ir.placement import Placement
from autopar.solver.problem import Problem, Solution


@dataclass(frozen=True, kw_only=True)
class Restriction:
    """Predicates on single choices; None allows all.

    `strategy(region, unit, index)`, `rest(state group, placement)`, `boundary(boundary, placement)`; `redo(region, unit)`
    says whether the unit may run again in backward, `reconvert(region, tensor)` whether its conversions may. What forbids
    keeping makes backward start from less: `keep(region, tensor)` says whether the tensor, at whatever placement, may be kept
    from forward, `keep_inside(region, unit)` whether what the unit itself saves may; if not, the unit runs again.
    """

    strategy: Callable[[str, str, int], bool] | None = None
    rest: Callable[[str, Placement], bool] | None = None
    boundary: Callable[[str, Placement], bool] | None = None
    redo: Callable[[str, str], bool] | None = None
    reconvert: Callable[[str, str], bool] | None = None
    keep: Callable[[str, str], bool] | None = None
    keep_inside: Callable[[str, str], bool] | None = None

    @property
    def forbids_keeping(self) -> bool:
        """Whether a plan that keeps all that backward reads may be forbidden, whatever the budget."""
        return self.keep is not None or self.keep_inside is not None

    def may_keep(self, region: str, tensor: str) -> bool:
        return self.keep is None or self.keep(region, tensor)

    def may_keep_inside(self, region: str, unit: str) -> bool:
        return self.keep_inside is None or self.keep_inside(region, unit)

    def __and__(self, other: Restriction) -> Restriction:
        """What both allow."""
        return Restriction(**{one.name: _both(getattr(self, one.name), getattr(other, one.name)) for one in fields(self)})

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
        kept = {tensor for keep in choice.classes for tensor, _ in keep.kept}
        inside = {unit for keep in choice.classes for unit in keep.kept_internals}
        return (
            all(self.strategy is None or self.strategy(name, unit, index) for unit, index in choice.strategies.items())
            and all(self.redo is None or self.redo(name, unit) for unit in redone)
            and all(self.reconvert is None or self.reconvert(name, tensor) for tensor in again)
            and all(self.may_keep(name, tensor) for tensor in kept)
            and all(self.may_keep_inside(name, unit) for unit in inside)
        )


def _both(one: Callable[..., bool] | None, other: Callable[..., bool] | None) -> Callable[..., bool] | None:
    if one is None or other is None:
        return one or other
    return lambda *choice: one(*choice) and other(*choice)


FREE = Restriction()


def fix(solution: Solution, allow: Restriction = FREE) -> Restriction:
    """Only the strategies, boundaries and resting places of `solution`; what backward keeps stays open."""
    return Restriction(
        strategy=lambda region, unit, index: solution.regions[region].strategies[unit] == index,
        rest=lambda group, placement: solution.rest[group] == placement,
        boundary=lambda boundary, placement: solution.boundaries[boundary] == placement,
        redo=allow.redo,
        reconvert=allow.reconvert,
        keep=allow.keep,
        keep_inside=allow.keep_inside,
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
