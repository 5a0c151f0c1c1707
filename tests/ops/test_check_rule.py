"""check_rule: right rules are proved strategy by strategy, wrong ones caught with the counterexample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import autopar
from autopar.errors import InputError, RuleError
from autopar.ops import tables
from autopar.ops.user_rules import OPS
from tests.own_rules import Gated, cut_hidden, routed


def x(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_right_rules_are_proved() -> None:
    report = autopar.check_rule("aten.linear", x(4, 6), x(2, 6), x(2))
    assert report.cut == ("b0", "k", "n")
    assert {s.mesh for s in report.strategies} == {(2,), (3,), (2, 2)}
    assert len({s.shapes for s in report.strategies}) > 3
    assert ("k", "n") in {s.factors for s in report.strategies}
    assert "aten.linear.default is what its rule says" in str(report)
    assert autopar.check_rule(routed, x(4, 6), x(3, 6), meshes=((2,),), shapes=1).cut == ("t", "n")


def test_an_own_implementation_is_proved() -> None:
    report = autopar.check_rule(Gated(4, 6), x(2, 3, 4), meshes=((2,), (2, 2)), shapes=1)
    assert set(report.cut) == {"b0", "b1", "n", "m"}


def test_an_own_implementation_that_is_wrong_is_caught() -> None:
    """The offset is added on every device."""

    def forgets(self: Any, x: Tensor, *state: Tensor, axes: Any, coordinates: Any) -> Tensor:
        return cut_hidden(self, x, *state, axes=axes, coordinates=[torch.zeros_like(c) for c in coordinates])

    text = "b* k!, n k!, n k!, m! n, m! -> b* m!"
    names = ("gate", "up", "down.weight", "offset")
    autopar.check_rule(Gated(4, 6), x(2, 4), rule=text, params=names, sharded={"n": cut_hidden}, meshes=((2,),), shapes=0)
    with pytest.raises(RuleError, match="result 0 has") as caught:
        autopar.check_rule(Gated(4, 6), x(2, 4), rule=text, params=names, sharded={"n": forgets}, meshes=((2,),), shapes=0)
    assert caught.value.factors == ("n",)


def test_the_counterexample_is_told() -> None:
    with pytest.raises(RuleError) as caught:
        autopar.check_rule("aten.linear", x(4, 6), x(2, 6), x(2), rule="b* k, n k, n -> b* n")
    error = caught.value
    assert (error.op, error.mesh, error.factors) == ("aten.linear.default", (2,), ("k",))
    assert error.shapes == ((4, 6), (2, 6), (2,))
    assert error.operands == ("S(1)", "S(1)", "R")
    assert error.results == ("P",)
    text = str(error)
    assert "cut      k on axis 0 of 2" in text
    assert "operand  1: [2, 6] as S(1), gradient as S(1)" in text
    assert "8 of 8 elements are off" in text
    assert "mark it whole (k!)" in text
    rule = tables.rule_for(torch.ops.aten.linear.default)
    assert rule is not None
    assert rule.sharded == {"k": "linear"}, "the row that was tried is forgotten"


def softmax(y: Tensor) -> Tensor:
    return y.softmax(1)


def maximum(y: Tensor) -> Tensor:
    return y.amax(1)


def global_mean(y: Tensor) -> Tensor:
    return y - y.mean().item()


WRONG: list[tuple[Callable[..., Tensor], str, tuple[Tensor, ...], str]] = [
    (softmax, "a b -> a b", (x(4, 6),), "b"),
    (maximum, "a b -> a", (x(4, 6),), "b"),
    (global_mean, "a b! -> a b!", (x(4, 6),), "a"),
]


@pytest.mark.parametrize(("function", "rule", "given", "factor"), WRONG, ids=lambda value: getattr(value, "__name__", ""))
def test_a_wrong_rule_of_a_function_is_caught(
    function: Callable[..., Tensor], rule: str, given: tuple[Tensor, ...], factor: str
) -> None:
    with pytest.raises(RuleError) as caught:
        autopar.check_rule(function, *given, rule=rule)
    assert factor in caught.value.factors
    assert not any(function.__name__ in str(op) for op in tables.USER_RULES)


def test_a_gradient_alone_that_is_wrong_is_caught() -> None:
    """Forward does not depend on the weight; its gradient depends on how many rows there are."""

    def scaled(y: Tensor, w: Tensor) -> Tensor:
        return y + (w - w.detach()).sum() * y.shape[0]

    with pytest.raises(RuleError, match="the gradient of operand 1 has") as caught:
        autopar.check_rule(scaled, x(4, 6), x(3), rule="t k, n! -> t k", meshes=((2,),))
    assert caught.value.factors == ("t",)
    assert set(autopar.check_rule(scaled, x(4, 6), x(3), rule="t! k, n! -> t! k", meshes=((2,),)).cut) == {"k"}


def test_code_that_gives_something_else_each_time_is_caught() -> None:
    def noisy(y: Tensor) -> Tensor:
        return y * torch.rand_like(y)

    with pytest.raises(RuleError, match=r"noisy.* gives something else when it runs again"):
        autopar.check_rule(noisy, x(4, 6), rule="a b -> a b")


def test_shapes_that_do_not_fit_are_said_before_anything_runs() -> None:
    wanted = r"factor k is 6 in dim 1 of operand 0 \[4, 6\], but 5 in dim 1 of operand 1 \[3, 5\]"
    with pytest.raises(RuleError, match=wanted):
        autopar.check_rule(routed, x(4, 6), x(3, 5))
    with pytest.raises(RuleError, match=r"does not fit operand 0 of shape \[4, 6\]"):
        autopar.check_rule("aten.relu", x(4, 6), rule="a -> a")


def test_what_has_no_rule() -> None:
    with pytest.raises(InputError, match=r"aten\.renorm\.default has no rule to check"):
        autopar.check_rule("aten.renorm.default", x(4, 6), 2, 1, 1.0)
    with pytest.raises(InputError, match=r"Linear has no rule to check"):
        autopar.check_rule(nn.Linear(6, 2), x(4, 6))
    with pytest.raises(InputError, match=r"there is no op 'aten\.linaer'\. Did you mean aten\.linear"):
        autopar.check_rule("aten.linaer", x(4, 6))


def test_a_class_that_is_not_yet_decorated_can_be_tried() -> None:
    report = autopar.check_rule(nn.Linear(6, 4, bias=False), x(4, 6), rule="b* k, n k -> b* n", meshes=((2,),), shapes=0)
    assert report.cut == ("b0", "k", "n")
    with pytest.raises(RuleError, match=r"result 0 has") as caught:
        autopar.check_rule(nn.Linear(6, 4), x(4, 6), rule="b* k, n k, n -> b* n", meshes=((2,),), shapes=0)
    assert caught.value.factors == ("k",), "the bias is added on each device"
    with pytest.raises(RuleError, match=r"leaves out 'bias': name all"):
        autopar.check_rule(nn.Linear(6, 4), x(4, 6), rule="b* k, n k -> b* n", params=("weight",))


def test_other_shapes_are_drawn_like_the_example() -> None:
    """Positive stays positive, and an index stays one of those that there were."""
    seen: list[tuple[float, int]] = []

    @autopar.op_rule("v h, t -> t h", kind="embedding", sharded={})
    def rows(table: Tensor, index: Tensor) -> Tensor:
        seen.append((float(table.detach().min()), int(index.max())))
        return table.log()[index]

    with pytest.raises(RuleError) as caught:
        autopar.check_rule(rows, x(6, 4).abs() + 0.1, torch.tensor([0, 5, 3, 3]), meshes=((2,),))
    assert caught.value.factors == ("v",), "rows that another device has"
    whole = "v! h, t -> t h"
    tables.USER_RULES.pop(OPS[rows])
    report = autopar.check_rule(rows, x(6, 4).abs() + 0.1, torch.tensor([0, 5, 3, 3]), rule=whole, meshes=((2,), (2, 2)))
    assert report.cut == ("h", "t")
    assert all(low > 0 and high <= 5 for low, high in seen)
