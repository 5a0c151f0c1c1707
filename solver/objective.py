"""The objective: seconds of a step, or bytes at the peak. Overlap is earned: a phase of a call takes at least as long as what
it waits for, and as long as each link is busy."""

from __future__ import annotations

from autopar.solver.ilp import Term
from autopar.solver.problem import Region
from autopar.solver.variables import TIE, Load, Model

PEAK_TIE = 1e-7
"""Weight of the cost when the peak is minimised: among equal peaks, prefer the faster plan."""


def finish_objective(model: Model) -> None:
    """Σ multiplicity · T(region), in units of `second`. (A known floor as a row makes the LP thirty times slower.)"""
    problem = model.space.problem
    for region in problem.regions:
        forward, backward = model.forward[region.name], model.backward[region.name]
        charge(model, [forward], sum(region.classes) * problem.micro_batches, forward.hidden)
        _backward(model, region, backward)
    for name, options in model.rest.items():
        add(model, [(v, problem.state[name].step_s(p)) for p, v in options.items()], 1)


def _backward(model: Model, region: Region, load: Load) -> None:
    """What all calls have in common is summed once."""
    times = model.space.problem.micro_batches
    classes = model.classes.get(region.name, [])
    if not load.hidden and not any(own.extra.hidden for own in classes):
        add(model, load.busy, sum(region.classes) * times)
        for own in classes:
            add(model, own.extra.busy, own.calls * times)
    elif not classes:
        charge(model, [load], sum(region.classes) * times, load.hidden)
    else:
        common = Load(busy=_total(model, load.busy), links={link: _total(model, terms) for link, terms in load.links.items()})
        add(model, load.beside, sum(region.classes) * times * TIE)
        for own in classes:
            charge(model, [common, own.extra], own.calls * times, hidden=True)


def charge(model: Model, loads: list[Load], times: int, hidden: bool) -> None:
    """T at least as long as all that is waited for, and as each link is busy; `times` T is added to the objective."""
    busy = [term for load in loads for term in load.busy]
    for load in loads:
        add(model, load.beside, times * TIE)
    if not hidden:
        return add(model, busy, times)
    ilp = model.ilp
    longest = ilp.variable(upper=float("inf"), cost=times * weight(model) / model.second)
    ilp.row([(longest, 1.0), *((v, -s * model.second) for v, s in busy)], at_least=0)
    for link in sorted({link for load in loads for link in load.links}):
        terms = [(v, -s * model.second) for load in loads for v, s in load.links.get(link, ())]
        ilp.row([(longest, 1.0), *terms], at_least=0)


def _total(model: Model, terms: list[Term]) -> list[Term]:
    """A variable that is at least the sum, in seconds: keeps the rows that use it short."""
    total = model.ilp.variable(upper=float("inf"))
    model.ilp.row([(total, 1.0), *((v, -s * model.second) for v, s in terms)], at_least=0)
    return [(total, 1.0 / model.second)]


def add(model: Model, terms: list[Term], times: float) -> None:
    for v, seconds in terms:
        model.ilp.cost[v] += seconds * times * weight(model)


def weight(model: Model) -> float:
    """Units of the objective in a second."""
    return model.second * (PEAK_TIE if model.minimise_peak else 1.0)
