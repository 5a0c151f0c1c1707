"""Questions about a plan: it is a solution of its problem again; ways beside it, and other strategies, cost what is said."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import pytest

from autopar.errors import BudgetError, ConstraintError, InputError, PlanError
from autopar.hardware import load
from autopar.ir.constraints import Constraints
from autopar.ir.mesh import MeshSpec
from autopar.ir.plan import Plan
from autopar.ir.timeline import COMPUTE, WAITS, Event, Timeline
from autopar.planning.compare import OURS, compare
from autopar.planning.costs import costs
from autopar.planning.explain import Explainer, explain, pin_of, why_not
from autopar.planning.planner import Aims, Planner, realise, silent
from autopar.planning.question import Question
from autopar.planning.simulate import simulate
from autopar.planning.waits import Wait, of_timeline, waits
from autopar.solver.baselines import Drafts, tries
from autopar.solver.restriction import Restriction
from autopar.solver.search import solve
from tests.hardware_toy import toy_hardware
from tests.planned import known_way, planned, traced


def question_of(plan: Plan, name: str, constraints: Constraints | None = None) -> Question:
    aims = Aims(hardware=toy_hardware(), optimizer=plan.optimizer, constraints=constraints or plan.constraints)
    return Question(plan=plan, planner=Planner(traced(name).program, aims), progress=silent)


@lru_cache
def free(name: str = "gpt2", mesh: str = "2x2") -> Question:
    return question_of(planned(name, mesh)[0], name)


@lru_cache
def tight(name: str = "gpt2", mesh: str = "2") -> Question:
    """Under a budget that makes backward run something again."""
    peak = free(name, mesh).plan.peak_bytes
    question = question_of(planned(name, mesh, memory=int(0.85 * peak))[0], name)
    assert any(keep.redone for region in question.plan.regions.values() for keep in region.classes)
    return question


@pytest.mark.parametrize("share", [1.0, 0.8])
@pytest.mark.parametrize(("name", "mesh"), [("gpt2", "2x2"), ("bert", "4"), ("vit", "4"), ("llama", "4")])
def test_a_plan_is_the_solution_that_it_came_from(name: str, mesh: str, share: float) -> None:
    """Also where backward finds what it needs in the memory of something else, which the checker does not know of."""
    loose = planned(name, mesh)[0]
    plan = loose if share == 1.0 else planned(name, mesh, memory=int(share * loose.peak_bytes))[0]
    question = question_of(plan, name)
    assert question.decided.cost_s == pytest.approx(plan.step_time_s, rel=1e-9)
    found, problem = question.solution, replace(question.problem, budget_bytes=None)
    assert found.cost_s >= question.decided.cost_s * (1 - 1e-12)
    emitted = realise(question.priced.builder, problem, found).plan
    assert (emitted.regions, emitted.boundaries, emitted.state) == (plan.regions, plan.boundaries, plan.state)


def test_hardware_of_other_figures_is_refused() -> None:
    plan = planned("mlp", "4")[0]
    aims = Aims(hardware=load("h100-sxm"), optimizer=plan.optimizer)
    question = Question(plan=plan, planner=Planner(traced("mlp").program, aims), progress=silent)
    with pytest.raises(PlanError, match="give the hardware that it was made for"):
        _ = question.decided


def test_a_plan_with_an_unknown_choice_is_refused() -> None:
    plan = free().plan
    region = next(iter(plan.regions))
    unit, planned_unit = next(iter(plan.regions[region].units.items()))
    changed = planned_unit.model_copy(update={"factors": ("nothing", "nothing")})
    units = {**plan.regions[region].units, unit: changed}
    wrong = plan.regions[region].model_copy(update={"units": units})
    question = question_of(plan.model_copy(update={"regions": {**plan.regions, region: wrong}}), "gpt2")
    with pytest.raises(PlanError, match=f"regions.{region}".replace("*", r"\*") + f".units.{unit}.factors"):
        _ = question.solution


class TestCompare:
    def test_the_plan_comes_first_with_its_own_figures(self) -> None:
        question = free()
        found = compare(question, ["ddp"])
        ours = found.ours
        assert (ours.step_time_s, ours.peak_bytes) == (question.plan.step_time_s, question.plan.peak_bytes)
        assert [(w.name, w.checkpoint) for w in found.ways[1:]] == [("ddp", c) for c in ("none", "selective", "full")]

    def test_ddp_sends_every_gradient_twice_but_for_a_share(self) -> None:
        """A ring's all-reduce over n devices sends 2(n-1)/n of the tensor, on each mesh axis; sums of losses beside it."""
        question = free("mlp")
        way = compare(question, ["ddp"], ["none"]).ways[1]
        program = question.planner.program
        trained = [s.spec for s in program.state.values() if s.kind == "parameter" and s.spec.needs_grad]
        gradients = sum(4 * math.prod(map(int, spec.shape)) for spec in trained)
        for axis, sent in way.sent_bytes.items():
            assert gradients <= sent <= gradients + 100, axis

    def test_the_more_backward_makes_again_the_less_memory(self) -> None:
        ways = {w.checkpoint: w for w in compare(free(), ["fsdp"]).ways[1:]}
        assert ways["none"].peak_bytes > max(ways["selective"].peak_bytes, ways["full"].peak_bytes)
        assert ways["none"].redone_flops == 0 < ways["full"].redone_flops

    def test_peaks_are_those_of_the_graphs_and_decide_what_fits(self) -> None:
        question = tight()
        found = compare(question, ["ddp", "fsdp"], ["none", "full"])
        assert found.budget_bytes == question.plan.budget_bytes
        for way in found.ways:
            assert way.fits == (way.peak_bytes <= (found.budget_bytes or 0))
        unlimited = replace(question.problem, budget_bytes=None)
        drafts = Drafts(unlimited, 1e-3, 60)
        for way in found.ways[1:]:
            variants = [
                (tried.cost_s, realise(question.priced.builder, unlimited, tried.solution).plan.peak_bytes)
                for tried in tries(unlimited, way.name, way.checkpoint, drafts)  # type: ignore[arg-type]
            ]
            fitting = [cost_s for cost_s, peak in variants if peak <= (found.budget_bytes or 0)]
            assert way.fits == bool(fitting)
            if fitting:
                assert way.step_time_s == pytest.approx(min(fitting), rel=1e-3)
        assert not found.ways[1].fits
        assert found.ours.fits

    def test_on_the_clock_each_way_takes_what_its_own_graphs_take(self) -> None:
        """All micro-batches, and the optimizer's step beside them."""
        aims = Aims(hardware=toy_hardware(), optimizer="adamw")
        planner = Planner(traced("mlp").program, aims, micro_batches=3)
        question = Question(plan=planner.find(MeshSpec.of("4")).plan, planner=planner, progress=silent)
        drafts = Drafts(question.problem, 1e-3, 60)
        for way in compare(question, ["ddp", "fsdp"], ["none"]).ways:
            emitted = question.emitted
            if way.name != OURS:
                tried = min(tries(question.problem, way.name, "none", drafts), key=lambda one: one.cost_s)  # type: ignore[arg-type]
                emitted = realise(question.priced.builder, question.problem, tried.solution).emitted
            once = simulate(emitted, toy_hardware())
            assert way.clock_s == pytest.approx(3 * once.step_s + emitted.plan.figures.time_s["optimizer"])
            assert way.clock_s > once.busy_s("compute")

    def test_links_that_cost_nothing_leave_the_clock_with_what_the_plan_says_of_kernels(self) -> None:
        """The clock adds up nodes, the plan units: but for sums of gradients, which no unit has, that is the same."""
        hardware = toy_hardware(link_bytes_per_s=1e30)
        links = {name: replace(link, latency_s=0.0) for name, link in hardware.links.items()}
        planner = Planner(traced("mlp").program, Aims(hardware=replace(hardware, links=links)))
        question = Question(plan=planner.find(MeshSpec.of("4")).plan, planner=planner, progress=silent)
        for way in compare(question, ["ddp", "fsdp"], ["none", "full"]).ways:
            assert 1 <= way.clock_s / way.step_time_s < 1.001, way.name

    def test_zero1_needs_whole_gradients_beside_what_zero2_needs(self) -> None:
        one, two = (compare(free(), [name], ["none"]).ways[1] for name in ("zero1", "zero2"))
        assert one.step_time_s == two.step_time_s
        assert one.peak_bytes > two.peak_bytes

    def test_ways_without_a_place_are_named(self) -> None:
        assert compare(free(), ["ep", "ddp"], ["none"]).absent == ("ep",)


class TestWaits:
    def test_they_are_all_that_the_clock_waits_for(self) -> None:
        question = question_of(planned("gpt2", "2x2")[0], "gpt2")
        found = waits(question)
        assert sum(wait.seconds for wait in found) == pytest.approx(question.timeline.waited_s)
        assert all(0 <= wait.queued_s <= wait.seconds for wait in found)

    def test_the_time_before_a_collective_begins_is_that_of_its_link(self) -> None:
        """The second of two gathers of 2 s each, both wanted at 1 s: 1 s for its own link's sake, and 2 s for itself."""
        about = {"collective": "all_gather", "tensor": "weight", "backward": False}
        events = (
            Event(track="gpu", name="first", call="layer forward", start_s=0.0, end_s=2.0, about={**about, "tensor": "x"}),
            Event(track="gpu", name="second", call="layer forward", start_s=2.0, end_s=4.0, about=about),
            Event(track=WAITS, name="second", call="layer forward", start_s=1.0, end_s=4.0),
        )
        timeline = Timeline(tracks=(COMPUTE, WAITS, "gpu"), events=events, step_s=4.0, waited_s=3.0)
        (found,) = of_timeline(timeline, {"layer forward": frozenset({"weight"})}, times=5)
        assert found == Wait(axis="gpu", kind="all_gather", carries="parameters", seconds=15.0, queued_s=5.0)

    def test_what_is_sent_is_told_by_what_it_is(self) -> None:
        """DDP sends gradients, ZeRO-3 parameters too; links so slow that nothing hides show all of it."""
        cpu = load("cpu")
        links = {name: replace(link, bytes_per_s=link.bytes_per_s / 1e4) for name, link in cpu.links.items()}
        for way, expected in (("ddp", {"gradients"}), ("fsdp", {"gradients", "parameters"})):
            planner = Planner(traced("gpt2").program, Aims(hardware=replace(cpu, links=links)))
            question = Question(plan=known_way("gpt2", "2", way).plan, planner=planner, progress=silent)
            carried = {wait.carries for wait in waits(question) if wait.seconds}
            assert carried - {"activations"} == expected, way


class TestExplain:
    def test_every_strategy_of_a_unit_is_there_and_the_chosen_one_costs_what_the_plan_does(self) -> None:
        question = free()
        (one,) = explain(question, "mlp.c_fc")
        unit = next(u for u in question.problem.region[one.region].units if u.name == one.unit)
        assert {a.factors for a in one.alternatives} == {s.factors for s in unit.strategies}
        assert one.chosen.step_time_s == question.solution.cost_s
        assert one.path.endswith("mlp.c_fc")
        assert one.op == "aten.addmm.default"
        times = [a.step_time_s for a in one.alternatives if a.step_time_s is not None]
        assert times == sorted(times)

    @pytest.mark.parametrize("asked", ["mlp.c_fc", "op=layer_norm", "attn.c_proj"])
    def test_an_alternative_costs_what_the_whole_solver_finds_for_it(self, asked: str) -> None:
        """Everything else is fixed, and the general search is asked for the same."""
        question = free()
        one = explain(question, asked)[0]
        unit = next(u for u in question.problem.region[one.region].units if u.name == one.unit)
        plan, region = question.solution, question.problem.region[one.region]
        own = {region.state.get(operand) for operand in unit.operands}
        for a in one.alternatives[:6]:
            index = next(i for i, s in enumerate(unit.strategies) if s.factors == a.factors)
            allow = Restriction(
                strategy=lambda r, u, i, index=index: (
                    i == (index if (r, u) == (one.region, one.unit) else plan.regions[r].strategies[u])
                ),
                rest=lambda group, placement: group in own or placement == plan.rest[group],
            )
            found = solve(question.problem, allow=allow, gap=1e-6, time_limit_s=60)
            assert a.step_time_s == pytest.approx(found.cost_s, rel=2e-4), a.factors

    def test_a_budget_rules_out_only_what_the_general_search_cannot_fit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("autopar.planning.explain.FIT_S", 30.0)
        question = tight()
        (one,) = explain(question, "transformer.h.*.ln_1")
        problem, plan = Explainer(question).problem, question.solution
        unit = next(u for u in problem.region[one.region].units if u.name == one.unit)
        own = {problem.region[one.region].state.get(operand) for operand in unit.operands}
        for a in (a for a in one.alternatives if not a.chosen):
            index = next(i for i, s in enumerate(unit.strategies) if s.factors == a.factors)
            allow = Restriction(
                strategy=lambda r, u, i, index=index: (
                    i == (index if (r, u) == (one.region, one.unit) else plan.regions[r].strategies[u])
                ),
                rest=lambda group, placement: group in own or placement == plan.rest[group],
            )
            try:
                found = solve(problem, allow=allow, gap=1e-3, time_limit_s=30)
            except BudgetError:
                assert a.forbidden == "does not fit the budget"
            else:
                assert (a.forbidden, a.step_time_s) == ("", pytest.approx(found.cost_s, rel=0.02))

    def test_what_does_not_fit_the_budget_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("autopar.planning.explain.FIT_S", 30.0)
        question = tight()
        found = [a for one in explain(question, "mlp") for a in one.alternatives if not a.chosen]
        too_large = [a for a in found if a.forbidden == "does not fit the budget"]
        limit = Explainer(question).problem.budget_bytes
        assert limit is not None
        assert too_large
        assert all(a.estimated_peak_bytes is not None and a.estimated_peak_bytes > limit for a in too_large)
        possible = [a for a in found if not a.forbidden and a.estimated_peak_bytes is not None]
        assert all(a.estimated_peak_bytes <= limit * (1 + 1e-9) for a in possible if a.estimated_peak_bytes)

    def test_what_a_constraint_forbids_names_it(self) -> None:
        ban = "transformer.h.*.mlp: tensor=gpu"
        question = question_of(free().plan, "gpt2", Constraints(bans=(ban,)))
        (one,) = explain(question, "mlp.c_fc")
        for a in one.alternatives:
            if not a.chosen:
                assert (a.roles[1] == "tensor") == (ban in a.forbidden), a

    def test_factors_that_no_strategy_cuts_say_why(self) -> None:
        """Of a product behind a reshape that merges heads, the dim within a head; of a mesh axis that divides nothing, all."""
        (one,) = explain(free(), "attn_c_proj_addmm")
        assert one.uncut == {"k1": "a tensor would have no placement"}
        (one,) = explain(free("mlp", "16"), "head_linear")
        assert one.uncut == {"b0": "8 does not divide by 16"}

    def test_unknown_modules_name_close_ones(self) -> None:
        with pytest.raises(InputError, match=r"no module 'mlp.c_fk'.*mlp\.c_fc"):
            explain(free(), "mlp.c_fk")


class TestWhyNot:
    def test_a_wish_is_searched_and_obeyed(self) -> None:
        answer = why_not(free(), "mlp.c_fc: tensor=gpu")
        assert answer.plan is not None
        assert answer.pin == "**.mlp.c_fc: tensor=gpu"
        roles = {u.roles[1] for r in answer.plan.regions.values() for u in r.units.values() if u.path.endswith("mlp.c_fc")}
        assert roles == {"tensor"}
        assert answer.plan.constraints.pins == (answer.pin,)

    def test_a_parameter_may_be_meant_by_the_end_of_its_name(self) -> None:
        assert pin_of(free(), "mlp.c_fc.weight: rest=S(0) on gpu") == "**.mlp.c_fc.weight: rest=S(0) on gpu"
        answer = why_not(free(), "mlp.c_fc.weight: rest=S(0) on gpu")
        assert answer.plan is not None
        rest = {str(t.placement) for name, t in answer.plan.state.items() if name.endswith("mlp.c_fc.weight")}
        assert all(text.endswith("S(0)") for text in rest), rest

    def test_a_bare_placement_is_that_of_the_result(self) -> None:
        assert pin_of(free(), "mlp.c_fc: S(2) on gpu") == "**.mlp.c_fc: out=S(2) on gpu"
        assert pin_of(free(), "transformer.h.*.mlp: whole on gpu, R on node") == (
            "transformer.h.*.mlp: out=whole on gpu, R on node"
        )

    def test_what_cannot_be_says_why(self) -> None:
        answer = why_not(free(), "mlp.c_fc: S(7) on gpu")
        assert answer.plan is None
        assert "cannot hold" in answer.reason

    def test_nonsense_is_refused(self) -> None:
        with pytest.raises(ConstraintError, match="not of the form"):
            why_not(free(), "mlp")
        with pytest.raises(ConstraintError, match="names no axis"):
            why_not(free(), "mlp: tensor=gpus")

    def test_what_was_measured_is_not_measured_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        question = free()
        _ = question.priced
        monkeypatch.setattr("autopar.planning.planner.measure", lambda program: pytest.fail("measured again"))
        assert why_not(question, "mlp.c_fc: batch=gpu").reason == ""


def test_costs_add_up_to_the_step_without_what_is_hidden() -> None:
    """But for the optimizer's step and the casts, which no unit or conversion has."""
    question = free()
    times = question.plan.figures.time_s
    whole = sum(seconds for what, seconds in times.items() if what not in ("overlapped", "optimizer", "casts of parameters"))
    assert sum(cost.seconds for cost in costs(question)) == pytest.approx(whole, rel=1e-6)
