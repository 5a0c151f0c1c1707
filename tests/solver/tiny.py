"""A two-unit problem small enough to reckon by hand: x -> double -> t -> square -> y, twice, with a weight."""

from __future__ import annotations

from dataclasses import replace

from autopar.ir.placement import Placement
from autopar.solver.problem import Arc, Boundary, Problem, Region, StateGroup, Strategy, Tensor, Unit

S, S1, INVARIANT, R = (Placement((state,)) for state in (0, 1, "I", "R"))


def tiny_problem(*, budget: float | None = None, classes: tuple[int, ...] = (2,)) -> Problem:
    """`mix` wants the weight gathered (S -> R: 4 s, 4 s back); `square` reads its operand; one call's t is 10 bytes."""
    mix = Strategy(
        factors=("b",), operands=(S, R), results=(S,), forward_s=3, backward_s=6, forward_temp_bytes=20, backward_temp_bytes=40
    )
    square = Strategy(
        factors=("b",),
        operands=(S,),
        results=(S,),
        forward_s=1,
        backward_s=2,
        saved_bytes=5,
        forward_temp_bytes=20,
        backward_temp_bytes=30,
    )
    tensors = {
        "x": Tensor(name="x", source="input", bytes_at={S: 10}, arcs=()),
        "w": Tensor(name="w", source="state", bytes_at={S: 4, R: 8}, arcs=(Arc(before=S, after=R, forward_s=4, backward_s=4),)),
        "t": Tensor(name="t", source="unit", bytes_at={S: 10}, arcs=()),
        "y": Tensor(name="y", source="unit", bytes_at={S: 10}, arcs=()),
    }
    region = Region(
        name="layer",
        units=(
            Unit(
                name="mix",
                kind="matmul",
                operands=("x", "w"),
                results=("t",),
                reads=(("operand", 0), ("operand", 1)),
                strategies=(mix,),
            ),
            Unit(
                name="square", kind="pointwise", operands=("t",), results=("y",), reads=(("operand", 0),), strategies=(square,)
            ),
        ),
        tensors=tensors,
        inputs={"x": "h"},
        outputs=(("y", "h"),),
        state={"w": "layer.w"},
        classes=classes,
    )
    return Problem(
        axes=1,
        regions=(region,),
        boundaries={"h": Boundary(name="h", bytes_at={S: 10}, carried=True)},
        state={"layer.w": StateGroup(name="layer.w", bytes_at={S: 32}, step_bytes_at={S: 7})},
        budget_bytes=budget,
    )


def two_ways() -> Problem:
    """The same with t also cut along another dim, for both units at no cost, and nearly free conversions between the two."""
    problem = tiny_problem()
    (region,) = problem.regions
    mix, square = region.units
    there = tuple(Arc(before=a, after=b, forward_s=0.01, backward_s=0.01) for a, b in ((S, S1), (S1, S)))
    other_mix = replace(mix.strategies[0], results=(S1,))
    other_square = replace(square.strategies[0], operands=(S1,))
    units = (
        replace(mix, strategies=(*mix.strategies, other_mix)),
        replace(square, strategies=(*square.strategies, other_square)),
    )
    tensors = region.tensors | {"t": replace(region.tensors["t"], bytes_at={S: 10, S1: 10}, arcs=there)}
    return replace(problem, regions=(replace(region, units=units, tensors=tensors),))
