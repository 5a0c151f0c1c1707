"""k, r and z: what every class of calls keeps for backward and makes again, and that whatever backward reads is there."""

from __future__ import annotations

import math
from collections import defaultdict

from autopar.ir.placement import Placement
from autopar.solver.forward import into
from autopar.solver.ilp import Term
from autopar.solver.problem import Region, Strategy, Unit
from autopar.solver.space import Space
from autopar.solver.variables import At, Class, Model


def backward(model: Model, region: Region) -> None:
    """k, r, z of every class of calls, and av[t,π] ≥ what backward and whatever is redone need.

    The source of a repeated conversion is not made available by the opposite one: there is none in a tree, but half of
    each way would otherwise support the other in the relaxation.
    """
    sizes = (sum(region.classes),) if model.coarse else region.classes
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
        roots(model, region, own)


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
    free = lasts(space, region, tensor)
    once = boundary is not None and not boundary.carried and not free
    allowed = space.allow.may_keep(region.name, tensor)
    available: At = defaultdict(list)
    for placement, terms in into(y, produced).items():
        made = produced.get(placement, [])
        if free:
            available[placement] += made
        if once and made and allowed:
            v = own.kept_once[tensor, placement] = ilp.variable(integer=True)
            ilp.row([(v, 1.0), *((m, -c) for m, c in made)], at_most=0)
            available[placement].append((v, 1.0))
        came = [term for term in terms if term not in made] if free or once else terms
        if came and allowed:
            v = own.kept[tensor, placement] = ilp.variable(integer=True)
            ilp.row([(v, 1.0), *((m, -c) for m, c in came)], at_most=0)
            available[placement].append((v, 1.0))
            own.kept_bytes.append((v, size[placement] * model.byte))
    if space.allow.reconvert is None or space.allow.reconvert(region.name, tensor):
        for arc in space.arcs[key]:
            r = own.again[tensor, (arc.before, arc.after)] = ilp.variable()
            ilp.row([(r, 1.0), (y[arc.before, arc.after], -1.0)], at_most=0)
            available[arc.after].append((r, 1.0))
            hidden = space.problem.overlap and tensor in region.state
            own.extra.sends(r, arc.forward_s, arc.forward_link, arc.forward_work_s, hidden=hidden)
            own.again_bytes.append((r, size[arc.after] * model.byte))
    own.available[tensor] = available


def redo(model: Model, region: Region, unit: Unit, own: Class, worth: bool) -> None:
    """z[v,s] ≤ x[v,s], with every operand available where s wants it; what the unit saved is kept unless it is redone.

    z = x where what the unit saved must not be kept.
    """
    ilp, forced = model.ilp, not model.space.allow.may_keep_inside(region.name, unit.name)
    for s, x in model.x[region.name, unit.name].items():
        saved = unit.strategies[s].saved_bytes * model.byte
        if saved:
            own.kept_bytes.append((x, saved))
    if not worth:
        return
    needs: dict[tuple[str, tuple[tuple[Placement, tuple[int, ...]], ...]], None] = {}
    for s, x in model.x[region.name, unit.name].items():
        strategy = unit.strategies[s]
        z = own.redone[unit.name, s] = ilp.variable(integer=strategy.saved_bytes > 0)
        ilp.row([(z, 1.0), (x, -1.0)], at_least=0 if forced and strategy.saved_bytes else -math.inf, at_most=0)
        own.extra.runs(z, strategy.forward_s, strategy.forward_links_s)
        own.kept_bytes.append((z, -strategy.saved_bytes * model.byte))
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


def roots(model: Model, region: Region, own: Class) -> None:
    """Σ k of a tensor + Σ z of its maker ≥ Σ x of whatever reads it in backward, and ≥ Σ z of its readers: once, at some
    placement, it is kept or made again.

    Implied for whole numbers. Relaxed, half a tensor that is kept would do for half a reader there, and again, converted, for
    the other half elsewhere; conversions in a circle would even make it out of nothing.
    """
    redone: dict[str, list[int]] = defaultdict(list)
    for (name, _), z in own.redone.items():
        redone[name].append(z)
    kept: dict[str, list[Term]] = defaultdict(list)
    for (tensor, _), k in (*own.kept.items(), *own.kept_once.items()):
        kept[tensor].append((k, 1.0))
    makers = {tensor: unit.name for unit in region.units for tensor in unit.results}
    for tensor in own.available:
        if lasts(model.space, region, tensor):
            continue
        supply = kept[tensor] + [(z, 1.0) for z in redone[makers.get(tensor, "")]]
        for unit in (u for u in region.units if tensor in (*u.operands, *u.results)):
            xs = [x for s, x in model.x[region.name, unit.name].items() if reads(unit, unit.strategies[s], tensor)]
            zs = redone[unit.name] if tensor in unit.operands else []
            for needs in filter(None, (xs, zs)):
                model.ilp.row([*supply, *((v, -1.0) for v in needs)], at_least=0)


def lasts(space: Space, region: Region, tensor: str) -> bool:
    """Whether it is there in backward anyway: state, and the user's batch."""
    boundary = space.problem.boundaries.get(region.inputs.get(tensor, ""))
    return tensor in region.state or (boundary is not None and boundary.resident)


def reads(unit: Unit, strategy: Strategy, tensor: str) -> bool:
    """Whether the unit's backward reads the tensor."""
    return any((unit.operands if kind == "operand" else unit.results)[i] == tensor for kind, i in unit.reads_of(strategy))


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
