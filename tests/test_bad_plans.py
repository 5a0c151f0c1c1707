"""A plan that was damaged or edited is refused in words, or is still a plan: never a crash, and never another model."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

import autopar
from autopar.codegen import accept as accept_module
from autopar.codegen import emit as emit_module
from autopar.codegen.emit import Emitted, emit
from autopar.codegen.hold import hold
from autopar.errors import PlanError
from autopar.ir.mesh import MeshSpec
from autopar.ir.plan import Plan
from tests.mutations import mutants
from tests.planned import planned, tightest, traced

DECISIONS = ("inputs", "state", "boundaries", "regions")


class Fuzzed:
    """What came of mutants of one plan: `refused` by message; `accepted` are those that decide otherwise and may run."""

    def __init__(self, name: str, mesh: str, plan: Plan) -> None:
        self.case, self.mesh, self.plan = traced(name), mesh, plan
        self.refused: Counter[str] = Counter()
        self.accepted: dict[str, tuple[str, Plan]] = {}
        self.emitted: dict[str, Emitted] = {}
        self.same = 0

    def run(self, count: int, seed: int) -> None:
        others = [planned("mlp", mesh)[0].to_json() for mesh in ("2", "4")]
        own = decided(self.plan)
        for done, text in mutants(self.plan.to_json(), others, count, seed):
            try:
                found = self.taken(text)
            except PlanError as error:
                self.refused[str(error)] += 1
            except Exception as error:
                raise AssertionError(f"{done}: {type(error).__name__}: {error}") from error
            else:
                if decided(found) == own:
                    self.same += 1
                else:
                    self.accepted[decided(found)] = (done, found)

    def taken(self, text: str) -> Plan:
        """As `compile` takes a plan, but that graphs of decisions that were met before are not emitted again."""
        plan = Plan.from_json(text, "plan.json")
        plan.require(self.case.program, MeshSpec.of(self.mesh))
        if decided(plan) not in self.emitted:
            self.emitted[decided(plan)] = emit(self.case.program, plan)
        hold(replace(self.emitted[decided(plan)], plan=plan))
        return plan


FIELD_OR_REASON = ("field", "no JSON", "no autopar plan", "version", "the plan is for mesh", "another program", "was edited")


def decided(plan: Plan) -> str:
    return plan.model_dump_json(include=set(DECISIONS))


def prove(fuzzed: Fuzzed, at_most: int) -> None:
    """What was refused says where and why; what was accepted computes what the model computes."""
    assert [message for message in fuzzed.refused if not any(word in message for word in FIELD_OR_REASON)] == []
    for done, plan in list(fuzzed.accepted.values())[:at_most]:
        report = autopar.verify(fuzzed.case.model, fuzzed.mesh, kwargs=fuzzed.case.kwargs, plan=plan)
        assert report.ok, f"{done}: {report.tensors[:3]}"


def test_mutants_are_refused_or_harmless() -> None:
    fuzzed = Fuzzed("mlp", "2", planned("mlp", "2")[0])
    fuzzed.run(100, seed=0)
    assert len(fuzzed.refused) > 50
    prove(fuzzed, 1)


@pytest.mark.exhaustive
def test_a_thousand_mutants_are_refused_or_harmless() -> None:
    """Of a plan without a budget, and of one under a tight one, which recomputes."""
    for name, mesh, plan, count in (
        ("mlp", "2", planned("mlp", "2")[0], 900),
        ("gpt2", "2", tightest("gpt2", "2")[0], 100),
    ):
        fuzzed = Fuzzed(name, mesh, plan)
        fuzzed.run(count, seed=1)
        assert sum(fuzzed.refused.values()) > 0.6 * count
        prove(fuzzed, 4)


def test_the_fuzzer_finds_what_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the look at classes and conversions, mutants crash while graphs are emitted."""
    monkeypatch.setattr(accept_module, "accept_class", lambda *_: None)
    fuzzed = Fuzzed("mlp", "2", planned("mlp", "2")[0])
    with pytest.raises(AssertionError, match="KeyError"):
        fuzzed.run(1000, seed=0)


def edit(plan: Plan, change: Any) -> Plan:
    data = plan.model_dump(mode="json")
    change(data)
    return Plan.model_validate(data)


def layer(data: dict[str, Any]) -> Any:
    return data["regions"]["transformer.h.*"]


EDITS = [
    (lambda d: d["figures"].update(forward_flops=1), r"figures\.forward_flops: 1, but its graphs do \d+"),
    (lambda d: d.update(peak_bytes=5), r"peak_bytes: 5, but its graphs need \d+"),
    (lambda d: d["figures"]["collectives"].pop(), r"figures\.collectives: 0 \w+ on \w+ in \w+ of 0 bytes in all, but"),
    (lambda d: d.update(budget_bytes=int(d["peak_bytes"]) - 5), r"peak_bytes: \d+ is above budget_bytes"),
    (lambda d: d["boundaries"].update(cross_entropy_loss="S(0)"), r"boundaries\.\w+: \[S\(0\)\] does not divide \[\]"),
    (
        lambda d: d["state"]["transformer.wte.weight"].update(placement="P"),
        r"state\.transformer\.wte\.weight\.placement: .*rests as",
    ),
    (
        lambda d: d["state"]["transformer.h.1.ln_1.weight"].update(placement=other(d["state"]["transformer.h.1.ln_1.weight"])),
        r"state\.transformer\.h\.1\.ln_1\.weight\.placement: .* share their graphs",
    ),
    (
        lambda d: layer(d)["units"]["attn_c_attn_addmm"].update(factors=["zz"], roles=["?"]),
        r"attn_c_attn_addmm\.factors: .*'zz'",
    ),
    (lambda d: layer(d)["units"].pop("attn_c_attn_addmm"), r"units: attn_c_attn_addmm is a unit that the plan does not know"),
    (lambda d: layer(d)["converted"].clear() or clear(d), r"converted: \w+ .* where no conversion brings it"),
    (lambda d: layer(d)["classes"][0].update(calls=7), r"classes: they are for \d+ calls, the program has 2"),
    (lambda d: clear(d), r"classes\.0: backward reads \w+, which is neither kept nor made again"),
    (
        lambda d: layer(d)["classes"][0]["kept"].append({"tensor": "add", "placement": "P"}),
        r"classes\.0\.kept\.\d+: add is never at",
    ),
    (
        lambda d: layer(d)["classes"][0]["redone"].append("attn_c_attn_addmm"),
        r"classes\.0\.redone: nothing in backward needs attn_c_attn_addmm again",
    ),
]


def other(planned_tensor: dict[str, Any]) -> str:
    return "S(0)" if planned_tensor["placement"] == "I" else "I"


def clear(data: dict[str, Any]) -> None:
    for keep in layer(data)["classes"]:
        keep.update(kept=[], kept_internals=[], redone=[], reconverted=[])


@pytest.mark.parametrize(("change", "message"), EDITS, ids=[message for _, message in EDITS])
def test_edits_are_refused_with_field_and_reason(change: Any, message: str) -> None:
    program, plan = traced("gpt2").program, edit(planned("gpt2", "2")[0], change)
    with pytest.raises(PlanError, match=f"field {message}|field regions.transformer.h.*{message}"):
        hold(emit(program, plan))


def test_verify_holds_the_figures_of_a_plan() -> None:
    case, plan = traced("mlp"), planned("mlp", "2")[0]
    wrong = edit(plan, lambda d: d["figures"].update(forward_flops=1))
    with pytest.raises(PlanError, match="forward_flops"):
        autopar.verify(case.model, "2", kwargs=case.kwargs, plan=wrong)


def test_our_own_plans_hold() -> None:
    _, emitted, counted = planned("gpt2", "2")
    assert hold(emitted) == counted
    assert emit_module.emit(emitted.program, emitted.plan).plan is emitted.plan
