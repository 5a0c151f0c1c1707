"""Small programs around the relaxation: where a good plan is found in a fraction of the time, and still with a bound.

A binary variable at zero with reduced cost d makes every plan that uses it cost at least the relaxation's bound + d. Without
the variables beyond a `distance`, the program is small (the relaxation is nearly integral), and whatever it leaves out costs
at least bound + distance: so its own bound, up to there, holds for the whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from autopar.solver import adapter
from autopar.solver.problem import Solution
from autopar.solver.rounding import to_start
from autopar.solver.variables import Model


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
        return max(self.relaxation.objective / self.model.second, 0.0) if self.solved else 0.0


def relax(model: Model, time_limit_s: float) -> Root:
    """The relaxation, solved."""
    return Root(model=model, relaxation=adapter.run(model.ilp.relaxed(), gap=0.0, time_limit_s=time_limit_s))


def search_near(
    root: Root, distance_s: float, *, gap: float, time_limit_s: float, start: Solution | None = None
) -> adapter.Outcome:
    """The best plan that uses only variables whose reduced cost is at most `distance_s`; the bound is for all plans."""
    ilp, distance = root.model.ilp, distance_s * root.model.second
    if not root.solved:
        return adapter.Outcome(status="nothing")
    costs = enumerate(root.relaxation.reduced)
    near = ilp.without(v for v, reduced in costs if ilp.integer[v] and reduced > distance + 1e-9)
    known = to_start(root.model, start) if start else None
    outcome = adapter.run(near, gap=gap, time_limit_s=time_limit_s, start=known)
    beyond = root.relaxation.objective + distance
    bound = beyond if outcome.status == "infeasible" else min(outcome.bound, beyond)
    return replace(outcome, bound=max(bound, root.relaxation.objective))
