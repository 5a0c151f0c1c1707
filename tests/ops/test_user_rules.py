"""op_rule on functions and module classes: the ops that they become, and what is said of rows that cannot be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import autopar
from autopar.errors import RuleError
from autopar.ops import tables
from autopar.ops.row_sizes import product_flops
from autopar.ops.rule import fit_text, parse
from autopar.ops.user_rules import OPS
from autopar.torch_private import fake_mode
from tests.own_rules import Gated, routed


def x(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


def test_an_own_op_gives_what_the_function_gives_and_its_gradients() -> None:
    given = x(6, 4), x(5, 4)
    op = OPS[routed]
    found, wanted = op(*given), routed(*given)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    cotangent = torch.randn(6, 5, dtype=torch.float64)
    for ours, theirs in zip(*(torch.autograd.grad(y, given, cotangent) for y in (found, wanted)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    torch.library.opcheck(op, given)  # what torch asks of an op: schema, autograd, fake results


def test_several_results_attributes_and_integers() -> None:
    @autopar.op_rule("t k -> t k, t k, t", kind="norm", shape=lambda y, scale, flip: (y, y, torch.empty_like(y[:, 0]).long()))
    def three(y: Tensor, scale: float = 2.0, flip: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        return y, (-y if flip else y) * scale, y.argmax(1)

    given = x(3, 4)
    same, scaled, index = OPS[three](given, 3.0, True)
    torch.testing.assert_close(scaled, -3 * given, rtol=0, atol=0)
    assert same.untyped_storage().data_ptr() != given.untyped_storage().data_ptr()
    assert index.tolist() == given.argmax(1).tolist()
    (gradient,) = torch.autograd.grad(scaled.sum() + 2 * same.sum(), [given])
    torch.testing.assert_close(gradient, torch.full_like(given, -1.0), rtol=0, atol=0)


def test_results_without_data_have_the_shapes_that_follow_from_the_row() -> None:
    with fake_mode():
        found = routed(torch.empty(6, 4, dtype=torch.bfloat16), torch.empty(5, 4, dtype=torch.bfloat16))
    assert (tuple(found.shape), found.dtype) == ((6, 5), torch.bfloat16)
    assert tuple(routed(torch.empty(3, 4, device="meta"), torch.empty(5, 4, device="meta")).shape) == (3, 5)


def test_a_subclass_has_the_rule_unless_it_has_a_forward_of_its_own() -> None:
    from autopar.ir.opaque import opaque_of

    class Same(Gated):
        pass

    class Other(Gated):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    assert opaque_of(Gated(4, 8)) is opaque_of(Same(4, 8)) is not None
    assert opaque_of(Other(4, 8)) is None


def test_products_are_counted_one_after_the_other() -> None:
    assert product_flops("b* k, n k, n -> b* n", [(7, 8, 3), (5, 3), (5,)]) == 2 * 7 * 8 * 3 * 5
    assert product_flops("t k, e n k, e k n -> t k", [(8, 4), (2, 16, 4), (2, 4, 16)]) == 2 * 2 * 8 * 2 * 16 * 4
    assert product_flops("b h -> b h", [(8, 4)]) == 0
    experts = [(8, 4), (8, 3), (16, 4), (4, 16), (16, 4), (4, 16)]
    assert product_flops("t i, t e, h i, i h, h i, i h -> t i", experts) == 5 * 2 * 8 * 16 * 4


ROWS = {
    "t k, e k $n -> t n": ("'$n' is no factor", 9),
    "t k, e K n -> t n": ("'K' is no factor", 7),
    "t k, e k n - > t n": ("no '->' before the results", 18),
    "t k -> t -> k": ("more than one '->'", 9),
    "t k k -> t": ("this one k twice", 4),
    "a* b* -> a*": ("one factor with * at most", 3),
    "b** -> b*": ("'b**' is no factor", 2),
    "b (h d) -> b h d": ("'(h' is no factor", 2),
}


@pytest.mark.parametrize("text", ROWS)
def test_a_typo_has_a_caret_under_its_character(text: str) -> None:
    message, column = ROWS[text]
    with pytest.raises(RuleError) as caught:
        autopar.op_rule(text)
    first, row, caret = str(caught.value).split("\n")
    assert message in first
    assert row == f"    {text}"
    assert caret == f"    {' ' * column}^"
    assert isinstance(caught.value, ValueError)


def test_rows_that_have_no_typo_have_no_error() -> None:
    assert parse("b* k!, 1 1, -> b* , 1") == ((("b*", "k"), ("1", "1"), ()), (("b*",), ("1",)), frozenset({"k"}))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(4, 6), (2, 8, 5)], r"factor k is 6 in dim 1 of operand 0 \[4, 6\], but 8 in dim 1 of operand 1 \[2, 8, 5\]"),
        ([(4, 6), (2, 6, 7)], r"factor n is 7 in dim 2 of operand 1 \[2, 6, 7\], but 5 in dim 1 of result 0 \[4, 5\]"),
        ([(4, 6), (6, 5)], r"does not fit operand 1 of shape \[6, 5\]: it has e k n there"),
        ([(4, 6), (2, 6, 5), (5,)], r"is of 2 operands and 1 results, and does not fit 3 operands and 1 results"),
    ],
)
def test_shapes_that_disagree_name_the_factor_and_both_places(shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(RuleError, match=message):
        fit_text("t k, e k n -> t n", shapes, [(4, 5)])


def plain(y: Tensor) -> Tensor:
    return y


def many(*tensors: Tensor) -> Tensor:
    return tensors[0]


def listed(tensors: list[Tensor]) -> Tensor:
    return tensors[0]


def strange(y: Tensor, how: object) -> Tensor:
    return y


def two(y: Tensor, z: Tensor) -> Tensor:
    return y + z


WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: autopar.op_rule("a -> a b")(plain), r"no operand has b: say the shapes of the results"),
    (lambda: autopar.op_rule("a -> a", kind="magic"), r"kind 'magic' .* is none of matmul, attention"),
    (lambda: autopar.op_rule("a -> a", sharded={"b": plain})(plain), r"no factor 'b' that could be cut"),
    (lambda: autopar.op_rule("a! -> a", sharded={"a": plain})(plain), r"no factor 'a' that could be cut"),
    (
        lambda: autopar.op_rule("a -> a", sharded={"a": "linaer"})(plain),
        r"no implementation 'linaer'; it has embedding, linear",
    ),
    (lambda: autopar.op_rule("a -> a")(many), r"many takes any number of arguments \(\*tensors\)"),
    (lambda: autopar.op_rule("a -> a")(listed), r"listed takes 'tensors', a list of tensors"),
    (lambda: autopar.op_rule("a -> a")(strange), r"strange takes 'how' of type .*object.*: an op takes tensors, numbers"),
    (lambda: autopar.op_rule("a -> a")(two), r"is of 1 operands, two has 2 tensors"),
    (lambda: autopar.op_rule("a -> a")(3), r"3 is no op, function or module class"),
]


@pytest.mark.parametrize(("decorate", "message"), WRONG)
def test_what_can_have_no_rule(decorate: Callable[[], Any], message: str) -> None:
    before = dict(tables.USER_RULES)
    with pytest.raises(RuleError, match=message):
        decorate()
    assert before == tables.USER_RULES


def test_what_an_op_returns_must_be_what_its_rule_says() -> None:
    @autopar.op_rule("t k -> t k")
    def turned(y: Tensor) -> Tensor:
        return y.t()

    @autopar.op_rule("t k -> t k, t k")
    def alone(y: Tensor) -> Tensor:
        return y

    @autopar.op_rule("t k -> t k")
    def writes(y: Tensor) -> Tensor:
        return y.detach().mul_(2)

    with pytest.raises(RuleError, match=r"turned returns float64\[4, 3\] as result 0, and float64\[3, 4\] by its rule"):
        OPS[turned](x(3, 4))
    with pytest.raises(RuleError, match=r"alone returns \(Tensor\), its rule has 2 results"):
        OPS[alone](x(3, 4))
    with pytest.raises(RuleError, match=r"writes writes into a tensor that it was given: clone that first"):
        OPS[writes](x(3, 4))


def test_the_version_of_a_rule_is_that_of_its_code() -> None:
    rules = []
    for text in ("def f(y):\n    return y\n", "def f(y):\n    return y + 1\n"):
        names: dict[str, Any] = {"__name__": "made_here"}
        exec(text, names)
        rules.append(tables.rule_for(OPS[autopar.op_rule("a -> a")(names["f"])]))
    assert rules[0] is not None
    assert rules[1] is not None
    assert rules[0].version != rules[1].version


def test_two_implementations_of_one_op_are_not_asked_for_together() -> None:
    from autopar.ops.proof import Call, unit_of
    from autopar.ops.strategies import strategies

    def by_rows(y: Tensor, w: Tensor, **_: Any) -> Tensor:
        return y @ w

    def by_columns(y: Tensor, w: Tensor, **_: Any) -> Tensor:
        return y @ w

    @autopar.op_rule("t k, k n -> t n", sharded={"t": by_rows, "n": by_columns})
    def product(y: Tensor, w: Tensor) -> Tensor:
        return y @ w

    unit, _ = unit_of([Call(OPS[product], (x(4, 6), x(6, 8)))])
    found = {s.factors for s in strategies(unit, (2, 2))}
    assert ("t", "t") in found
    assert ("t", "k") in found
    assert not {("t", "n"), ("n", "t")} & found


def test_a_class_takes_its_attributes_by_their_types() -> None:
    @autopar.op_rule("b k, k -> b k", kind="pointwise")
    class Power(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, y: Tensor, times: int, negative: bool = False) -> Tensor:
            for _ in range(times):
                y = y * self.scale
            return -y if negative else y

    report = autopar.check_rule(Power(), x(6, 4), 2, kwargs={"negative": True})
    assert set(report.cut) == {"b", "k"}
