"""Baselines on whole models: each is what its name says, and the full search is never worse than any of them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace

import pytest

import tests.models
from autopar.hardware import load
from autopar.ir.mesh import MeshSpec
from autopar.ir.placement import Placement
from autopar.ir.program import Program
from autopar.profiler.model_cost import ModelCost, measure
from autopar.solver.baselines import (
    BASELINES,
    CHECKPOINTS,
    Row,
    Tried,
    best_of,
    chosen,
    compare,
    incumbents,
    solve_baselines,
    try_baselines,
    whole_gradients_peak,
)
from autopar.solver.build import Builder, Setting
from autopar.solver.check import check
from autopar.solver.problem import Problem, Region, Solution, Strategy, Unit
from autopar.solver.restriction import FREE
from autopar.solver.search import solve
from autopar.tracer import trace

FAST, SLOW = ["gpt2"], [pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "bert", "vit")]
MESHES = ["8", "2x4"]
Found = dict[str, Solution | None]


@functools.cache
def measured(model: str) -> ModelCost:
    module, kwargs = getattr(tests.models, model)(device="meta")
    return measure(trace(module, (), kwargs))


@functools.cache
def problem_of(model: str, mesh: str) -> Problem:
    return Builder(measured(model), Setting(mesh=MeshSpec.of(mesh), hardware=load("h100-sxm"))).problem()


@functools.cache
def solved(model: str, mesh: str) -> Found:
    return solve_baselines(problem_of(model, mesh), checkpoints=["none"])


@functools.cache
def tried(model: str, mesh: str) -> tuple[Tried, ...]:
    return tuple(try_baselines(problem_of(model, mesh)))


def one(model: str, mesh: str, name: str, checkpoint: str) -> Tried:
    (found,) = [t for t in tried(model, mesh) if (t.name, t.checkpoint) == (name, checkpoint)]
    return found


def plan(model: str, mesh: str, name: str) -> Solution:
    found = solved(model, mesh)[name]
    assert found is not None
    return found


def choices(problem: Problem, solution: Solution) -> Iterator[tuple[Region, Unit, Strategy]]:
    for region in problem.regions:
        for unit in region.units:
            yield region, unit, unit.strategies[solution.regions[region.name].strategies[unit.name]]


def parameters(model: str, problem: Problem) -> list[str]:
    """State groups of parameters."""
    program: Program = measured(model).program
    return [name for name in problem.state if program.state[name].kind == "parameter"]


def converted(solution: Solution, axis: int) -> list[tuple[str, Placement, Placement]]:
    steps = (step for choice in solution.regions.values() for step in choice.converted)
    return [step for step in steps if step[1].states[axis] != step[2].states[axis]]


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("model", [*FAST, *SLOW])
def test_search_is_never_worse_than_a_baseline(model: str, mesh: str) -> None:
    problem, found = problem_of(model, mesh), solved(model, mesh)
    known = [s for s in found.values() if s is not None]
    assert {"ddp", "zero1", "zero2", "fsdp", "tp"} <= {name for name, s in found.items() if s is not None}
    best = solve(problem, incumbents=known, time_limit_s=20)
    assert all(best.cost_s <= s.cost_s for s in known)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("model", [*FAST, *SLOW])
def test_ddp_cuts_the_batch_and_nothing_else(model: str, mesh: str) -> None:
    problem, solution = problem_of(model, mesh), plan(model, mesh, "ddp")
    roles = {role for _, _, strategy in choices(problem, solution) for role in strategy.roles}
    assert {"batch"} <= roles <= {"batch", None}
    for _, unit, strategy in choices(problem, solution):
        able = any(set(s.roles) == {"batch"} for s in unit.strategies)
        assert set(strategy.roles) == ({"batch"} if able else {None}), unit.name
    assert all(set(placement.states) == {"I"} for placement in solution.rest.values())


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("model", [*FAST, *SLOW])
def test_fsdp_parameters_rest_cut_on_every_axis(model: str, mesh: str) -> None:
    problem, solution = problem_of(model, mesh), plan(model, mesh, "fsdp")
    assert {"batch"} <= {role for _, _, s in choices(problem, solution) for role in s.roles} <= {"batch", None}
    resting = {group: solution.rest[group] for group in parameters(model, problem)}
    whole = {g for g, p in resting.items() if not any(isinstance(state, int) for state in p.states)}
    assert not {g for g in whole if any(any(isinstance(x, int) for x in p.states) for p in problem.state[g].bytes_at)}
    assert solution.peak_bytes < plan(model, mesh, "ddp").peak_bytes
    assert len(whole) < len(resting) / 4


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("model", [*FAST, *SLOW])
def test_tensor_parallel_products_are_cut_on_the_last_axis_only(model: str, mesh: str) -> None:
    problem, solution = problem_of(model, mesh), plan(model, mesh, "tp")
    for _, unit, strategy in choices(problem, solution):
        *others, last = strategy.roles
        assert set(others) <= {"batch", None}
        if unit.kind == "matmul" and any(s.roles[-1] == "tensor" for s in unit.strategies):
            assert last == "tensor", unit.name
        assert last not in ("batch", "sequence"), unit.name


def test_tensor_parallel_forward_sends_only_the_loss_over_other_axes() -> None:
    problem, solution = problem_of("gpt2", "2x4"), plan("gpt2", "2x4", "tp")
    sends = {
        tensor
        for tensor, before, after in converted(solution, axis=0)
        if before.states[0] in ("P",) or is_gather(before, after)
    }
    assert sends == {"cross_entropy_loss"}
    assert all(isinstance(p.states[1], int) for g, p in solution.rest.items() if g.endswith("c_fc.weight"))
    assert problem.axes == 2


def is_gather(before: Placement, after: Placement) -> bool:
    return isinstance(before.states[0], int) and not isinstance(after.states[0], int)


@pytest.mark.parametrize("model", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["tp+sp", "2d"])
def test_sequence_parallel_norms_and_residual_adds(model: str, name: str) -> None:
    problem, solution = problem_of(model, "2x4"), plan(model, "2x4", name)
    block = max(problem.regions, key=lambda region: sum(region.classes))
    roles = {unit.name: s.roles for region, unit, s in choices(problem, solution) if region is block}
    norms = [unit.name for unit in block.units if unit.kind in ("norm", "reduction")]
    assert len(norms) == 2
    assert {roles[unit] for unit in (*norms, "add", "add_1")} == {("batch", "sequence")}


def test_hybrid_parameters_rest_cut_within_nodes_only() -> None:
    problem, solution = problem_of("gpt2", "2x4"), plan("gpt2", "2x4", "hsdp")
    weights = [p for g, p in solution.rest.items() if g.endswith((".c_fc.weight", ".c_attn.weight", ".wte.weight"))]
    assert len(weights) == 3
    assert all(p.states[0] == "I" and isinstance(p.states[1], int) for p in weights)
    assert plan("gpt2", "2x4", "fsdp").peak_bytes <= solution.peak_bytes <= plan("gpt2", "2x4", "ddp").peak_bytes
    assert not [t for t in tried("gpt2", "8") if t.name == "hsdp"]
    assert problem.axes == 2


def test_two_dimensional_parameters_rest_cut_on_both_axes() -> None:
    solution = plan("gpt2", "2x4", "2d")
    weights = [p for g, p in solution.rest.items() if g.endswith((".c_fc.weight", ".c_attn.weight", ".wte.weight"))]
    assert len(weights) == 3
    assert all(isinstance(state, int) for p in weights for state in p.states)


@pytest.mark.parametrize("mesh", ["4", "2x4"])
def test_ulysses_is_by_heads_within_attention_and_by_tokens_elsewhere(mesh: str) -> None:
    problem, solution = problem_of("gpt2", mesh), plan("gpt2", mesh, "ulysses")
    found = [(unit, strategy.roles[-1]) for _, unit, strategy in choices(problem, solution)]
    assert {role for unit, role in found if unit.kind == "attention"} == {"tensor"}
    assert {role for unit, role in found if unit.kind == "matmul"} == {"sequence"}
    weights = [p for g, p in solution.rest.items() if g.endswith((".c_fc.weight", ".c_attn.weight", ".wte.weight"))]
    assert len(weights) == 3
    assert all(isinstance(state, int) for p in weights for state in p.states)


def test_tensor_axes_are_the_last_one_or_more_whichever_is_best() -> None:
    problem = problem_of("gpt2", "2x4")
    assert list(BASELINES["tp"].purposes(3)) == [
        ("batch", "batch", "tensor"),
        ("batch", "tensor", "tensor"),
        ("tensor", "tensor", "tensor"),
    ]
    assert list(BASELINES["2d"].purposes(2)) == [("batch", "tensor")]
    apart = [t for t in tried("gpt2", "2x4") if t.name == "tp" and t.checkpoint == "none"]
    assert len(apart) == 1
    assert apart[0].purposes in BASELINES["tp"].purposes(problem.axes)


def test_what_has_no_place_is_none() -> None:
    assert solved("gpt2", "8")["2d"] is None
    assert not [t for t in tried("gpt2", "8") if t.name == "2d"]
    with pytest.raises(KeyError):
        solve_baselines(problem_of("gpt2", "8"), ["zero4"])


@pytest.mark.slow
def test_pictures_have_no_sequence_to_be_parallel_in() -> None:
    found = solved("vit", "2x4")
    assert found["tp+sp"] is None
    assert found["2d"] is not None


def test_every_unit_keeps_a_strategy_even_where_dims_do_not_divide() -> None:
    problem = Builder(measured("gpt2"), Setting(mesh=MeshSpec.of("3x5"), hardware=load("cpu"))).problem()
    assert not try_baselines(problem, ["ddp"])
    for wanted in BASELINES.values():
        for purposes in wanted.purposes(2):
            assert all(chosen(wanted, unit, purposes) for region in problem.regions for unit in region.units)


def test_batch_axes_must_all_find_a_batch_at_once() -> None:
    """A batch of 8 can be cut by 8 or by 2 x 4, not by 4 x 4: half of the devices would do the others' work."""
    problem = Builder(measured("gpt2"), Setting(mesh=MeshSpec.of("4x4"), hardware=load("cpu"))).problem()
    assert not try_baselines(problem, ["ddp", "zero1", "zero2", "fsdp"])
    assert try_baselines(problem, ["tp"], checkpoints=["none"])


def again(solution: Solution) -> tuple[set[str], set[tuple[str, str]]]:
    """Units, and tensors (by region) whose conversions run again."""
    keeps = [(name, keep) for name, choice in solution.regions.items() for keep in choice.classes]
    return {u for _, keep in keeps for u in keep.redone}, {(n, t) for n, keep in keeps for t, _, _ in keep.reconverted}


def kept_bytes(problem: Problem, solution: Solution, *, of_state: bool | None = None) -> float:
    return sum(
        calls * region.tensors[t].bytes_at[p]
        for region in problem.regions
        for calls, keep in zip(region.classes, solution.regions[region.name].classes, strict=True)
        for t, p in keep.kept
        if of_state is None or (t in region.state) == of_state
    )


def test_without_checkpointing_nothing_runs_again_but_gathers_of_zero_3() -> None:
    problem = problem_of("gpt2", "8")
    for name in ("ddp", "zero1", "zero2", "fsdp"):
        units, tensors = again(one("gpt2", "8", name, "none").solution)
        assert not units
        assert all(t in problem.region[region].state for region, t in tensors)
    gathered = {step for choice in plan("gpt2", "8", "fsdp").regions.values() for step in choice.converted}
    assert gathered


def test_zero_2_keeps_gathered_parameters_and_zero_3_gathers_them_again() -> None:
    problem = problem_of("gpt2", "8")
    second, third = (one("gpt2", "8", name, "none").solution for name in ("zero2", "fsdp"))
    block = max(problem.regions, key=lambda region: sum(region.classes))
    assert third.rest == second.rest
    assert kept_bytes(problem, second, of_state=True) > 0
    assert not {t for t, _ in second.regions[block.name].classes[0].kept if t in block.state} & {
        t for t, _ in third.regions[block.name].classes[0].kept
    }
    assert second.cost_s <= third.cost_s
    assert again(third)[1]


def test_zero_1_is_zero_2_with_whole_gradients() -> None:
    first, second, plain = (one("gpt2", "8", name, "full") for name in ("zero1", "zero2", "ddp"))
    assert first.solution == second.solution
    assert first.peak_bytes >= second.peak_bytes
    problem = problem_of("gpt2", "8")
    groups = [g for g in problem.state.values() if g.grad_bytes_at]
    assert groups
    whole = sum(max(g.grad_bytes_at.values()) for g in groups)
    cut = sum(g.grad_bytes(second.solution.rest[g.name]) for g in groups)
    optimizer = next(r for r in check(problem, second.solution, budget=False).rows if r.where == "optimizer step")
    assert whole_gradients_peak(problem, second.solution) >= optimizer.bytes + whole - cut
    assert plain.peak_bytes > second.peak_bytes


@pytest.mark.parametrize("name", ["ddp", "fsdp", "tp"])
def test_full_checkpoints_keep_only_the_inputs_of_layers(name: str) -> None:
    problem, solution = problem_of("gpt2", "2x4"), one("gpt2", "2x4", name, "full").solution
    block = max(problem.regions, key=lambda region: sum(region.classes))
    for keep in solution.regions[block.name].classes:
        assert {t for t, _ in keep.kept} <= {*block.inputs, *block.state}
        assert not keep.kept_internals
        assert {u.name for u in block.units if u.kind in ("attention", "matmul")} & keep.redone
    once = [c for r, c in solution.regions.items() if sum(problem.region[r].classes) == 1]
    assert not any(keep.redone for choice in once for keep in choice.classes)


@pytest.mark.parametrize("name", ["ddp", "fsdp", "tp"])
def test_selective_checkpoints_redo_no_product_with_a_parameter(name: str) -> None:
    problem, solution = problem_of("gpt2", "2x4"), one("gpt2", "2x4", name, "selective").solution
    redone = {(r, u) for r, choice in solution.regions.items() for keep in choice.classes for u in keep.redone}
    units = [(problem.region[r], problem.region[r].unit[u]) for r, u in redone]
    assert units
    assert not [u.name for r, u in units if u.kind == "matmul" and set(u.operands) & set(r.state)]
    assert {"norm", "pointwise"} & {u.kind for _, u in units}


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("model", [*FAST, *SLOW])
def test_checkpoints_save_memory_and_cost_time(model: str, mesh: str) -> None:
    problem = problem_of(model, mesh)
    assert {(t.name, t.checkpoint) for t in tried(model, mesh)} >= {(n, c) for n in ("ddp", "fsdp") for c in CHECKPOINTS}
    for name in ("ddp", "fsdp", "tp"):
        none, selective, full = (one(model, mesh, name, c) for c in CHECKPOINTS)
        assert none.cost_s <= selective.cost_s <= full.cost_s
        kept = [kept_bytes(problem, t.solution, of_state=False) for t in (none, selective, full)]
        assert kept[0] > kept[2]
        assert kept[1] > kept[2]


def test_the_fastest_that_fits_is_taken_and_else_the_smallest() -> None:
    problem = problem_of("gpt2", "8")
    known = [t for t in tried("gpt2", "8") if t.name == "ddp"]
    peaks = sorted(t.peak_bytes for t in known)
    tight = replace(problem, budget_bytes=(peaks[0] + peaks[-1]) / 2)
    found = solve_baselines(tight, ["ddp"])["ddp"]
    assert found is not None
    assert found.peak_bytes <= (tight.budget_bytes or 0) < peaks[-1]
    assert found.cost_s == min(t.cost_s for t in known if t.peak_bytes <= (tight.budget_bytes or 0))
    assert FREE.admits(tight, found)
    less = replace(problem, budget_bytes=peaks[0] * 0.5)
    assert solve_baselines(less, ["ddp"])["ddp"] is None
    smallest = best_of(try_baselines(less, ["ddp"]))
    assert smallest is not None
    assert not smallest.fits
    assert smallest.peak_bytes == peaks[0]


def test_incumbents_are_the_fastest_that_fits_and_the_smallest() -> None:
    problem, known = problem_of("gpt2", "8"), tried("gpt2", "8")
    best, lowest = (min(known, key=key).solution for key in (lambda t: t.cost_s, lambda t: t.peak_bytes))
    assert incumbents(problem)[0].cost_s == best.cost_s
    tight = replace(problem, budget_bytes=lowest.peak_bytes)
    assert incumbents(tight)[-1].peak_bytes == lowest.peak_bytes
    assert not incumbents(replace(problem, budget_bytes=lowest.peak_bytes * 0.9))


def test_table_lists_fitting_plans_first_then_too_large_ones_then_missing_ones() -> None:
    problem = problem_of("gpt2", "8")
    tight = replace(problem, budget_bytes=plan("gpt2", "8", "ddp").peak_bytes * 0.9)
    found = solve_baselines(tight, ["2d", "ddp", "fsdp"], checkpoints=["none"], over_budget=True)
    rows = compare(tight, found)
    assert [(row.name, row.fits) for row in rows] == [("fsdp", True), ("ddp", False), ("2d", False)]
    assert rows[1].peak_bytes is not None
    assert rows[1].peak_bytes > (tight.budget_bytes or 0)
    assert rows[2] == Row(name="2d", cost_s=None, peak_bytes=None, fits=False)
