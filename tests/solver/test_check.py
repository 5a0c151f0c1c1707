"""The checker: figures reckoned by hand, and every kind of broken solution refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from autopar.solver.check import InvalidSolution, check
from autopar.solver.problem import ClassChoice, Problem, RegionChoice, Solution
from autopar.solver.search import solve
from tests.solver.llama_layer import llama_problem
from tests.solver.tiny import INVARIANT, R, S, tiny_problem

KEEP_ALL = ClassChoice(kept=frozenset({("x", S), ("w", R), ("t", S)}), kept_internals=frozenset({"square"}))
REDO = ClassChoice(kept=frozenset({("x", S)}), redone=frozenset({"mix", "square"}), reconverted=frozenset({("w", S, R)}))


def plan(*keep: ClassChoice) -> Solution:
    region = RegionChoice(strategies={"mix": 0, "square": 0}, converted=frozenset({("w", S, R)}), classes=keep)
    return Solution(
        regions={"layer": region},
        boundaries={"h": S},
        rest={"layer.w": S},
        cost_s=0,
        peak_bytes=0,
        bound_s=0,
        status="feasible",
    )


def test_cost_and_peak_of_keeping_all() -> None:
    verdict = check(tiny_problem(), plan(KEEP_ALL), claims=False)
    assert verdict.cost_s == 2 * (3 + 6 + 1 + 2 + 4 + 4)
    rows = {row.where: row.bytes for row in verdict.rows}
    one = 10 + 8 + 10 + 5
    assert rows == {
        "layer forward": 32 + 2 * one + 20,
        "layer backward": 32 + 2 * one + 40,
        "layer backward, last call": 32 + one + 40,
        "optimizer step": 32 + 7,
    }
    assert (verdict.peak_bytes, verdict.peak_where) == (138, "layer backward")
    assert verdict.peak.parts[0] == ("layer.mix backward temporaries", 40)


def test_cost_and_peak_of_redoing_all() -> None:
    verdict = check(tiny_problem(), plan(REDO), claims=False)
    assert verdict.cost_s == 2 * (20 + 3 + 1 + 4)
    assert verdict.peak_bytes == 32 + 2 * 10 + 40 + (8 + 10 + 10 + 5)


def test_classes_keep_on_top_of_the_ones_before() -> None:
    rows = check(tiny_problem(classes=(1, 1)), plan(REDO, KEEP_ALL), claims=False).rows
    assert [row.bytes for row in rows] == [32 + 10 + 20, 32 + 10 + 40 + 33, 32 + 10 + 33 + 20, 32 + 10 + 33 + 40, 39]


LINKED = {"links": 1, "overlap": True}


def linked(problem: Problem, *, prefetch: bool = True, **changes: object) -> Problem:
    """The weight's conversion, 4 s each way, is on the link; so is one second of `mix`."""
    (region,) = problem.regions
    mix, square = region.units
    arcs = tuple(replace(a, forward_link=0, backward_link=0) for a in region.tensors["w"].arcs)
    mix = replace(mix, strategies=tuple(replace(s, forward_links_s=(1.0,)) for s in mix.strategies))
    tensors = {**region.tensors, "w": replace(region.tensors["w"], arcs=arcs)}
    return replace(problem, regions=(replace(region, tensors=tensors, units=(mix, square)),), **{**LINKED, **changes})


def test_a_gather_beside_the_computation_costs_what_the_link_takes_longer() -> None:
    plain = check(linked(tiny_problem(), overlap=False), plan(KEEP_ALL), claims=False)
    assert plain.cost_s == 2 * ((3 + 1 + 4) + (6 + 2 + 4))
    beside = check(linked(tiny_problem()), plan(KEEP_ALL), claims=False)
    assert beside.cost_s == 2 * (max(3 + 1, 1 + 4) + max(6 + 2, 4))
    again = check(linked(tiny_problem()), plan(REDO), claims=False)
    assert again.cost_s == 2 * (max(3 + 1, 1 + 4) + max(6 + 2 + 3 + 1, 4 + 1 + 4))


def test_what_is_on_its_way_is_in_memory() -> None:
    alone, beside = (check(linked(tiny_problem(), overlap=o), plan(REDO), claims=False).rows for o in (False, True))
    assert [b.bytes - a.bytes for a, b in zip(alone, beside, strict=True)] == [8, 16, 16, 0]


def test_gradients_appear_call_by_call() -> None:
    (group,) = tiny_problem().state.values()
    graded = replace(group, grad_bytes_at={S: 24.0}, step_s_at={S: 3.0})
    problem = replace(tiny_problem(classes=(2, 1)), state={"layer.w": graded}, micro_batches=2)
    verdict = check(problem, plan(REDO, REDO), claims=False)
    assert verdict.cost_s == 2 * 3 * (20 + 3 + 1 + 4) + 3
    again = 8 + 10 + 10 + 5
    assert [row.bytes - 32 for row in verdict.rows] == [
        20 + 20,
        20 + 40 + again + 2 / 3 * 24,
        10 + 40 + again + 24,
        30 + 20,
        30 + 40 + again + 1 / 3 * 24,
        7,
    ]
    alone = check(replace(problem, micro_batches=1), plan(REDO, REDO), claims=False)
    assert alone.rows[-1].bytes - 32 == 24 + 7
    shared = replace(problem, state={"layer.w": replace(graded, shared=True)})
    assert check(shared, plan(REDO, REDO), claims=False).rows[4].bytes - 32 == 30 + 40 + again + 24


def change_keep(**fields: object) -> Callable[[Solution], Solution]:
    def apply(solution: Solution) -> Solution:
        region = solution.regions["layer"]
        first = replace(region.classes[0], **fields)
        return replace(solution, regions={"layer": replace(region, classes=(first, *region.classes[1:]))})

    return apply


def change_region(**fields: object) -> Callable[[Solution], Solution]:
    return lambda solution: replace(solution, regions={"layer": replace(solution.regions["layer"], **fields)})


def change(**fields: object) -> Callable[[Solution], Solution]:
    return lambda solution: replace(solution, **fields)


BROKEN = {
    "cannot be at": change(boundaries={"h": INVARIANT}),
    "placements are chosen for state": change(rest={}),
    "regions": change(regions={}),
    "has no strategy 7": change_region(strategies={"mix": 7, "square": 0}),
    "strategies for": change_region(strategies={"mix": 0}),
    "wants w at": change_region(converted=frozenset()),
    "has no conversion": change_region(converted=frozenset({("w", S, INVARIANT)})),
    "class choices for": change_region(classes=()),
    "is kept at": change_keep(kept=KEEP_ALL.kept | {("t", R)}),
    "backward of mix lacks x": change_keep(kept=frozenset({("w", R), ("t", S)})),
    "backward of mix lacks w": change_keep(kept=frozenset({("x", S), ("t", S)})),
    "backward of square lacks what it saved": change_keep(kept_internals=frozenset()),
    "redoing square lacks t": change_keep(kept=frozenset({("x", S), ("w", R)}), redone=frozenset({"square"})),
    "runs again that never ran": change_keep(reconverted=frozenset({("w", R, S)})),
    "claims to cost": change(cost_s=39.0),
    "claims a peak": change(peak_bytes=100.0),
    "claims the bound": change(bound_s=41.0),
}


@pytest.mark.parametrize("message", BROKEN)
def test_broken_solutions_are_refused(message: str) -> None:
    good = solve(tiny_problem())
    check(tiny_problem(), good)
    with pytest.raises(InvalidSolution, match=message):
        check(tiny_problem(), BROKEN[message](good))


def test_a_plan_over_the_budget_is_refused() -> None:
    good = solve(tiny_problem())
    with pytest.raises(InvalidSolution, match="layer backward needs 138 bytes, the budget is 137"):
        check(tiny_problem(budget=137), good)


def test_a_random_unit_is_not_redone() -> None:
    problem = tiny_problem()
    region = problem.regions[0]
    mix, square = region.units
    once = replace(problem, regions=(replace(region, units=(replace(mix, redoable=False), square)),))
    with pytest.raises(InvalidSolution, match="mix would not give the same again"):
        check(once, plan(REDO), claims=False)


def drop_each_kept(problem: Problem, solution: Solution) -> None:
    for name, region in solution.regions.items():
        for number, keep in enumerate(region.classes):
            for place in sorted(keep.kept, key=str):
                less = replace(keep, kept=keep.kept - {place})
                classes = (*region.classes[:number], less, *region.classes[number + 1 :])
                worse = replace(solution, regions={**solution.regions, name: replace(region, classes=classes)})
                with pytest.raises(InvalidSolution):
                    check(problem, worse)


def test_everything_that_a_plan_keeps_is_needed() -> None:
    problem = llama_problem(sizes=(2, 2), layers=6)
    drop_each_kept(problem, solve(problem))
