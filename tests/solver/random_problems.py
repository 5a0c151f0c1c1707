"""Small random problems: a 1-D mesh, two to four units in chains and diamonds, shared consumers, state, one or two regions."""

from __future__ import annotations

import random
from dataclasses import replace

from autopar.ir.placement import Placement
from autopar.solver.problem import Arc, Boundary, Problem, Region, StateGroup, Strategy, Tensor, Unit

PLACES = tuple(Placement((state,)) for state in (0, "I", "R", "P"))


def random_problem(seed: int) -> Problem:
    """Reproducible; without a budget."""
    rng = random.Random(seed)
    pairs = rng.random() < 0.4
    boundaries = {name: _boundary(rng, name, resident=name == "in") for name in ("in", "h", "mask")}
    regions = [_region(rng, "first", "in", "h", None, (1,), rng.choice((2, 3)) if pairs else rng.choice((2, 3, 3, 4)))]
    if pairs:
        mask = "mask" if rng.random() < 0.5 else None
        regions.append(_region(rng, "layer", "h", "h", mask, rng.choice(((2, 1), (3,), (1, 1))), 2))
        if mask and rng.random() < 0.5:
            regions[0] = _with_output(rng, regions[0], "mask")
    used = {b for r in regions for b in (*r.inputs.values(), *dict(r.outputs).values())}
    state = {r.state[t]: _group(rng, r.state[t], r.tensors[t]) for r in regions for t in r.state}
    boundaries = {name: b for name, b in boundaries.items() if name in used}
    return Problem(axes=1, regions=tuple(regions), boundaries=boundaries, state=state, budget_bytes=None)


def overlapping_problem(seed: int) -> Problem:
    """The same problem with links, gradients that appear, an optimizer step that takes time, and micro-batches."""
    problem, rng = random_problem(seed), random.Random(-seed - 1)
    links = rng.choice((1, 2))
    once = rng.random() < 0.3
    return replace(
        problem,
        regions=tuple(_linked(rng, region, links) for region in problem.regions),
        state={
            name: replace(
                group,
                grad_bytes_at={p: float(rng.randint(0, 15)) for p in group.bytes_at},
                step_s_at={p: float(rng.randint(0, 9)) for p in group.bytes_at},
                shared=rng.random() < 0.3,
            )
            for name, group in problem.state.items()
        },
        links=links,
        overlap=rng.random() < 0.8,
        micro_batches=1 if once else rng.choice((1, 2, 3)),
    )


def _travelling(rng: random.Random, arc: Arc, forward: int | None, backward: int | None) -> Arc:
    """Some of them with work for the device."""
    shares = [rng.choice((0.0, 0.0, 0.5, 1.0)) for _ in range(2)]
    work = {"forward_work_s": shares[0] * arc.forward_s, "backward_work_s": shares[1] * arc.backward_s}
    return replace(arc, forward_link=forward, backward_link=backward, **work)


def _linked(rng: random.Random, region: Region, links: int) -> Region:
    """Conversions travel, mostly, and some strategies have collectives inside."""

    def link() -> int | None:
        return rng.choice((None, *range(links), *range(links)))

    def parts(seconds: float) -> tuple[float, ...]:
        return tuple(seconds / 4 * rng.choice((0, 1, 2)) for _ in range(links)) if rng.random() < 0.3 else ()

    return replace(
        region,
        tensors={
            name: replace(t, arcs=tuple(_travelling(rng, a, link(), link()) for a in t.arcs))
            for name, t in region.tensors.items()
        },
        units=tuple(
            replace(
                unit,
                strategies=tuple(
                    replace(s, forward_links_s=parts(s.forward_s), backward_links_s=parts(s.backward_s))
                    for s in unit.strategies
                ),
            )
            for unit in region.units
        ),
    )


def _boundary(rng: random.Random, name: str, *, resident: bool) -> Boundary:
    places = rng.sample(PLACES[:2], rng.choice((1, 2)))
    return Boundary(
        name=name,
        bytes_at={p: float(rng.randint(1, 9)) for p in places},
        carried=name == "h",
        resident=resident and rng.random() < 0.7,
        needs_grad=rng.random() < 0.7,
    )


def _group(rng: random.Random, name: str, tensor: Tensor) -> StateGroup:
    places = [p for p in tensor.bytes_at if p in PLACES[:2]]
    return StateGroup(
        name=name,
        bytes_at={p: float(rng.randint(2, 20)) for p in places},
        step_bytes_at={p: float(rng.randint(0, 30)) for p in places},
    )


def _tensor(rng: random.Random, name: str, source: str) -> Tensor:
    places = [*PLACES[:2], *rng.sample(PLACES[2:], rng.choice((0, 1)))]
    arcs = [Arc(before=a, after=b, forward_s=_s(rng), backward_s=_s(rng)) for a in places for b in places if a != b]
    rng.shuffle(arcs)
    ring = [
        Arc(before=a, after=b, forward_s=_s(rng), backward_s=_s(rng))
        for a, b in zip(places, [*places[1:], places[0]], strict=True)
    ]
    chosen = {(a.before, a.after): a for a in [*ring, *arcs[: rng.choice((0, 1))]]}
    return Tensor(
        name=name, source=source, bytes_at={p: float(rng.randint(1, 12)) for p in places}, arcs=tuple(chosen.values())
    )


def _s(rng: random.Random) -> float:
    return float(rng.choice((0, 0, 1, 2, 3, 5, 8)))


def _region(
    rng: random.Random, name: str, entry: str, leave: str, mask: str | None, classes: tuple[int, ...], count: int
) -> Region:
    tensors = {"x": _tensor(rng, "x", "input")}
    inputs, state = {"x": entry}, {}
    if mask:
        tensors["m"], inputs["m"] = _tensor(rng, "m", "input"), mask
    if rng.random() < 0.7:
        tensors["w"], state["w"] = _tensor(rng, "w", "state"), f"{name}.w"
    units: list[Unit] = []
    spare = [t for t in ("m", "w") if t in tensors]
    for i in range(count):
        known = ["x", *(f"t{j}" for j in range(i))]
        operands = [known[-1]]
        if i and rng.random() < 0.6:
            operands.append(rng.choice(known))
        if spare and (rng.random() < 0.6 or i == count - 1):
            operands.append(spare.pop())
        result = f"t{i}"
        tensors[result] = _tensor(rng, result, "unit")
        units.append(_unit(rng, f"u{i}", operands, result, tensors))
    return Region(
        name=name,
        units=tuple(units),
        tensors=tensors,
        inputs=inputs,
        outputs=((f"t{count - 1}", leave),),
        state=state,
        classes=classes,
    )


def _unit(rng: random.Random, name: str, operands: list[str], result: str, tensors: dict[str, Tensor]) -> Unit:
    strategies = tuple(
        Strategy(
            factors=(None,),
            operands=tuple(rng.choice(list(tensors[t].bytes_at)) for t in operands),
            results=(rng.choice(list(tensors[result].bytes_at)),),
            forward_s=float(rng.randint(0, 9)),
            backward_s=float(rng.randint(0, 9)),
            saved_bytes=float(rng.choice((0, 0, 3, 7))),
            forward_temp_bytes=float(rng.randint(0, 12)),
            backward_temp_bytes=float(rng.randint(0, 20)),
        )
        for _ in range(rng.choice((1, 2, 2)))
    )
    choices = [("operand", i) for i in range(len(operands))] + [("result", 0)]
    reads = tuple(read for read in choices if rng.random() < 0.6)
    return Unit(
        name=name,
        kind="random",
        operands=tuple(operands),
        results=(result,),
        reads=reads,
        strategies=strategies,
        redoable=rng.random() < 0.85,
    )


def _with_output(rng: random.Random, region: Region, boundary: str) -> Region:
    """The region with one more output: its first result, also leaving to `boundary`."""
    return Region(**{**_fields(region), "outputs": (*region.outputs, ("t0", boundary))})


def _fields(region: Region) -> dict[str, object]:
    return {name: getattr(region, name) for name in ("name", "units", "tensors", "inputs", "outputs", "state", "classes")}
