"""One row per program point: what is in memory there is within the budget. The points are those of `check`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from autopar.ir.placement import Placement
from autopar.solver.ilp import Ilp, Term
from autopar.solver.liveness import gradients_of, passing, returned, returned_before, spanning
from autopar.solver.problem import Region
from autopar.solver.space import Key
from autopar.solver.variables import ArcKey, Class, Model


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
    made = _gradients(model)
    kept: list[Term] = []
    once: list[tuple[str, Term]] = []
    for here, region in enumerate(problem.regions):
        held = passing(problem, region)
        values = resting((*held, *returned_before(problem, region)))
        forward, backward = temporaries(model, region, False), temporaries(model, region, True)
        travelling = [(region.name, t) for t in region.state if problem.overlap and t in region.tensors]
        in_flight = _in_flight(model, [(model.y[key], key) for key in travelling])
        scaled = any(region.tensors[t].gradient_scale != 1.0 for _, t in travelling)
        reducing = _in_flight(model, [(model.y[key], key) for key in travelling], gradients=True) if scaled else in_flight
        once += _kept_once(model, region)
        alive = [term for name, term in once if name not in held]
        common = [*base, *outputs, *(term for _, term in once), backward, *reducing]
        common += resting(name for name in held if problem.boundaries[name].needs_grad)
        common += [term for each, at_once in made[here + 1 :] for term in (*each, *at_once)] + made[here][1]
        behind = calls = sum(region.classes)
        for own in model.classes[region.name]:
            again = (
                []
                if model.coarse
                else [*own.again_bytes, *_in_flight(model, [(_again(own, t), (r, t)) for r, t in travelling])]
            )
            ((total, _),) = one = [_sum(ilp, own.kept_bytes)]
            before, behind = list(kept), behind - own.calls
            kept.append((total, float(own.calls)))
            ilp.row([*base, *kept, *alive, *values, forward, *in_flight], at_most=at_most)
            ilp.row([*common, *kept, *again, *_share(made[here][0], (behind + 1) / calls)], at_most=at_most)
            if own.calls > 1 and not model.coarse:
                done = _share(made[here][0], (behind + own.calls) / calls)
                ilp.row([*common, *before, *one, *again, *done], at_most=at_most)
    step = [t for name in problem.state for t in _bytes(model, model.rest[name], problem.state[name].step_bytes_at)]
    new = [] if problem.micro_batches > 1 else [term for each, at_once in made for term in (*each, *at_once)]
    ilp.row([*base, *step, *new], at_most=at_most)


def _gradients(model: Model) -> list[tuple[list[Term], list[Term]]]:
    """Per region: bytes of the gradients of state that appear call by call, and of those that appear at once."""
    state, found = model.space.problem.state, []
    for region in model.space.problem.regions:
        names = gradients_of(model.space.problem, region)
        each, at_once = (
            [
                (v, state[n].grad_bytes(p) * model.byte)
                for n in names
                if state[n].shared == shared
                for p, v in model.rest[n].items()
            ]
            for shared in (False, True)
        )
        found.append(([_sum(model.ilp, each)] if each else [], [_sum(model.ilp, at_once)] if at_once else []))
    return found


def _share(terms: Iterable[Term], part: float) -> list[Term]:
    return [(v, c * part) for v, c in terms]


def _again(own: Class, tensor: str) -> dict[ArcKey, int]:
    return {arc: v for (name, arc), v in own.again.items() if name == tensor}


def _in_flight(model: Model, steps: Iterable[tuple[Mapping[ArcKey, int], Key]], *, gradients: bool = False) -> list[Term]:
    """At least the bytes of each conversion of state (or of their gradients) that uses a link: one is on its way beside the
    unit that runs."""
    rows: list[Term] = []
    for variables, (region, name) in steps:
        tensor = model.space.problem.region[region].tensors[name]
        travels = {(a.before, a.after) for a in tensor.arcs if a.travels}
        scale = model.byte * (tensor.gradient_scale if gradients else 1.0)
        rows += [(v, tensor.bytes_at[arc[1]] * scale) for arc, v in variables.items() if arc in travels]
    if not rows:
        return []
    largest = model.ilp.variable(upper=float("inf"))
    for v, size in rows:
        model.ilp.row([(largest, 1.0), (v, -size)], at_least=0)
    return [(largest, 1.0)]


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
