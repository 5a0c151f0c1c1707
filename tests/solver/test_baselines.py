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
from autopar.solver.baselines import BASELINES, Row, baseline, chosen, compare, solve_baselines
from autopar.solver.build import Builder, Setting
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
    return solve_baselines(problem_of(model, mesh))


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
    assert {"ddp", "fsdp", "tp"} <= {name for name, s in found.items() if s is not None}
    best = solve(problem, incumbents=known, time_limit_s=20)
    assert all(best.cost_s <= s.cost_s for s in known)
    assert all(s.status == "optimal" for s in known)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("model", [*FAST, *SLOW])
def test_ddp_cuts_the_batch_and_nothing_else(model: str, mesh: str) -> None:
    problem, solution = problem_of(model, mesh), plan(model, mesh, "ddp")
    roles = {role for _, _, strategy in choices(problem, solution) for role in strategy.roles}
    assert roles == {"batch", None}
    for _, unit, strategy in choices(problem, solution):
        able = any(set(s.roles) == {"batch"} for s in unit.strategies)
        assert set(strategy.roles) == ({"batch"} if able else {None}), unit.name
    assert all(set(placement.states) == {"I"} for placement in solution.rest.values())


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("model", [*FAST, *SLOW])
def test_fsdp_parameters_rest_cut_on_every_axis(model: str, mesh: str) -> None:
    problem, solution = problem_of(model, mesh), plan(model, mesh, "fsdp")
    assert {role for _, _, s in choices(problem, solution) for role in s.roles} == {"batch", None}
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


def test_two_dimensional_parameters_rest_cut_on_both_axes() -> None:
    solution = plan("gpt2", "2x4", "2d")
    weights = [p for g, p in solution.rest.items() if g.endswith((".c_fc.weight", ".c_attn.weight", ".wte.weight"))]
    assert len(weights) == 3
    assert all(isinstance(state, int) for p in weights for state in p.states)


def test_what_has_no_place_is_none() -> None:
    assert baseline("2d", problem_of("gpt2", "8")) is None
    assert solved("gpt2", "8")["2d"] is None
    with pytest.raises(KeyError):
        baseline("zero1", problem_of("gpt2", "8"))


@pytest.mark.slow
def test_pictures_have_no_sequence_to_be_parallel_in() -> None:
    found = solved("vit", "2x4")
    assert found["tp+sp"] is None
    assert found["2d"] is not None


def test_every_unit_keeps_a_strategy_even_where_dims_do_not_divide() -> None:
    problem = Builder(measured("gpt2"), Setting(mesh=MeshSpec.of("3x5"), hardware=load("cpu"))).problem()
    assert baseline("ddp", problem) is None
    for wanted in BASELINES.values():
        assert all(chosen(wanted, unit, 2) for region in problem.regions for unit in region.units)


def test_without_checkpointing_nothing_runs_again_but_gathers_of_parameters() -> None:
    problem = problem_of("gpt2", "8")
    fsdp = plan("gpt2", "8", "fsdp")
    tight = replace(problem, budget_bytes=fsdp.peak_bytes * 0.93)
    found = solve_baselines(tight, ["ddp", "fsdp"])
    assert found["ddp"] is None
    again = found["fsdp"]
    assert again is not None
    assert not any(keep.redone for choice in again.regions.values() for keep in choice.classes)
    gathers = {
        tensor in problem.region[name].state
        for name, choice in again.regions.items()
        for keep in choice.classes
        for tensor, _, _ in keep.reconverted
    }
    assert gathers == {True}


def test_full_checkpointing_fits_where_keeping_does_not() -> None:
    problem = problem_of("gpt2", "8")
    tight = replace(problem, budget_bytes=plan("gpt2", "8", "ddp").peak_bytes * 0.95)
    assert solve_baselines(tight, ["ddp"])["ddp"] is None
    full = solve_baselines(tight, ["ddp"], checkpoint="full")["ddp"]
    assert full is not None
    assert any(keep.redone or keep.reconverted for choice in full.regions.values() for keep in choice.classes)
    restriction = baseline("ddp", tight, "full")
    assert restriction is not None
    assert restriction.admits(tight, full)
    assert FREE.admits(tight, full)
    refused = baseline("ddp", tight, "none")
    assert refused is not None
    assert not refused.admits(tight, full)


def test_table_lists_fitting_plans_first_then_too_large_ones_then_missing_ones() -> None:
    problem = problem_of("gpt2", "8")
    tight = replace(problem, budget_bytes=plan("gpt2", "8", "ddp").peak_bytes * 0.9)
    found = solve_baselines(tight, ["2d", "ddp", "fsdp"], over_budget=True)
    rows = compare(tight, found)
    assert [(row.name, row.fits) for row in rows] == [("fsdp", True), ("ddp", False), ("2d", False)]
    assert rows[1].peak_bytes is not None
    assert rows[1].peak_bytes > (tight.budget_bytes or 0)
    assert rows[2] == Row(name="2d", cost_s=None, peak_bytes=None, fits=False)
