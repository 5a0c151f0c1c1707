"""Every row of the rule table, proved by running all strategies of it; one golden line per row."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autopar.errors import RuleError
from autopar.ir.placement import Placement
from autopar.ops import fits, tables
from autopar.ops.factors import Dims
from autopar.ops.proof import Call, prove, unit_of
from autopar.ops.rule import OpRule
from autopar.ops.strategies import strategies
from autopar.ops.units import compose, fitted, rule_of
from tests.ops.examples import EXAMPLES, POINTWISE
from tests.ops.pick import Pick

aten = torch.ops.aten
ALL = {**EXAMPLES, **POINTWISE}
ops = pytest.mark.parametrize("op", ALL, ids=str)
GOLDEN = Path(__file__).parents[1] / "golden" / "rules.txt"


def x(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


def classes(count: int) -> torch.Tensor:
    """Of 4 tokens: one ignored, the first and the last one there are."""
    return torch.tensor([0, -100, count - 1, count // 2])


loss = aten.cross_entropy_loss.default
UNEVEN: Mapping[str, Callable[[int], list[Any]]] = {
    "embedding": lambda n: [Call(aten.embedding.default, (x(n, 3), torch.tensor([[0, n - 1], [n // 2, n - 1]]), n // 2))],
    "linear": lambda n: [Call(aten.linear.default, (x(4, 8), x(n, 8)))],
    "linear with bias": lambda n: [Call(aten.linear.default, (x(4, 8), x(n, 8), x(n)))],
    "addmm": lambda n: [Call(aten.addmm.default, (x(n), x(4, 8), x(8, n)), {"beta": 2})],
    "addmm with one bias for all": lambda n: [Call(aten.addmm.default, (x(1), x(4, 8), x(8, n)))],
    "mm with a transposed table": lambda n: [
        Call(aten.t.default, (x(n, 8),)),
        lambda table: Call(aten.mm.default, (x(4, 8), table)),
    ],
    "loss": lambda n: [Call(loss, (x(4, n), classes(n)))],
    "loss whose logits are far from those of the padding": lambda n: [
        Call(loss, ((x(4, n) - 2000).detach().requires_grad_(), classes(n)))
    ],
    "loss with smoothing": lambda n: [Call(loss, (x(4, n), classes(n)), {"reduction": 2, "label_smoothing": 0.2})],
    "scaled and flattened logits": lambda n: [
        Call(aten.mul.Tensor, (x(2, 2, n), 0.5)),
        lambda logits: Call(aten.view.default, (logits, [4, n])),
        lambda logits: Call(loss, (logits, classes(n))),
    ],
}
"""Chains of ops over a factor of so many elements."""


def quick(examples: int) -> Any:
    skipped = list(HealthCheck)
    return settings(derandomize=True, database=None, max_examples=examples, deadline=None, suppress_health_check=skipped)


def drawn(op: Any, data: st.DataObject) -> Call:
    return ALL[op](Pick(lambda choices: choices[data.draw(st.integers(0, len(choices) - 1))]))


def test_every_row_has_examples() -> None:
    assert set(EXAMPLES) == set(tables.TABLE)
    assert all(tables.rule_for(op) is tables.POINTWISE for op in POINTWISE)


@ops
def test_usual_case(op: Any) -> None:
    """On two axes, so that every pair of factors is cut together."""
    assert prove(*unit_of([ALL[op](Pick())]), (2, 2)) > 0


@ops
@quick(5)
@given(data=st.data())
def test_strategies(op: Any, data: st.DataObject) -> None:
    unit, operands = unit_of([drawn(op, data)])
    for sizes in ((2,), (3,)):
        prove(unit, operands, sizes)


@pytest.mark.slow
@ops
@quick(40)
@given(data=st.data())
def test_strategies_on_many_shapes(op: Any, data: st.DataObject) -> None:
    unit, operands = unit_of([drawn(op, data)])
    prove(unit, operands, data.draw(st.sampled_from([(2,), (3,), (2, 2)])))


@pytest.mark.parametrize(("size", "sizes"), [(7, (2,)), (11, (3,)), (10, (4,)), (14, (2, 4)), (7, (2, 2))], ids=str)
@pytest.mark.parametrize("name", UNEVEN)
def test_factors_that_are_cut_unevenly(name: str, size: int, sizes: tuple[int, ...]) -> None:
    """Padding of values may hold anything, that of gradients is zero on the way in and on the way out."""
    unit, operands = unit_of(UNEVEN[name](size))
    uneven = [s for s in strategies(unit, sizes) if s.padded(unit, sizes)]
    assert {f for s in uneven for f in s.padded(unit, sizes)} == unit.ragged
    assert prove(unit, operands, sizes, uneven) > 0


ELEMENTWISE = OpRule(kind="pointwise", fit=fits.elementwise)
WRONG_ROWS: Mapping[str, tuple[OpRule, Call]] = {
    "softmax may be cut along its dim": (ELEMENTWISE, Call(aten.softmax.int, (x(4, 6), 1))),
    "gelu of a sum is the sum of gelus": (replace(ELEMENTWISE, linear=True), Call(aten.gelu.default, (x(4),))),
    "a product of sums is the sum of products": (replace(ELEMENTWISE, linear=True), Call(aten.mul.Tensor, (x(4), x(4)))),
    "the bias of every shard is added": (
        OpRule(kind="matmul", text="b* k, n k, n -> b* n"),
        Call(aten.linear.default, (x(4, 6), x(2, 6), x(2))),
    ),
    "a maximum is a sum": (OpRule(kind="reduction", fit=fits.reduction), Call(aten.amax.default, (x(4, 6), [1]))),
    "sums over tokens of a mean are its mean": (
        OpRule(kind="loss", text="t v!, t ->"),
        Call(aten.cross_entropy_loss.default, (x(4, 6), torch.tensor([0, -100, 3, 1]))),
    ),
    "queries of causal attention are alike": (
        OpRule(kind="attention", text="b h q d!, b h k! d!, b h k! e! -> b h q e!"),
        Call(aten.scaled_dot_product_attention.default, (x(2, 2, 4, 2), x(2, 2, 4, 2), x(2, 2, 4, 2)), {"is_causal": True}),
    ),
    "what is added to is added on every device": (
        OpRule(kind="norm", text="i c, t, t c -> i c"),
        Call(aten.index_add.default, (x(2, 6), 0, torch.tensor([0, 1, 1, 0]), x(4, 6))),
    ),
    "rows that others have are read as one's own": (
        OpRule(kind="norm", text="i c, t -> t c"),
        Call(aten.index_select.default, (x(4, 6), 0, torch.tensor([0, 1, 1, 0]))),
    ),
}


@pytest.mark.parametrize("name", WRONG_ROWS)
def test_wrong_row_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rule, call = WRONG_ROWS[name]
    prove(*unit_of([call]), (2,))
    monkeypatch.setitem(tables.USER_RULES, call.target, rule)
    with pytest.raises(RuleError):
        prove(*unit_of([call]), (2,))


def test_forgotten_gradient_reduction_is_caught() -> None:
    """The forward is right if a weight is called invariant while tokens are cut, its gradient is not."""
    unit, operands = unit_of([Call(aten.linear.default, (x(4, 6), x(2, 6)))])
    (right,) = (s for s in strategies(unit, (2,)) if s.factors == ("b0",))
    assert [str(p) for p in right.operands] == ["S(0)", "R"]
    prove(unit, operands, (2,), [right])
    wrong = replace(right, operands=(right.operands[0], Placement(("I",))))
    with pytest.raises(RuleError, match="ranks differ on I"):
        prove(unit, operands, (2,), [wrong])


def test_attributes_that_tie_dims_keep_them_whole() -> None:
    """Each of these once passed for the usual case: found by running."""
    grouped = unit_of([Call(aten.conv1d.default, (x(4, 4, 6), x(4, 2, 3), None, [1], [0], [1], 2))])[0]
    assert {s.factors for s in strategies(grouped, (2,))} == {(None,), ("b",), ("g",)}
    overlapping = unit_of([Call(aten.max_pool2d.default, (x(4, 4, 4, 4), [2, 2], [2, 1]))])[0]
    assert set(overlapping.shardable) == {"d0", "d1", "y0"}
    counted = unit_of([Call(aten.embedding.default, (x(4, 6), torch.tensor([[0, 1], [1, 1]]), -1, True))])[0]
    assert counted.shardable == ("h",)
    shifted = unit_of([Call(aten.constant_pad_nd.default, (x(4, 6), [1, -1]))])[0]
    assert shifted.shardable == ("d0",)


@pytest.mark.parametrize("sizes", [(2,), (2, 2)])
@pytest.mark.parametrize("mode", [0, 1, 2])
def test_bags_of_one_length_may_be_cut(mode: int, sizes: tuple[int, ...]) -> None:
    """Offsets that a program counts out say where bags are; with others only rows and the hidden dim of the table are known."""
    table, ids = x(6, 2), torch.tensor([5, 0, 3, 3, 1, 4, 2, 0])
    counted = Call(aten.arange.start_step, (0, 8, 2), {"device": torch.device("cpu")})
    bags = [counted, lambda at: Call(aten._embedding_bag.default, (table, ids, at, False, mode), read=1)]
    chain, _ = unit_of(bags)
    unit = compose(chain.nodes[1:])
    assert set(unit.shardable) == ({"v", "h", "b"} if mode < 2 else {"h", "b"})
    values = {"arange_start_step": torch.arange(0, 8, 2)}
    operands = [values.get(node.name, node.meta["val"]) for node in unit.operands]
    assert prove(unit, operands, sizes) > 2


COLUMNS = torch.tensor([5, 0, 2, -1])
ROW_BY_ROW: Mapping[str, Sequence[Callable[[torch.Tensor], Call]]] = {
    "read": [lambda at: Call(aten.index.Tensor, (x(4, 6, 2), [at, COLUMNS]))],
    "read, more positions": [
        lambda at: Call(aten.unsqueeze.default, (at, 1)),
        lambda at: Call(aten.index.Tensor, (x(4, 6, 2), [at, COLUMNS.view(4, 1).repeat(1, 6)])),
    ],
    "write": [lambda at: Call(aten.index_put.default, (x(4, 6, 2), [at, COLUMNS], x(4, 2)))],
    "add": [lambda at: Call(aten.index_put.default, (x(4, 6, 2), [at, COLUMNS], x(4, 2), True))],
}


@pytest.mark.parametrize("sizes", [(2,), (2, 2)])
@pytest.mark.parametrize("name", ROW_BY_ROW)
def test_rows_that_are_read_one_by_one_may_be_cut(name: str, sizes: tuple[int, ...]) -> None:
    """x[arange(n), at]: a row of x for each position."""
    numbers = Call(aten.arange.start_step, (0, 4), {"device": torch.device("cpu")})
    chain, _ = unit_of([numbers, *ROW_BY_ROW[name]])
    unit = compose(chain.nodes[1:])
    values = {"arange_start_step": torch.arange(4)}
    assert any(mark.endswith(":b0") for marks in unit.marks.values() for mark in marks)
    assert prove(unit, [values.get(node.name, node.meta["val"]) for node in unit.operands], sizes) > 2


@pytest.mark.parametrize("sizes", [(2,), (2, 2)])
def test_merged_dims_are_cut_where_rows_stay_together(sizes: tuple[int, ...]) -> None:
    """What knows its rows by their place cannot be cut along the inner part of a merged dim: the pieces would be scattered."""
    ids = torch.tensor([0, 5, 7])
    merged = Call(aten.reshape.default, (x(2, 4, 6), [8, 6]))
    table, operands = unit_of([merged, lambda rows: Call(aten.embedding.default, (rows, ids))])
    assert prove(table, operands, sizes) > 0
    assert {s.factors for s in strategies(table, (2,))} == {(None,), ("i0",), ("d1",)}


def described(op: Any) -> str:
    """The rule of the usual case: factors by dim, (several) in one, 1 for none, - for no tensor; then what they are."""
    node = next(n for n in unit_of([ALL[op](Pick())])[0].nodes)
    found, rule = fitted(node), rule_of(node)

    def tensor(dims: Dims | None) -> str:
        if dims is None:
            return "-"
        return " ".join(d[0] if len(d) == 1 else f"({' '.join(d)})" if d else "1" for d in dims) or "()"

    sides = [", ".join(map(tensor, side)) for side in (found.operands, found.results)]
    marks = [f"{f} {' '.join(sorted(m.split(':')[0] for m in ms))}" for f, ms in found.marks.items() if ms]
    marks += [f"{f} ragged" for f in sorted(rule.ragged & found.sizes.keys())]
    flags = [name for name, on in (("linear", rule.is_linear(node)), ("random", rule.random)) if on]
    return f"{op} [{rule.kind}]: {' -> '.join(sides)}{''.join(f'; {note}' for note in (*marks, *flags))}"


def test_golden_lines() -> None:
    """Run with REGOLD=1 to write them anew."""
    lines = "".join(f"{described(op)}\n" for op in ALL)
    if os.environ.get("REGOLD"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(lines)
    assert lines == GOLDEN.read_text()
