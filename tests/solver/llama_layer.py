"""A problem of the size of a Llama-3-8B layer on a 2-D mesh, hand-written: for timings and for tests on something real."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from autopar.ir.conversion import ALL_REDUCE, ALL_TO_ALL, Conversion, conversions_from
from autopar.ir.placement import INVARIANT, PARTIAL, REPLICATE, Placement, placements
from autopar.solver.problem import Arc, Boundary, Problem, Region, StateGroup, Strategy, Tensor, Unit
from autopar.solver.restriction import split

SIZE = {"b": 16, "s": 8192, "h": 4096, "q": 4096, "k": 1024, "f": 14336}
CHUNKS = {**SIZE, "q": 32, "k": 8}
TENSORS = {
    "x": "bsh", "n1": "bsh", "q": "bsq", "kk": "bsk", "v": "bsk", "q_": "bsq", "k_": "bsk", "a": "bsq", "o": "bsh", "r": "bsh",
    "n2": "bsh", "g": "bsf", "u": "bsf", "m": "bsf", "d": "bsh", "y": "bsh",
    "wq": "hq", "wk": "hk", "wv": "hk", "wo": "qh", "wg": "hf", "wu": "hf", "wd": "fh",
}  # fmt: skip
UNITS = {
    "n1": (["x"], "norm", "bs", [0]),
    "q": (["n1", "wq"], "matmul", "bsqh", [0, 1]),
    "kk": (["n1", "wk"], "matmul", "bskh", [0, 1]),
    "v": (["n1", "wv"], "matmul", "bskh", [0, 1]),
    "q_": (["q"], "rotary", "bsq", []),
    "k_": (["kk"], "rotary", "bsk", []),
    "a": (["q_", "k_", "v"], "attention", "bq", [0, 1, 2, "out"]),
    "o": (["a", "wo"], "matmul", "bshq", [0, 1]),
    "r": (["x", "o"], "add", "bsh", []),
    "n2": (["r"], "norm", "bs", [0]),
    "g": (["n2", "wg"], "matmul", "bsfh", [0, 1]),
    "u": (["n2", "wu"], "matmul", "bsfh", [0, 1]),
    "m": (["g", "u"], "silu", "bsf", [0, 1]),
    "d": (["m", "wd"], "matmul", "bshf", [0, 1]),
    "y": (["r", "d"], "add", "bsh", []),
}
BYTES, FLOPS_PER_S, BYTES_PER_S = 2, 0.6 * 989e12, 0.7 * 3.35e12


@dataclass(frozen=True)
class Mesh:
    sizes: tuple[int, ...]
    bandwidth: tuple[float, ...]

    def collective_s(self, kind: str | None, whole_bytes: float, axis: int) -> float:
        if kind is None:
            return 0.0
        n = self.sizes[axis]
        share = (n - 1) / n * whole_bytes / self.bandwidth[axis]
        factor = {ALL_REDUCE: 2.0, ALL_TO_ALL: 1 / n}.get(kind, 1.0)
        return 10e-6 * math.sqrt(n - 1) + factor * share


def llama_problem(
    *,
    sizes: tuple[int, ...] = (8, 8),
    bandwidth: tuple[float, ...] = (50e9, 300e9),
    layers: int = 32,
    budget: float | None = None,
) -> Problem:
    """`layers` calls of one layer, its input and output at one boundary."""
    mesh = Mesh(sizes, bandwidth)
    tensors = {name: _tensor(name, mesh) for name in TENSORS}
    weights = [name for name in TENSORS if name.startswith("w")]
    region = Region(
        name="layer",
        units=tuple(_unit(name, mesh) for name in UNITS),
        tensors=tensors,
        inputs={"x": "h"},
        outputs=(("y", "h"),),
        state={name: name for name in weights},
        classes=split(layers),
    )
    rests = {name: _resting(tensors[name]) for name in ("x", *weights)}
    return Problem(
        axes=len(sizes),
        regions=(region,),
        boundaries={"h": Boundary(name="h", bytes_at={p: tensors["x"].bytes_at[p] for p in rests["x"]}, carried=True)},
        state={
            name: StateGroup(
                name=name,
                bytes_at={p: layers * 9 * tensors[name].bytes_at[p] for p in rests[name]},
                step_bytes_at={p: 4 * tensors[name].bytes_at[p] for p in rests[name]},
            )
            for name in weights
        },
        budget_bytes=budget,
    )


def _resting(tensor: Tensor) -> list[Placement]:
    return [p for p in tensor.bytes_at if not {REPLICATE, PARTIAL} & set(p.states)]


def _shape(name: str) -> tuple[int, ...]:
    return tuple(CHUNKS[d] for d in TENSORS[name])


def _bytes(name: str, placement: Placement, mesh: Mesh) -> float:
    return BYTES * math.prod(SIZE[d] for d in TENSORS[name]) * placement.local_fraction(mesh.sizes)


def _tensor(name: str, mesh: Mesh) -> Tensor:
    shape, weight = _shape(name), name.startswith("w")
    letters = (REPLICATE, INVARIANT) if weight else (REPLICATE, INVARIANT, PARTIAL)
    places = list(placements(shape, mesh.sizes, letters))
    arcs = [_arc(name, c, mesh) for p in places for c in conversions_from(p, shape, mesh.sizes) if c.after in places]
    source = "state" if weight else "input" if name == "x" else "unit"
    return Tensor(name=name, source=source, bytes_at={p: _bytes(name, p, mesh) for p in places}, arcs=tuple(arcs))


def _arc(name: str, conversion: Conversion, mesh: Mesh) -> Arc:
    whole = _bytes(name, conversion.before.replace(conversion.axis, REPLICATE), mesh)
    kind = conversion.kind
    return Arc(
        before=conversion.before,
        after=conversion.after,
        forward_s=mesh.collective_s(kind.forward, whole, conversion.axis),
        backward_s=mesh.collective_s(kind.backward, whole, conversion.axis),
    )


def _placement(name: str, choice: tuple[str, ...], kind: str, out: bool) -> Placement | None:
    states: list[int | str] = []
    for factor in choice:
        dim = "k" if kind == "attention" and factor == "q" and name in ("k_", "v") else factor
        if factor == "-":
            states.append(INVARIANT)
        elif dim in TENSORS[name]:
            states.append(TENSORS[name].index(dim))
        else:
            states.append(PARTIAL if out else REPLICATE)
    return Placement(tuple(states))


def _unit(name: str, mesh: Mesh) -> Unit:
    operands, kind, factors, reads = UNITS[name]
    strategies = [s for c in itertools.product((*factors, "-"), repeat=len(mesh.sizes)) if (s := _strategy(name, c, mesh))]
    return Unit(
        name=name,
        kind=kind,
        operands=tuple(operands),
        results=(name,),
        reads=tuple(("result", 0) if r == "out" else ("operand", r) for r in reads),
        strategies=tuple(strategies),
    )


def _strategy(name: str, choice: tuple[str, ...], mesh: Mesh) -> Strategy | None:
    operands, kind, factors, _ = UNITS[name]
    wants = [_placement(t, choice, kind, False) for t in operands]
    made = _placement(name, choice, kind, True)
    assert made is not None
    if not all(p.divides(_shape(t), mesh.sizes) for t, p in zip([*operands, name], [*wants, made], strict=True)):
        return None
    parts = math.prod(n for n, c in zip(mesh.sizes, choice, strict=True) if c != "-")
    tokens = SIZE["b"] * SIZE["s"]
    contracted = [SIZE[c] for c in factors if c not in TENSORS[name]]
    flops = {
        "matmul": lambda: 2 * tokens * contracted[0] * SIZE[TENSORS[name][2]],
        "attention": lambda: 2 * tokens * SIZE["s"] * SIZE["h"],
    }.get(kind, lambda: 0)()
    local = [_bytes(t, p, mesh) for t, p in zip([*operands, name], [*wants, made], strict=True)]
    whole = sum(BYTES * math.prod(SIZE[d] for d in TENSORS[t]) for t in [*operands, name])
    forward = max(flops / FLOPS_PER_S, whole / BYTES_PER_S) / parts + 4e-6
    return Strategy(
        factors=tuple(None if c == "-" else c for c in choice),
        operands=tuple(wants),
        results=(made,),
        forward_s=forward,
        backward_s=(2.5 if kind == "attention" else 2.0) * forward,
        saved_bytes=_bytes("x", made, mesh) / 2048 if kind == "norm" else 0.0,
        forward_temp_bytes=sum(local),
        backward_temp_bytes=2 * sum(local),
    )
