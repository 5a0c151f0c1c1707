"""Rules found by trying: at least what the rows of the table say, never a wrong one, and what stands in the way is said."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from autopar.errors import RuleError
from autopar.ops import discover, tables
from autopar.ops.discovered import found_for, row_text, rule_from
from autopar.ops.proof import Call, prove, unit_of
from autopar.ops.small import Unsuited, form_of, small_calls
from autopar.ops.strategies import strategies
from autopar.ops.units import Unit, fitted
from autopar.torch_private import size_of, symbolic_sizes
from tests.ops import custom_ops as custom
from tests.ops.examples import EXAMPLES, POINTWISE
from tests.ops.fake_nodes import fake, ids, node_of
from tests.ops.pick import Pick

aten = torch.ops.aten
ALL = {**EXAMPLES, **POINTWISE}
SAMPLE = list(ALL)[:: max(1, len(ALL) // 16)]
SHARE = 0.9
MESHES = ((2,), (3,), (2, 2))


@pytest.fixture
def no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nobody had written a row."""
    monkeypatch.setattr(tables, "rule_for", lambda target: None)


def placed(unit: Unit, *, plain: bool) -> set[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Placements of all strategies on one axis of two; `plain`: of those that run the op itself on pieces."""
    found = [s for s in strategies(unit, (2,)) if not (plain and set(s.factors) & set(unit.sharded))]
    return {(tuple(map(str, s.operands)), tuple(map(str, s.results))) for s in found}


def compared(op: Any, monkeypatch: pytest.MonkeyPatch) -> set[Any] | None:
    """Strategies of the usual case that the row has, and discovery does not find; None for ops that draw random numbers, which
    run as another op under every strategy."""
    unit = unit_of([ALL[op](Pick())])[0]
    if unit.sites:
        return None
    with monkeypatch.context() as patch:
        patch.setattr(tables, "rule_for", lambda target: None)
        return placed(unit, plain=True) - placed(unit_of([ALL[op](Pick())])[0], plain=False)


def require_share(ops: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    missed = {op: found for op in ops if (found := compared(op, monkeypatch)) is not None}
    fewer = {str(op): found for op, found in missed.items() if found}
    print(f"of {len(missed)} ops discovery finds fewer strategies than their rows for {len(fewer)}: {fewer}")
    assert len(fewer) <= (1 - SHARE) * len(missed), fewer


@pytest.mark.slow
def test_it_finds_what_rows_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all rows: in a sample of sixteen the share is one op more or less."""
    require_share(list(ALL), monkeypatch)


@pytest.mark.parametrize("op", SAMPLE, ids=str)
def test_what_it_finds_is_right(op: Any, no_rows: None) -> None:
    unit, operands = unit_of([ALL[op](Pick())])
    for sizes in MESHES:
        prove(unit, operands, sizes)


@pytest.mark.slow
@pytest.mark.parametrize("op", ALL, ids=str)
def test_what_it_finds_is_right_on_many_shapes(op: Any, no_rows: None) -> None:
    for seed in range(5):
        call = ALL[op](Pick(random.Random(f"{op} {seed}").choice))
        for sizes in MESHES:
            prove(*unit_of([call]), sizes)


WIDE = fake(1024, 512)
FOUND: dict[str, tuple[Callable[..., Any], tuple[Any, ...], str]] = {
    "a product": (custom.project, (fake(64, 128, 512), fake(1024, 512)), "a b c, d c -> a b d"),
    "a square product": (custom.project, (fake(64, 512, 512), fake(512, 512)), "a b c, d c -> a b d"),
    "without a gradient sums have no placement": (
        custom.project,
        (fake(64, 512, grad=False), fake(512, 512, grad=False)),
        "a b!, c d! -> a c",
    ),
    "a norm over the last dim": (custom.unit_norm, (fake(64, 128, 512), fake(512)), "a b c!, d! -> a b e!"),
    "rows by index": (custom.look_up, (fake(5000, 512), ids(64, 128)), "a! b, c d -> c d b"),
    "a sort": (custom.ordered, (WIDE,), "a! b -> c! b"),
    "two results": (custom.with_energy, (WIDE, fake(512)), "a b, b -> a b, (); a also summed; b also summed"),
    "heads, as many as an argument says": (custom.heads, (fake(64, 128, 512), 8), "a b c! -> a d! b e!; linear"),
    "flattened dims": (custom.merged, (fake(64, 128, 512),), "a b! c -> (a d!) c; linear"),
    "repeated rows": (custom.repeated, (WIDE,), "a b -> (a c!) b; linear"),
    "an argument that is a shape": (
        custom.enlarged,
        (fake(1, 512), [256, 512]),
        "1 a -> b a; linear; argument 1 is a shape",
    ),
    "linear in both": (custom.mixed, (WIDE, WIDE), "a b, a b -> a b; linear"),
    "more rows than it takes": (custom.first_rows, (WIDE, 100), "a! b -> c! b; linear"),
    "a logarithm": (custom.only_positive, (WIDE,), "a b -> a"),
    "only in float32": (custom.single, (WIDE, fake(512, 64)), "a b, b c -> a c"),
    "a sum that large numbers clip": (custom.clipped_sum, (WIDE,), "a! b -> b"),
    "a shift by a power of two": (custom.rolled, (WIDE,), "a! b -> c! b; linear"),
    "a shift that an argument says": (custom.rolled_by, (WIDE,), "a! b -> c! b; linear"),
    "a shift that small sizes divide": (custom.rolled_by, (WIDE, 36), "a! b -> c! b; linear"),
    "blocks that its code knows": (custom.in_blocks, (WIDE,), "a! b -> c! b"),
    "blocks, the last one smaller": (custom.padded_blocks, (WIDE,), "a! b -> c! b"),
    "a window": (custom.windowed, (WIDE,), "a! b -> c! b; linear"),
    "a matrix and its transpose": (custom.symmetric, (fake(512, 512),), "a! b! -> c! d!; linear"),
    "how often an index occurs": (custom.counted, (ids(512), fake(512, 256)), "a!, b! c -> d! c"),
    "the sign of a row": (custom.sign_of_sum, (WIDE,), "a b! -> a c!"),
    "numbers of rows": (custom.positions, (WIDE,), "a! b -> c! b"),
    "gradients that depend on each other": (custom.tilted, (WIDE,), "a! b -> c! b; linear"),
}


@pytest.mark.parametrize("name", FOUND)
def test_rows_of_custom_ops(name: str) -> None:
    op, args, row = FOUND[name]
    node = node_of(op, *args)
    assert row_text(found_for(node), fitted(node)) == row


def x(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


SMALL: dict[Callable[..., Any], tuple[Any, ...]] = {
    custom.project: (x(4, 6, 12), x(6, 12)),
    custom.unit_norm: (x(4, 6, 12), x(12)),
    custom.look_up: (x(6, 4), torch.arange(12).reshape(2, 6) % 6),
    custom.ordered: (x(4, 6),),
    custom.with_energy: (x(4, 6), x(6)),
    custom.merged: (x(4, 6, 2),),
    custom.repeated: (x(4, 6),),
    custom.enlarged: (x(1, 6), [4, 6]),
    custom.mixed: (x(4, 6), x(4, 6)),
    custom.clipped_sum: (10 * x(6, 4).detach().requires_grad_(),),
    custom.rolled: (x(4, 6),),
    custom.rolled_by: (x(12, 6), 6),
    custom.padded_blocks: (x(36, 4),),
    custom.symmetric: (x(6, 6),),
    custom.sign_of_sum: (x(4, 6),),
    custom.tilted: (x(4, 6),),
}


@pytest.mark.parametrize("op", SMALL, ids=str)
def test_strategies_of_custom_ops(op: Any) -> None:
    unit, operands = unit_of([Call(op, SMALL[op])])
    for sizes in MESHES:
        prove(unit, operands, sizes)


WHOLE: dict[str, tuple[Callable[..., Any], tuple[Any, ...], str]] = {
    "all in one": (custom.above_average, (WIDE,), "pieces of its operands do not give pieces, or summands, of its results"),
    "random": (custom.noisy, (WIDE,), "two runs of it differ: it is random, and devices will not agree"),
    "known to be random": (aten.bernoulli.default, (WIDE,), "it draws random numbers"),
    "constant": (custom.forgetful, (WIDE,), "its result 0 is the same whatever it reads"),
    "rarely anything else": (custom.is_huge, (WIDE,), "its result 0 is the same whatever it reads"),
    "infinite": (custom.never_finite, (WIDE,), "its results, or its gradients, are not finite on random numbers"),
    "for other devices": (custom.elsewhere, (WIDE,), "it does not run on small tensors on the CPU (NotImplementedError:"),
    "for one shape": (
        custom.picky,
        (fake(384, 1024),),
        "it does not run on small tensors on the CPU (AssertionError: this op is for one shape only)",
    ),
    "numbers too large": (
        custom.rolled_by,
        (fake(2**20, 64), 2**19),
        "no small operands are to the numbers among its arguments as those of the program are",
    ),
    "in place": (aten.add_.Tensor, (WIDE, WIDE), "it writes into its operands"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_cannot_be_found_is_whole(name: str) -> None:
    op, args, reason = WHOLE[name]
    found = found_for(node_of(op, *args))
    assert found.reason.startswith(reason)
    assert not found.found
    assert rule_from(found).kind == "whole"


def test_shapes_that_depend_on_data_are_not_tried() -> None:
    with symbolic_sizes({}).mode:
        node = node_of(aten.nonzero.default, WIDE, mode=nullcontext())
    assert found_for(node).reason == "the shapes of its results depend on data"


def test_dynamic_sizes_keep_their_symbols() -> None:
    dynamic = symbolic_sizes({"rows": 1024})
    with dynamic.mode:
        node = node_of(custom.project, fake(dynamic.sizes["rows"], 512), fake(256, 512), mode=nullcontext())
    row = fitted(node)
    assert row.sizes == {"a": size_of(dynamic.sizes["rows"]), "b": 512, "c": 256}
    assert row_text(found_for(node), row) == "a b, c b -> a c"


def test_one_warning_names_op_node_line_and_reason(caplog: pytest.LogCaptureFixture) -> None:
    node = node_of(custom.above_average, WIDE, name="mask", source="model.py:12")
    with caplog.at_level(logging.WARNING, "autopar"):
        for _ in range(3):
            assert all("whole" in marks for marks in fitted(node).marks.values())
    (record,) = caplog.records
    for words in ("autopar_tests.above_average.default at mask", "(model.py:12)", "pieces of its operands", "op_rule"):
        assert words in record.getMessage()


def test_calls_alike_are_tried_once() -> None:
    runs = 0

    def counted_copy(x: Tensor) -> Tensor:
        nonlocal runs
        runs += 1
        return x * 2

    op = custom.op_of(counted_copy)
    first, alike, square = node_of(op, WIDE), node_of(op, fake(4096, 8192)), node_of(op, fake(512, 512))
    half = node_of(op, fake(1024, 512, dtype=torch.bfloat16))
    made = runs
    found = found_for(first)
    tried = runs
    assert tried > made
    assert found_for(alike) == found_for(half) == found_for(first) == found
    assert runs == tried
    assert found_for(square) == found
    assert runs > tried, "equal dims are another kind of call"


def test_another_process_finds_the_same() -> None:
    script = (
        "from tests.ops.test_discover import *\n"
        "for op, args, _ in FOUND.values(): print(found_for(node_of(op, *args)), hash(op) and '')"
    )
    seed = {"PYTHONHASHSEED": "7", "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | seed, check=True)
    assert [line.strip() for line in done.stdout.splitlines()] == [
        str(found_for(node_of(op, *args))) for op, args, _ in FOUND.values()
    ]


def test_torchs_generator_stays_where_it_is() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    discover.discover.__wrapped__(small_calls(form_of(node_of(custom.noisy, WIDE))))
    assert torch.equal(torch.get_rng_state(), before)


def test_kernels_that_do_not_check_shapes_do_no_harm() -> None:
    """Batch norm writes past the end of statistics of fewer channels than its input has; attention past that of keys that
    are cut without their values."""
    statistics = (fake(64, grad=False), fake(64, grad=False))
    norm = node_of(
        aten._native_batch_norm_legit_functional.default, fake(32, 64, 28, 28), fake(64), fake(64), *statistics, True, 0.1, 1e-5
    )
    assert [loop.operands for loop in found_for(norm).loops] == [(1, 0, 0, 0, 0)]
    heads = [fake(8, 16, 128, 64)] * 3
    attention = found_for(node_of(aten.scaled_dot_product_attention.default, *heads))
    assert [loop.operands for loop in attention.loops] == [(0, 0, 0), (1, 1, 1), (2, None, None), (None, None, 3)]


def test_targets_that_are_no_ops_are_not_tried() -> None:
    node = node_of(custom.project, fake(64, 512), fake(64, 512))
    node.target = torch.relu
    with pytest.raises(Unsuited, match=r"no operator of torch\.ops"):
        form_of(node)


def test_a_wrong_finding_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that believes whatever has the right shapes finds rules that proofs refuse."""
    monkeypatch.setattr(discover, "holds", lambda trials, loops, **_: True)
    ways = small_calls(form_of(unit_of([Call(custom.ordered, (x(4, 6),))])[0].nodes[0]))
    credulous = rule_from(discover.discover.__wrapped__(ways))
    monkeypatch.setitem(tables.USER_RULES, custom.ordered, credulous)
    with pytest.raises(RuleError):
        prove(*unit_of([Call(custom.ordered, (x(4, 6),))]), (2,))
