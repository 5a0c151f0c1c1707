"""Every plan of a small problem, by enumeration: no ILP, no checker, its own arithmetic.

All choices of boundaries, resting places, strategies, trees of conversions, and for every class all sets of redone units
and repeated conversions. Trees end where somebody wants the tensor: a branch that nobody wants is of no use to backward
either. What is kept then follows: whatever is needed and not made again (keeping more only costs memory). The answer is
the frontier of (seconds, peak bytes), which settles every budget at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, product

from autopar.ir.placement import Placement
from autopar.solver.problem import Arc, Problem, Region, Strategy

Place = tuple[str, Placement]
Point = tuple[float, float]


@dataclass(frozen=True)
class Way:
    """One class of calls: seconds of one call (waited for, then of each link), its bytes (`again` with the largest parameter
    gathered ahead), and which values it keeps as they came."""

    seconds: tuple[float, ...]
    kept: float
    again: float
    once: frozenset[Place]


@dataclass(frozen=True)
class Option:
    """One way to run a region: the seconds of forward and backward of all calls, temporaries, and a way for each class."""

    seconds: float
    forward: float
    backward: float
    ways: tuple[Way, ...]


def frontier(problem: Problem) -> list[Point]:
    """(seconds, peak) of all plans that no other beats in both, cheapest first."""
    points: list[Point] = []
    for places in product(*(b.bytes_at for b in problem.boundaries.values())):
        for rests in product(*(g.bytes_at for g in problem.state.values())):
            at = dict(zip(problem.boundaries, places, strict=True))
            rest = dict(zip(problem.state, rests, strict=True))
            options = [pareto_options(list(_options(problem, region, at, rest))) for region in problem.regions]
            for chosen in product(*options):
                step = sum(g.step_s_at.get(rest[name], 0.0) for name, g in problem.state.items())
                seconds = problem.micro_batches * sum(o.seconds for o in chosen) + step
                points.append((seconds, _peak(problem, at, rest, chosen)))
        points = _pareto(points)
    return _pareto(points)


def cheapest(points: Sequence[Point], budget: float | None) -> float | None:
    """Seconds of the cheapest plan that fits, None if none does."""
    return min((s for s, peak in points if budget is None or peak <= budget * (1 + 1e-12)), default=None)


def _pareto(points: list[Point]) -> list[Point]:
    best: list[Point] = []
    for point in sorted(points):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    return best


def pareto_options(options: list[Option]) -> list[Option]:
    """Drop options that another one beats in every figure (and keeps no more values as they came)."""

    def figures(o: Option) -> tuple[float, ...]:
        return (o.seconds, o.forward, o.backward, *(f for way in o.ways for f in (way.kept, way.again)))

    found: list[Option] = []
    for new in sorted(options, key=figures):
        if not any(
            all(a <= b for a, b in zip(figures(old), figures(new), strict=True))
            and all(a.once <= b.once for a, b in zip(old.ways, new.ways, strict=True))
            for old in found
        ):
            found.append(new)
    return found


def _subsets(items: Sequence) -> Iterator[tuple]:
    return chain.from_iterable(combinations(items, n) for n in range(len(items) + 1))


def _options(problem: Problem, region: Region, at: dict, rest: dict) -> Iterator[Option]:
    for indices in product(*(range(len(u.strategies)) for u in region.units)):
        chosen = {u.name: u.strategies[i] for u, i in zip(region.units, indices, strict=True)}
        produced = {t: at[b] for t, b in region.inputs.items()} | {t: rest[g] for t, g in region.state.items()}
        wants: dict[str, set[Placement]] = {t: set() for t in region.tensors}
        for unit in region.units:
            produced |= dict(zip(unit.results, chosen[unit.name].results, strict=True))
            for tensor, placement in zip(unit.operands, chosen[unit.name].operands, strict=True):
                wants[tensor].add(placement)
        for tensor, boundary in region.outputs:
            wants[tensor].add(at[boundary])
        if any(p not in region.tensors[t].bytes_at for t, p in produced.items()):
            continue
        calls = sum(region.classes)
        run_s = [
            _add(*(_unit_s(problem, s, back) for s in chosen.values())) if chosen else _nothing(problem)
            for back in (False, True)
        ]
        temporaries = [_temporaries(problem, region, chosen, produced, back) for back in (False, True)]
        for trees in product(*(list(_trees(region, t, produced[t], wants[t])) for t in region.tensors)):
            arcs = {(t, a.before, a.after): a for t, tree in zip(region.tensors, trees, strict=True) for a in tree}
            sent_s = [
                _add(_nothing(problem), *(_arc_s(problem, region, k, arcs[k], back) for k in arcs)) for back in (False, True)
            ]
            forward_s, backward_s = (_add(run_s[i], sent_s[i]) for i in (False, True))
            flying = _flying(problem, region, arcs)
            ways = _best_ways(list(_ways(problem, region, chosen, produced, arcs)))
            for per_class in product(ways, repeat=len(region.classes)):
                backs = sum(c * max(_add(backward_s, w.seconds)) for c, w in zip(region.classes, per_class, strict=True))
                yield Option(calls * max(forward_s) + backs, temporaries[0] + flying, temporaries[1] + flying, per_class)


def _nothing(problem: Problem) -> tuple[float, ...]:
    return (0.0,) * (1 + problem.links)


def _add(*times: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(map(sum, zip(*times, strict=True)))


def _unit_s(problem: Problem, strategy: Strategy, back: bool) -> tuple[float, ...]:
    """What is waited for, then what each link carries."""
    seconds, links = (
        (strategy.backward_s, strategy.backward_links_s) if back else (strategy.forward_s, strategy.forward_links_s)
    )
    return (seconds, *(links or (0.0,) * problem.links))


def _arc_s(problem: Problem, region: Region, key: tuple, arc: Arc, back: bool) -> tuple[float, ...]:
    seconds, link = (arc.backward_s, arc.backward_link) if back else (arc.forward_s, arc.forward_link)
    beside = problem.overlap and key[0] in region.state and link is not None
    work_s = arc.backward_work_s if back else arc.forward_work_s
    return (work_s if beside else seconds, *(seconds if link == i else 0.0 for i in range(problem.links)))


def _flying(problem: Problem, region: Region, arcs: dict) -> float:
    """The largest conversion of a parameter that is on its way."""
    if not problem.overlap:
        return 0.0
    on_links = [k for k, a in arcs.items() if k[0] in region.state and (a.forward_link, a.backward_link) != (None, None)]
    return max((region.tensors[k[0]].bytes_at[k[2]] for k in on_links), default=0.0)


def _trees(region: Region, tensor: str, root: Placement, wants: set[Placement]) -> Iterator[tuple]:
    for arcs in _subsets(region.tensors[tensor].arcs):
        heads = [arc.after for arc in arcs]
        if len(set(heads)) < len(heads) or root in heads:
            continue
        seen = {root}
        for _ in arcs:
            seen |= {arc.after for arc in arcs if arc.before in seen}
        tails = {arc.before for arc in arcs}
        if len(seen) == len(arcs) + 1 and wants <= seen and all(head in wants or head in tails for head in heads):
            yield arcs


def _ways(problem: Problem, region: Region, chosen: dict, produced: dict, arcs: dict) -> Iterator[Way]:
    free = {(t, produced[t]) for t in region.state}
    free |= {(t, produced[t]) for t, b in region.inputs.items() if problem.boundaries[b].resident}
    reads: set[Place] = set()
    for unit in region.units:
        for kind, i in unit.reads:
            names, places = (
                (unit.operands, chosen[unit.name].operands) if kind == "operand" else (unit.results, chosen[unit.name].results)
            )
            reads.add((names[i], places[i]))
    for redone in _subsets([u for u in region.units if u.redoable]):
        for again in _subsets(list(arcs)):
            made = {place for u in redone for place in zip(u.results, chosen[u.name].results, strict=True)}
            made |= {(t, after) for t, _, after in again}
            needs = reads | {place for u in redone for place in zip(u.operands, chosen[u.name].operands, strict=True)}
            needs |= {(t, before) for t, before, _ in again}
            kept = needs - made - free
            once = frozenset(
                (t, p)
                for t, p in kept
                if t in region.inputs and not problem.boundaries[region.inputs[t]].carried and produced[t] == p
            )
            saved = {u.name: chosen[u.name].saved_bytes for u in region.units}
            names = {u.name for u in redone}
            units_s = [_unit_s(problem, chosen[n], False) for n in names]
            yield Way(
                _add(_nothing(problem), *units_s, *(_arc_s(problem, region, a, arcs[a], False) for a in again)),
                sum(region.tensors[t].bytes_at[p] for t, p in kept - once) + sum(s for n, s in saved.items() if n not in names),
                sum(region.tensors[t].bytes_at[p] for t, p in made)
                + sum(saved[n] for n in names)
                + _flying(problem, region, {a: arcs[a] for a in again}),
                once,
            )


def _best_ways(ways: list[Way]) -> list[Way]:
    best: list[Way] = []
    for new in sorted(set(ways), key=lambda w: (w.seconds, w.kept, w.again, len(w.once))):
        if not any(
            o.kept <= new.kept
            and o.again <= new.again
            and o.once <= new.once
            and all(a <= b for a, b in zip(o.seconds, new.seconds, strict=True))
            for o in best
        ):
            best.append(new)
    return best


def _passing(problem: Problem, region: Region) -> list[str]:
    """Values in memory during all calls of the region: passing over it from before to after, or read by all its calls."""
    order, here = problem.regions, problem.regions.index(region)
    found = []
    for name, boundary in problem.boundaries.items():
        makers = [i for i, r in enumerate(order) if any(b == name for _, b in r.outputs)]
        readers = [i for i, r in enumerate(order) if name in r.inputs.values()]
        if boundary.resident or not readers:
            continue
        first, last = (min(makers) if makers else -1), max(readers)
        inside = first < here <= last
        touched = here in readers or here in makers
        if inside and ((here in readers and not boundary.carried) or not touched):
            found.append(name)
    return found


def _temporaries(problem: Problem, region: Region, chosen: dict, produced: dict, back: bool) -> float:
    skip = {t for t, b in region.inputs.items() if problem.boundaries[b].resident or b in _passing(problem, region)}
    worst = 0.0
    for i, unit in enumerate(region.units):
        earlier = set(region.inputs) | {t for u in region.units[:i] for t in u.results}
        later = {t for u in region.units[i + 1 :] for t in u.operands} | {t for t, _ in region.outputs}
        across = (earlier & later) - set(unit.operands) - set(unit.results) - skip - set(region.state)
        own = chosen[unit.name].backward_temp_bytes if back else chosen[unit.name].forward_temp_bytes
        worst = max(worst, own + sum(region.tensors[t].bytes_at[produced[t]] for t in across))
    return worst


def _peak(problem: Problem, at: dict, rest: dict, chosen: Sequence[Option]) -> float:
    always = sum(g.bytes_at[rest[name]] for name, g in problem.state.items())
    always += sum(b.bytes_at[at[name]] for name, b in problem.boundaries.items() if b.resident)
    grads = {name: g.grad_bytes_at.get(rest[name], 0.0) for name, g in problem.state.items()}
    new = sum(grads.values()) if problem.micro_batches == 1 else 0.0
    peak = always + new + sum(g.step_bytes_at[rest[name]] for name, g in problem.state.items())
    last = {g: i for i, region in enumerate(problem.regions) for g in region.state.values()}
    kept = 0.0
    once: dict[tuple[str, Place], tuple[str, float]] = {}
    for here, (region, option) in enumerate(zip(problem.regions, chosen, strict=True)):
        held = _passing(problem, region)
        sizes = {name: problem.boundaries[name].bytes_at[at[name]] for name in held}
        for way in option.ways:
            for t, p in way.once:
                once[region.name, (t, p)] = (region.inputs[t], region.tensors[t].bytes_at[p])
        total = sum(region.classes)
        later = sum(n for name, n in grads.items() if last[name] > here)
        own = {name: n for name, n in grads.items() if last[name] == here}

        def made(calls: int, own: dict = own, later: float = later, total: int = total) -> float:
            return later + sum(n if problem.state[name].shared else n * calls / total for name, n in own.items())

        begun = 0
        for calls, way in zip(region.classes, option.ways, strict=True):
            alive = sum(size for boundary, size in once.values() if boundary not in held)
            peak = max(peak, always + kept + calls * way.kept + alive + sum(sizes.values()) + option.forward)
            gradients = sum(size for name, size in sizes.items() if problem.boundaries[name].needs_grad)
            behind = always + sum(size for _, size in once.values()) + gradients + way.again + option.backward
            for number in range(calls):
                peak = max(peak, behind + kept + (number + 1) * way.kept + made(total - begun - number))
            kept += calls * way.kept
            begun += calls
    return peak
