"""The variables of the ILP by what they stand for, and the expressions that its parts hand to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from autopar.ir.placement import Placement
from autopar.solver.ilp import Ilp, Term
from autopar.solver.space import Key, Space

At = dict[Placement, list[Term]]
"""An expression per placement."""
ArcKey = tuple[Placement, Placement]
TIE = 1e-6
"""Weight of seconds that run beside other work: among equal costs, prefer to send less."""


@dataclass
class Load:
    """Seconds of one call, as expressions: `busy` of computation and of communication that it waits for, and per link."""

    busy: list[Term] = field(default_factory=list)
    links: dict[int, list[Term]] = field(default_factory=dict)
    beside: list[Term] = field(default_factory=list)
    """What runs beside other work: on its link, but not waited for."""

    @property
    def hidden(self) -> bool:
        return bool(self.beside)

    def runs(self, v: int, seconds: float, links_s: Sequence[float]) -> None:
        """A unit, with what its inner collectives take on each link."""
        self.busy.append((v, seconds))
        for link, part in enumerate(links_s):
            if part:
                self.links.setdefault(link, []).append((v, part))

    def sends(self, v: int, seconds: float, link: int | None, work_s: float, *, hidden: bool) -> None:
        """A conversion; `hidden` if it may run beside other work, but for `work_s`."""
        if link is not None:
            self.links.setdefault(link, []).append((v, seconds))
        if link is not None and hidden:
            self.beside.append((v, seconds))
            if work_s:
                self.busy.append((v, work_s))
        else:
            self.busy.append((v, seconds))


@dataclass(kw_only=True)
class Class:
    """Variables of one class of calls: k, k of values kept once, r and z; `available` and `kept_bytes` are expressions."""

    calls: int
    kept: dict[tuple[str, Placement], int] = field(default_factory=dict)
    kept_once: dict[tuple[str, Placement], int] = field(default_factory=dict)
    again: dict[tuple[str, ArcKey], int] = field(default_factory=dict)
    redone: dict[tuple[str, int], int] = field(default_factory=dict)
    available: dict[str, At] = field(default_factory=dict)
    kept_bytes: list[Term] = field(default_factory=list)
    """Of one call."""
    extra: Load = field(default_factory=Load)
    again_bytes: list[Term] = field(default_factory=list)


@dataclass(kw_only=True)
class Model:
    """The program and its variables by what they stand for. `second` is one second in units of the objective.

    `coarse`: all calls of a region are one class, and memory rows leave out what no average over classes can show; with
    fractions of choices allowed, a bound of the program proper.
    """

    space: Space
    memory: bool
    minimise_peak: bool
    coarse: bool
    byte: float
    second: float
    ilp: Ilp = field(default_factory=Ilp)
    x: dict[Key, dict[int, int]] = field(default_factory=dict)
    beta: dict[str, dict[Placement, int]] = field(default_factory=dict)
    rest: dict[str, dict[Placement, int]] = field(default_factory=dict)
    y: dict[Key, dict[ArcKey, int]] = field(default_factory=dict)
    produced: dict[Key, At] = field(default_factory=dict)
    classes: dict[str, list[Class]] = field(default_factory=dict)
    forward: dict[str, Load] = field(default_factory=dict)
    backward: dict[str, Load] = field(default_factory=dict)
    peak: int | None = None

    def seconds(self, objective: float) -> float:
        """What a bound of the objective says about the cost: less by the ties' weight, since what runs beside other work
        takes at most the whole step on every link."""
        return objective / self.second / (1 + TIE * self.space.problem.links)

    def binary(self) -> int:
        return self.ilp.variable(integer=True)
