"""Small programs around the relaxation: where a good plan is found in a fraction of the time, and still with a bound.

A binary variable at zero with reduced cost d makes every plan that uses it cost at least the relaxation's bound + d. Without
the variables beyond a `distance`, the program is small (the relaxation is nearly integral), and whatever it leaves out costs
at least bound + distance: so its own bound, up to there, holds for the whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from autopar.errors import SolverError
from autopar.solver import adapter
from autopar.solver.problem import Solution
from autopar.solver.rounding import to_start
from autopar.solver.space import Space, tighten
from autopar.solver.variables import TIE, Model

Option = TypeVar("Option")


@dataclass(frozen=True, kw_only=True)
class Root:
    """A model and its relaxation's optimum, both in units of the model's objective."""

    model: Model
    relaxation: adapter.Outcome

    @property
    def solved(self) -> bool:
        return self.relaxation.status == "optimal"

    @property
    def infeasible(self) -> bool:
        return self.relaxation.status == "infeasible"

    @property
    def bound_s(self) -> float:
        return max(self.model.seconds(self.relaxation.objective), 0.0) if self.solved else 0.0


def relax(model: Model, time_limit_s: float) -> Root:
    """The relaxation, solved."""
    return Root(model=model, relaxation=adapter.run(model.ilp.relaxed(), gap=0.0, time_limit_s=time_limit_s))


def search_near(
    root: Root,
    distance_s: float,
    *,
    gap: float,
    time_limit_s: float,
    nodes: int | None = None,
    start: Solution | None = None,
) -> adapter.Outcome:
    """The best plan that uses only variables whose reduced cost is at most `distance_s`; the bound is for all plans."""
    ilp, distance = root.model.ilp, distance_s * root.model.second
    if not root.solved:
        return adapter.Outcome(status="nothing")
    costs = enumerate(root.relaxation.reduced)
    near = ilp.without(v for v, reduced in costs if ilp.integer[v] and reduced > distance + 1e-9)
    known = to_start(root.model, start) if start else None
    outcome = adapter.run(near, gap=gap, time_limit_s=time_limit_s, nodes=nodes, start=known)
    beyond = root.relaxation.objective + distance
    bound = beyond if outcome.status == "infeasible" else min(outcome.bound, beyond)
    return replace(outcome, bound=max(bound, root.relaxation.objective))


def within(floor: Root, slack_s: float) -> Space | None:
    """The choices that plans may make which cost at most `slack_s` more than the bound of `floor`; None if there is none.

    `floor` may leave out rows and costs of the program proper (memory): its reduced costs hold there too.
    """
    space = floor.model.space
    if not floor.solved or math.isinf(slack_s):
        return space
    model, limit = floor.model, slack_s * floor.model.second * (1 + 1e-9) + 1e-9 + TIE * abs(floor.relaxation.objective)
    reduced = floor.relaxation.reduced

    def left(options: Mapping[Option, int]) -> tuple[Option, ...]:
        return tuple(option for option, v in options.items() if reduced[v] <= limit)

    narrower = replace(
        space,
        strategies={key: left(options) for key, options in model.x.items()},
        boundaries={name: left(options) for name, options in model.beta.items()},
        rest={name: left(options) for name, options in model.rest.items()},
        arcs={
            key: tuple(arc for arc in arcs if reduced[model.y[key][arc.before, arc.after]] <= limit)
            for key, arcs in space.arcs.items()
        },
    )
    with suppress(SolverError):
        return tighten(narrower)
    return None
