"""Constraints against a real program: what is left to choose from, and what is said where nothing is."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest

from autopar.errors import ConstraintError
from autopar.ir.constraints import Constraints
from autopar.ir.mesh import MeshSpec
from autopar.ir.placement import Placement
from autopar.profiler.model_cost import measure
from autopar.solver.build import Builder, Setting
from autopar.solver.constraints import Wanted, blame, wanted
from autopar.solver.problem import Problem, Strategy
from autopar.solver.restriction import Restriction
from tests.hardware_toy import toy_hardware
from tests.planned import traced

LAYERS = "model.layers.*"
GATE, DOWN, ATTENTION = "mlp_gate_proj_linear", "mlp_down_proj_linear", "self_attn_scaled_dot_product_attention"


@lru_cache(maxsize=2)
def llama(mesh: str = "2x2") -> tuple[Builder, Problem]:
    builder = Builder(measure(traced("llama").program), Setting(mesh=MeshSpec.of(mesh), hardware=toy_hardware()))
    return builder, builder.problem()


def translate(**fields: Any) -> Wanted:
    return wanted(Constraints(**fields), *llama())


def left(allow: Restriction, unit: str, region: str = LAYERS) -> list[Strategy]:
    strategies = llama()[1].region[region].unit[unit].strategies
    assert allow.strategy is not None
    return [s for i, s in enumerate(strategies) if allow.strategy(region, unit, i)]


def roles(allow: Restriction, unit: str, axis: int, region: str = LAYERS) -> set[str | None]:
    return {s.roles[axis] for s in left(allow, unit, region)}


def test_nothing_wanted_restricts_nothing() -> None:
    assert translate() == Wanted(allow=Restriction())


def test_a_role_for_a_module() -> None:
    allow = translate(pins=["model.layers.*.mlp: tensor=gpu"]).allow
    assert roles(allow, GATE, 1) == roles(allow, DOWN, 1) == {"tensor"}
    assert {"batch", "sequence", "tensor", None} <= roles(allow, GATE, 0), "the other axis stays free"
    assert {"batch", "tensor"} <= roles(allow, ATTENTION, 1), "other modules stay free"
    assert "batch" in roles(allow, "mlp_mul", 1), "what has no such factor stays free"


def test_a_role_for_a_kind_and_for_an_op() -> None:
    assert roles(translate(pins=["kind=attention: sequence=*"]).allow, ATTENTION, 0) == {"sequence"}
    assert roles(translate(pins=["op=linear: none=gpu"]).allow, GATE, 1) == {None}
    both = translate(pins=["model.layers.*.self_attn kind=matmul: tensor=gpu"]).allow
    assert roles(both, "self_attn_q_proj_linear", 1) == {"tensor"}
    assert "batch" in roles(both, ATTENTION, 1)


def test_bans() -> None:
    allow = translate(bans=["**: sequence=*", "kind=matmul: tensor=node"]).allow
    for axis in (0, 1):
        assert roles(allow, ATTENTION, axis) == {"batch", "tensor", None}
    assert roles(allow, GATE, 0) == {"batch", None}
    assert roles(allow, GATE, 1) == {"batch", "tensor", None}


def test_a_factor() -> None:
    allow = translate(pins=["model.layers.*.mlp.down_proj: factor=k on gpu"]).allow
    assert {s.factors[1] for s in left(allow, DOWN)} == {"k"}


def test_placements_of_what_enters_and_leaves_a_module() -> None:
    allow = translate(pins=["model.layers.*.mlp: out=P on gpu, in=R on gpu"]).allow
    assert {s.results[0].states[1] for s in left(allow, DOWN)} == {"P"}
    assert {s.operands[0].states[1] for s in left(allow, GATE)} == {"R"}
    inner = translate(pins=["model.layers.*.mlp: in=S(1) on gpu"]).allow
    assert {s.operands[0].states[1] for s in left(inner, GATE)} == {1}
    assert inner.strategy is not None
    assert 2 in {s.operands[0].states[1] for s in left(inner, DOWN)}, "what stays inside is not meant"
    weight = translate(pins=["model.layers.*.mlp.up_proj: in[1]=S(0) on gpu"]).allow
    assert {s.operands[1].states[1] for s in left(weight, "mlp_up_proj_linear")} == {0}


def resting(allow: Restriction, name: str) -> set[Placement]:
    assert allow.rest is not None
    return {p for p in llama()[1].state[name].bytes_at if allow.rest(name, p)}


def test_where_parameters_rest() -> None:
    gate, norm, head = (f"model.layers.0.{n}.weight" for n in ("mlp.gate_proj", "input_layernorm", "self_attn.o_proj"))
    given = translate(parameters={"model.layers.*.mlp.*.weight": "S(0) on gpu, whole on node"}).allow
    assert resting(given, gate) == {Placement(("I", 0))}
    assert len(resting(given, norm)) > 1
    zero = translate(pins=["**: zero3=node"], bans=["lm_head: zero3=gpu"]).allow
    assert {p.states[0] for p in resting(zero, gate)} == {0, 1}
    assert {p.states[1] for p in resting(zero, "lm_head.weight")} == {"I"}
    whole = translate(parameters="whole").allow
    assert resting(whole, gate) == resting(whole, norm) == resting(whole, head) == {Placement.whole(2)}


def test_rows_per_device() -> None:
    """8 rows on 2x2: 2 on each device, or at least 4, or all."""
    assert translate(min_micro_batch=2).allow.strategy is None
    for rows, most in ((4, 1), (3, 1), (5, 0), (8, 0)):
        allow = translate(min_micro_batch=rows).allow
        for unit in (GATE, ATTENTION, "add"):
            assert max(s.roles.count("batch") for s in left(allow, unit)) == most


def test_no_recompute_and_keep() -> None:
    allow = translate(recompute="never").allow
    assert allow.redo is not None
    assert not allow.redo(LAYERS, GATE)
    allow = translate(pins=["model.layers.*.mlp: keep"]).allow
    assert allow.redo is not None
    assert (allow.redo(LAYERS, GATE), allow.redo(LAYERS, ATTENTION)) == (False, True)
    assert translate(bans=["model.layers.*.mlp: recompute"]).allow.redo(LAYERS, GATE) is False  # type: ignore[misc]


def test_recompute_forbids_to_keep_what_is_inside() -> None:
    allow = translate(pins=["model.layers.*.mlp: recompute"]).allow
    assert allow.forbids_keeping
    assert allow.keep is not None
    assert allow.keep_inside is not None
    inside = ("mlp_gate_proj_linear", "mlp_up_proj_linear", "mlp_mul")
    assert not any(allow.keep(LAYERS, tensor) for tensor in inside)
    outside = ("mlp_down_proj_linear", "post_attention_layernorm_mul_1", "mlp_gate_proj_weight", "add")
    assert all(allow.keep(LAYERS, tensor) for tensor in outside)
    assert not allow.keep_inside(LAYERS, "mlp_mul")
    assert allow.keep_inside(LAYERS, ATTENTION)
    layer = translate(bans=["model.layers.*: keep"]).allow
    assert layer.keep is not None
    results = [t for unit in llama()[1].region[LAYERS].units for t in unit.results]
    assert [t for t in results if layer.keep(LAYERS, t)] == ["add_1"], "only what the next layer gets"


def test_a_pin_on_one_of_equal_layers_holds_for_all_and_says_so() -> None:
    found = translate(pins=["model.layers.1.mlp: tensor=gpu"])
    assert roles(found.allow, GATE, 1) == {"tensor"}
    (note,) = found.notes
    assert "names 1 of 2 equal layers model.layers.*: they share one decision, so it holds for all of them" in note
    assert translate(pins=["model.layers.[01].mlp: tensor=gpu"]).notes == ()
    (note,) = translate(parameters={"model.layers.0.mlp.up_proj.weight": "S(0) on gpu"}).notes
    assert "names 1 of the 2 equal parameters" in note


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no such module": (
        {"pins": ["model.layer.3.mlp: tensor=gpu"]},
        r"pin 'model\.layer\.3\.mlp: tensor=gpu' matches nothing: .* Did you mean model\.layers\.\*\.mlp ",
    ),
    "no module like it": ({"bans": ["zzz: tensor=gpu"]}, r"ban 'zzz: tensor=gpu' matches nothing: .*There are model, "),
    "no such kind": (
        {"pins": ["kind=conv: tensor=gpu"]},
        r"no unit of kind 'conv'; there are attention, embedding, loss, matmul",
    ),
    "no such op": ({"pins": ["op=liner: tensor=gpu"]}, r"there is no op 'liner'\. Did you mean linear"),
    "not both": ({"pins": ["lm_head kind=attention: tensor=gpu"]}, r"there are units of kind matmul"),
    "no such parameter": (
        {"parameters": {"lm_head.weigth": "whole"}},
        r"matches no parameter\. Did you mean lm_head\.weight\?",
    ),
    "parameters by kind": ({"pins": ["kind=matmul: rest=whole"]}, "not of kinds or ops"),
    "no such axis": ({"pins": ["**: batch=gpus"]}, r"mesh, which has node, gpu\. Did you mean gpu\?"),
    "no such role there": (
        {"pins": ["model.norm: tensor=gpu"]},
        r"cannot hold: model_norm_mean of end can be on gpu batch, hidden, none, sequence; model_norm_mul_1 of end",
    ),
    "no such factor": ({"pins": ["lm_head: factor=q on gpu"]}, r"lm_head_linear of end can be on gpu b0, b1, k, n, none"),
    "no such placement": ({"pins": ["lm_head: out=S(5) on gpu"]}, r"lm_head_linear of end has on gpu lm_head_linear I"),
    "a dim that the parameter lacks": (
        {"parameters": {"lm_head.weight": "S(5) on gpu"}},
        r"cannot hold: lm_head\.weight \[128, 64\] can rest on gpu I, S\(0\), S\(1\)",
    ),
    "nothing is left": (
        {"bans": ["lm_head: batch=gpu", "lm_head: sequence=gpu, tensor=gpu, none=gpu"]},
        r"ban 'lm_head: batch=gpu', .* contradict each other: .* unit lm_head_linear of end",
    ),
    "two pins": (
        {"pins": ["model.layers.*.mlp: tensor=gpu", "kind=attention: batch=gpu", "kind=matmul: batch=gpu"]},
        r"^pin 'model\.layers\.\*\.mlp: tensor=gpu' and pin 'kind=matmul: batch=gpu' contradict each other",
    ),
    "a pin and a ban": (
        {"pins": ["kind=matmul: tensor=gpu"], "bans": ["model.layers.*.self_attn: tensor=gpu"]},
        r"^pin 'kind=matmul: tensor=gpu' and ban 'model\.layers\.\*\.self_attn: tensor=gpu' contradict",
    ),
    "placements of one parameter": (
        {"pins": ["lm_head: zero3=gpu"], "parameters": "whole"},
        r"^pin 'lm_head: zero3=gpu' and parameters whole contradict each other: .* parameter lm_head\.weight",
    ),
    "keep and recompute": (
        {"pins": ["model.layers.*.mlp: keep", "model.layers.*: recompute"]},
        r"^pin 'model\.layers\.\*\.mlp: keep' and pin 'model\.layers\.\*: recompute' contradict each other at unit mlp_",
    ),
    "recompute although never": (
        {"pins": ["model.layers.*: recompute"], "recompute": "never"},
        r"pin 'model\.layers\.\*: recompute' and recompute never contradict each other",
    ),
    "rows and a pin": (
        {"pins": ["**: batch=*"], "min_micro_batch": 4},
        r"pin '\*\*: batch=\*' and min_micro_batch 4 contradict each other",
    ),
    "more rows than there are": ({"min_micro_batch": 9}, r"min_micro_batch 9 is more than the whole batch, 8 rows"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_hold_is_said(name: str) -> None:
    fields, message = WRONG[name]
    with pytest.raises(ConstraintError, match=message):
        translate(**fields)


def test_factors_that_do_not_divide() -> None:
    """8 rows cannot be cut over 3 devices, and the pin must hold for a product: it is named with its choices."""
    with pytest.raises(ConstraintError, match=r"pin '\*\*: batch=\*' cannot hold: .*embedding of start can be on gpu none"):
        wanted(Constraints(pins=["**: batch=*"]), *llama("3"))


def test_rules_that_fit_every_unit_but_leave_no_plan_are_blamed() -> None:
    """The residual sum can pass partial sums on, but what comes from the layer before is none; the other rule is innocent."""
    builder, problem = llama()
    partial, fine = "model.layers.* op=add: partial=gpu", "model.layers.*.mlp: tensor=gpu"
    error = blame(Constraints(pins=(partial, fine)), builder, problem)
    assert error is not None
    assert str(error).startswith(f"pin {partial!r} leaves no plan on mesh 2x2: ")
    assert fine not in str(error)
    assert blame(Constraints(pins=(fine,)), builder, problem) is None
