"""The ILP of design.md, section 6: sharding, conversions and what backward keeps, in one program.

Without `memory`, only x, y, f: everything that backward reads is kept. With it also k, r, z per class and the memory rows.
Seconds and bytes are scaled so that a solver's absolute tolerances mean the same for every model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from autopar.ir.placement import Placement
from autopar.solver.ilp import Ilp, Term
from autopar.solver.liveness import passing, returned, returned_before, spanning
from autopar.solver.problem import Region, Unit
from autopar.solver.space import Key, Space, consumers, maker, reachable

At = dict[Placement, list[Term]]
"""An expression per placement."""
ArcKey = tuple[Placement, Placement]


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
    again_bytes: list[Term] = field(default_factory=list)


@dataclass(kw_only=True)
class Model:
    """The program and its variables by what they stand for. `second` is one second in units of the objective."""

    space: Space
    memory: bool
    minimise_peak: bool
    byte: float
    second: float
    ilp: Ilp = field(default_factory=Ilp)
    x: dict[Key, dict[int, int]] = field(default_factory=dict)
    beta: dict[str, dict[Placement, int]] = field(default_factory=dict)
    rest: dict[str, dict[Placement, int]] = field(default_factory=dict)
    y: dict[Key, dict[ArcKey, int]] = field(default_factory=dict)
    produced: dict[Key, At] = field(default_factory=dict)
    classes: dict[str, list[Class]] = field(default_factory=dict)
    cost: list[Term] = field(default_factory=list)
    peak: int | None = None

    def binary(self) -> int:
        return self.ilp.variable(integer=True)


def build(
    space: Space,
    *,
    memory: bool,
    minimise_peak: bool = False,
    byte: float = 1.0,
    second: float = 1.0,
) -> Model:
    """The program over a space. `byte` and `second` scale."""
    model = Model(space=space, memory=memory, minimise_peak=minimise_peak, byte=byte, second=second)
    choose(model)
    for region in space.problem.regions:
        run_units(model, region)
        convert(model, region)
        if memory:
            backward(model, region)
    if memory:
        fit_memory(model)
    finish_objective(model)
    return model


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
    """Objective: Σ multiplicity · (forward + backward) · x; and where each tensor is produced, as expressions."""
    calls = sum(region.classes)
    for unit in region.units:
        for s, v in model.x[region.name, unit.name].items():
            strategy = unit.strategies[s]
            model.cost.append((v, calls * (strategy.forward_s + strategy.backward_s)))
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
    ilp, calls = model.ilp, sum(region.classes)
    exact = model.memory
    for tensor, wishes in consumers(region, model.space.strategies).items():
        key = (region.name, tensor)
        arcs, produced = model.space.arcs[key], model.produced[key]
        shared = len(wishes) > 1
        y = model.y[key] = {(a.before, a.after): ilp.variable(integer=exact or (shared and not model.memory)) for a in arcs}
        model.cost += [(y[a.before, a.after], calls * (a.forward_s + a.backward_s)) for a in arcs]
        for wish in wishes:
            if wish.boundary is not None:
                want: At = {p: [(v, 1.0)] for p, v in model.beta[wish.boundary].items()}
            else:
                assert wish.unit is not None
                want = wanted(model, region, region.unit[wish.unit], wish.position)
            targets = reachable(arcs, list(want), backward=True)
            useful = [arc for arc in y if arc[1] in targets]
            flow = {arc: ilp.variable() for arc in useful} if shared else y
            _conserve(ilp, flow, produced, want)
            if shared:
                for arc, f in flow.items():
                    ilp.row([(f, 1.0), (y[arc], -1.0)], at_most=0)
        if model.memory or shared:
            for terms in _into(y, produced).values():
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


def _into(y: dict[ArcKey, int], produced: At) -> dict[Placement, list[Term]]:
    """produced + Σ y into π: whether the tensor exists at π in forward."""
    came: dict[Placement, list[Term]] = defaultdict(list)
    for placement, terms in produced.items():
        came[placement] += terms
    for (_, after), v in y.items():
        came[after].append((v, 1.0))
    return came


def backward(model: Model, region: Region) -> None:
    """k, r, z of every class of calls, and av[t,π] ≥ what backward and whatever is redone need.

    The source of a repeated conversion is not made available by the opposite one: there is none in a tree, but half of
    each way would otherwise support the other in the relaxation.
    """
    sizes = region.classes
    useful_tensors, useful_units = useful(model.space, region)
    model.classes[region.name] = []
    for calls in sizes:
        own = Class(calls=calls)
        model.classes[region.name].append(own)
        for tensor in useful_tensors:
            keep_or_convert(model, region, tensor, own)
        for unit in region.units:
            redo(model, region, unit, own, unit.name in useful_units)
        for unit in region.units:
            read(model, region, unit, own)
        for (tensor, (before, after)), r in own.again.items():
            back = own.again.get((tensor, (after, before)))
            supply = [term for term in own.available[tensor].get(before, []) if term[0] != back]
            model.ilp.row([(r, -1.0), *supply], at_least=0)


def useful(space: Space, region: Region) -> tuple[list[str], set[str]]:
    """Tensors that backward, directly or through what it redoes, may need; and units that are worth redoing."""
    tensors, units = set(), set()
    for unit in reversed(region.units):
        strategies = [unit.strategies[s] for s in space.strategies[region.name, unit.name]]
        read = {place for strategy in unit.strategies for place in unit.reads_of(strategy)}
        tensors |= {(unit.operands if kind == "operand" else unit.results)[i] for kind, i in read}
        allowed = unit.redoable and (space.allow.redo is None or space.allow.redo(region.name, unit.name))
        if allowed and (tensors & set(unit.results) or any(s.saved_bytes for s in strategies)):
            units.add(unit.name)
            tensors |= set(unit.operands)
    return [name for name in region.tensors if name in tensors], units


def keep_or_convert(model: Model, region: Region, tensor: str, own: Class) -> None:
    """k[t,π] ≤ produced + Σ y into π, r[t,a] ≤ y[t,a]; av[t,π] = k + Σ r into π (+ z, see `redo`), or free at rest."""
    space, ilp, key = model.space, model.ilp, (region.name, tensor)
    y, produced, size = model.y[key], model.produced[key], region.tensors[tensor].bytes_at
    boundary = space.problem.boundaries.get(region.inputs.get(tensor, ""))
    free = tensor in region.state or (boundary is not None and boundary.resident)
    once = boundary is not None and not boundary.carried and not free
    available: At = defaultdict(list)
    for placement, terms in _into(y, produced).items():
        made = produced.get(placement, [])
        if free:
            available[placement] += made
        if once and made:
            v = own.kept_once[tensor, placement] = ilp.variable(integer=True)
            ilp.row([(v, 1.0), *((m, -c) for m, c in made)], at_most=0)
            available[placement].append((v, 1.0))
        came = [term for term in terms if term not in made] if free or once else terms
        if came:
            v = own.kept[tensor, placement] = ilp.variable(integer=True)
            ilp.row([(v, 1.0), *((m, -c) for m, c in came)], at_most=0)
            available[placement].append((v, 1.0))
            own.kept_bytes.append((v, own.calls * size[placement] * model.byte))
    if space.allow.reconvert is None or space.allow.reconvert(region.name, tensor):
        for arc in space.arcs[key]:
            r = own.again[tensor, (arc.before, arc.after)] = ilp.variable()
            ilp.row([(r, 1.0), (y[arc.before, arc.after], -1.0)], at_most=0)
            available[arc.after].append((r, 1.0))
            model.cost.append((r, own.calls * arc.forward_s))
            own.again_bytes.append((r, size[arc.after] * model.byte))
    own.available[tensor] = available


def redo(model: Model, region: Region, unit: Unit, own: Class, worth: bool) -> None:
    """z[v,s] ≤ x[v,s], with every operand available where s wants it; what the unit saved is kept unless it is redone."""
    ilp = model.ilp
    for s, x in model.x[region.name, unit.name].items():
        saved = own.calls * unit.strategies[s].saved_bytes * model.byte
        if saved:
            own.kept_bytes.append((x, saved))
    if not worth:
        return
    needs: dict[tuple[str, tuple[tuple[Placement, tuple[int, ...]], ...]], None] = {}
    for s, x in model.x[region.name, unit.name].items():
        strategy = unit.strategies[s]
        z = own.redone[unit.name, s] = ilp.variable(integer=strategy.saved_bytes > 0)
        ilp.row([(z, 1.0), (x, -1.0)], at_most=0)
        model.cost.append((z, own.calls * strategy.forward_s))
        own.kept_bytes.append((z, -own.calls * strategy.saved_bytes * model.byte))
        made = sum(region.tensors[t].bytes_at[p] for t, p in zip(unit.results, strategy.results, strict=True))
        own.again_bytes.append((z, (made + strategy.saved_bytes) * model.byte))
        for tensor, placement in zip(unit.results, strategy.results, strict=True):
            own.available.setdefault(tensor, defaultdict(list))[placement].append((z, 1.0))
    for position, tensor in enumerate(unit.operands):
        at: dict[Placement, list[int]] = defaultdict(list)
        for s in model.x[region.name, unit.name]:
            at[unit.strategies[s].operands[position]].append(own.redone[unit.name, s])
        needs[tensor, tuple((p, tuple(zs)) for p, zs in at.items())] = None
    for tensor, wants in needs:
        for placement, zs in wants:
            supply = own.available[tensor].get(placement, [])
            ilp.row([*supply, *((z, -1.0) for z in zs)], at_least=0)


def read(model: Model, region: Region, unit: Unit, own: Class) -> None:
    """av[t,π] ≥ Σ of x over the strategies with which the unit's backward reads t at π."""
    wants: dict[tuple[str, Placement], dict[int, None]] = defaultdict(dict)
    for s, x in model.x[region.name, unit.name].items():
        strategy = unit.strategies[s]
        for kind, i in unit.reads_of(strategy):
            place = (unit.operands[i], strategy.operands[i]) if kind == "operand" else (unit.results[i], strategy.results[i])
            wants[place][x] = None
    for (tensor, placement), xs in wants.items():
        supply = own.available[tensor].get(placement, [])
        model.ilp.row([*supply, *((x, -1.0) for x in xs)], at_least=0)


def fit_memory(model: Model) -> None:
    """One row per program point: state + kept so far + temporaries (+ what backward makes again) ≤ budget (or ≤ peak)."""
    ilp, problem, byte = model.ilp, model.space.problem, model.byte
    limit: list[Term] = []
    at_most = 0.0
    if model.minimise_peak:
        model.peak = ilp.variable(upper=float("inf"), cost=1.0)
        limit = [(model.peak, -1.0)]
    else:
        assert problem.budget_bytes is not None
        at_most = problem.budget_bytes * byte
    always = _sum(ilp, (t for name in problem.state for t in _bytes(model, model.rest[name], problem.state[name].bytes_at)))
    inputs = [
        t
        for name, boundary in problem.boundaries.items()
        if boundary.resident
        for t in _bytes(model, model.beta[name], boundary.bytes_at)
    ]
    base = [always, *inputs, *limit]

    def resting(names: Iterable[str]) -> list[Term]:
        return [t for name in names for t in _bytes(model, model.beta[name], problem.boundaries[name].bytes_at)]

    outputs = resting(returned(problem))
    kept: list[Term] = []
    once: list[tuple[str, Term]] = []
    for region in problem.regions:
        held = passing(problem, region)
        values = resting((*held, *returned_before(problem, region)))
        gradients = resting(name for name in held if problem.boundaries[name].needs_grad)
        forward, behind = temporaries(model, region, False), temporaries(model, region, True)
        once += _kept_once(model, region)
        for own in model.classes[region.name]:
            kept.append(_sum(ilp, own.kept_bytes))
            alive = [term for name, term in once if name not in held]
            ilp.row([*base, *kept, *alive, *values, forward], at_most=at_most)
            ilp.row(
                [*base, *outputs, *kept, *(term for _, term in once), *gradients, *own.again_bytes, behind], at_most=at_most
            )
    step = [t for name in problem.state for t in _bytes(model, model.rest[name], problem.state[name].step_bytes_at)]
    ilp.row([*base, *step], at_most=at_most)


def _bytes(model: Model, at: dict[Placement, int], bytes_at: object) -> list[Term]:
    return [(v, bytes_at[p] * model.byte) for p, v in at.items()]  # type: ignore[index]


def _sum(ilp: Ilp, terms: Iterable[Term]) -> Term:
    """A variable that is at least the sum: keeps the rows that use it short."""
    total = ilp.variable(upper=float("inf"))
    ilp.row([(total, 1.0), *((v, -c) for v, c in terms)], at_least=0)
    return (total, 1.0)


def _kept_once(model: Model, region: Region) -> list[tuple[str, Term]]:
    """One copy of a value that all calls read, if any class keeps it as it came: at least each class's k."""
    owners: dict[tuple[str, Placement], list[int]] = defaultdict(list)
    for own in model.classes[region.name]:
        for key, v in own.kept_once.items():
            owners[key].append(v)
    found = []
    for (tensor, placement), variables in owners.items():
        copy = model.ilp.variable()
        for v in variables:
            model.ilp.row([(copy, 1.0), (v, -1.0)], at_least=0)
        found.append((region.inputs[tensor], (copy, region.tensors[tensor].bytes_at[placement] * model.byte)))
    return found


def temporaries(model: Model, region: Region, behind: bool) -> Term:
    """At least, for every unit, Σ temp · x + bytes of the tensors alive across it."""
    ilp = model.ilp
    worst = ilp.variable(upper=float("inf"))
    sizes: dict[str, Term] = {}
    for unit in region.units:
        terms: list[Term] = []
        for s, x in model.x[region.name, unit.name].items():
            strategy = unit.strategies[s]
            own = strategy.backward_temp_bytes if behind else strategy.forward_temp_bytes
            terms.append((x, -own * model.byte))
        for tensor in spanning(model.space.problem, region, unit):
            if tensor not in sizes:
                produced = model.produced[region.name, tensor]
                bytes_at = region.tensors[tensor].bytes_at
                sizes[tensor] = _sum(ilp, [(v, c * bytes_at[p] * model.byte) for p, vs in produced.items() for v, c in vs])
            terms.append((sizes[tensor][0], -1.0))
        ilp.row([(worst, 1.0), *terms], at_least=0)
    return (worst, 1.0)


PEAK_TIE = 1e-7
"""Weight of the cost when the peak is minimised: among equal peaks, prefer the faster plan."""


def finish_objective(model: Model) -> None:
    """Σ multiplicity · T(region), in units of `second`. (A known floor as a row makes the LP thirty times slower.)"""
    ilp = model.ilp
    weight = model.second * (PEAK_TIE if model.minimise_peak else 1.0)
    for v, seconds in model.cost:
        ilp.cost[v] += seconds * weight
