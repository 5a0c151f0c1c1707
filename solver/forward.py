"""x, y and f: strategies, boundaries, resting places, and the conversions between what is produced and what is wanted."""

from __future__ import annotations

from collections import defaultdict

from autopar.ir.placement import Placement
from autopar.solver.ilp import Ilp, Term
from autopar.solver.problem import Region, Unit
from autopar.solver.space import Ways, consumers, maker
from autopar.solver.variables import ArcKey, At, Load, Model


def choose(model: Model) -> None:
    """Σₛ x[v,s] = 1, and likewise one placement for every boundary and state group."""
    space = model.space
    for key, indices in space.strategies.items():
        model.x[key] = {s: model.binary() for s in indices}
    model.beta = {name: {p: model.binary() for p in placements} for name, placements in space.boundaries.items()}
    model.rest = {name: {p: model.binary() for p in placements} for name, placements in space.rest.items()}
    groups = [list(options.values()) for options in model.x.values()]
    groups += [list(options.values()) for options in (*model.beta.values(), *model.rest.values())]
    for group in groups:
        model.ilp.row([(v, 1.0) for v in group], at_least=1, at_most=1)


def run_units(model: Model, region: Region) -> None:
    """What strategies take, forward and backward; and where each tensor is produced, as expressions."""
    forward, backward = Load(), Load()
    model.forward[region.name], model.backward[region.name] = forward, backward
    for unit in region.units:
        for s, v in model.x[region.name, unit.name].items():
            strategy = unit.strategies[s]
            forward.runs(v, strategy.forward_s, strategy.forward_links_s)
            backward.runs(v, strategy.backward_s, strategy.backward_links_s)
    for tensor in region.tensors:
        model.produced[region.name, tensor] = _produced(model, region, tensor)


def _produced(model: Model, region: Region, tensor: str) -> At:
    if tensor in region.inputs:
        return {p: [(v, 1.0)] for p, v in model.beta[region.inputs[tensor]].items()}
    if tensor in region.state:
        return {p: [(v, 1.0)] for p, v in model.rest[region.state[tensor]].items()}
    unit, position = maker(region, tensor)
    at: At = defaultdict(list)
    for s, v in model.x[region.name, unit.name].items():
        at[unit.strategies[s].results[position]].append((v, 1.0))
    return dict(at)


def wanted(model: Model, region: Region, unit: Unit, position: int) -> At:
    """Σ of x over the strategies that want operand `position` at each placement."""
    at: At = defaultdict(list)
    for s, v in model.x[region.name, unit.name].items():
        at[unit.strategies[s].operands[position]].append((v, 1.0))
    return dict(at)


def convert(model: Model, region: Region) -> None:
    """f[t,c,a] ≤ y[t,a] and flow conservation: produced + in - out = consumed, for every tensor, consumer and placement.

    With one consumer y is f. Executed conversions form a tree: produced + Σ y into π ≤ 1 (two ways to one placement are
    never cheaper, and r along a cycle would support itself).
    """
    ilp = model.ilp
    forward, backward = model.forward[region.name], model.backward[region.name]
    for tensor, wishes in consumers(region, model.space.strategies).items():
        key = (region.name, tensor)
        arcs, produced = model.space.arcs[key], model.produced[key]
        ways = Ways(arcs)
        shared = len(wishes) > 1
        hidden = tensor in region.state and model.space.problem.overlap
        y = model.y[key] = {(a.before, a.after): ilp.variable(integer=model.memory or shared or hidden) for a in arcs}
        for arc in arcs:
            v = y[arc.before, arc.after]
            forward.sends(v, arc.forward_s, arc.forward_link, arc.forward_work_s, hidden=hidden)
            backward.sends(v, arc.backward_s, arc.backward_link, arc.backward_work_s, hidden=hidden)
        for wish in wishes:
            if wish.boundary is not None:
                want: At = {p: [(v, 1.0)] for p, v in model.beta[wish.boundary].items()}
            else:
                assert wish.unit is not None
                want = wanted(model, region, region.unit[wish.unit], wish.position)
            targets = ways.reachable(want, backward=True)
            useful = [step for step in y if step[1] in targets]
            flow = {step: ilp.variable() for step in useful} if shared else y
            _conserve(ilp, flow, produced, want)
            if shared:
                for step, f in flow.items():
                    ilp.row([(f, 1.0), (y[step], -1.0)], at_most=0)
        if model.memory or shared:
            for terms in into(y, produced).values():
                if len(terms) > 1:
                    ilp.row(terms, at_most=1)


def _conserve(ilp: Ilp, flow: dict[ArcKey, int], produced: At, want: At) -> None:
    balance: dict[Placement, list[Term]] = defaultdict(list)
    for placement, terms in produced.items():
        balance[placement] += terms
    for placement, terms in want.items():
        balance[placement] += [(v, -c) for v, c in terms]
    for (before, after), f in flow.items():
        balance[before].append((f, -1.0))
        balance[after].append((f, 1.0))
    for terms in balance.values():
        ilp.row(terms, at_least=0, at_most=0)


def into(y: dict[ArcKey, int], produced: At) -> dict[Placement, list[Term]]:
    """produced + Σ y into π: whether the tensor exists at π in forward."""
    came: dict[Placement, list[Term]] = defaultdict(list)
    for placement, terms in produced.items():
        came[placement] += terms
    for (_, after), v in y.items():
        came[after].append((v, 1.0))
    return came
