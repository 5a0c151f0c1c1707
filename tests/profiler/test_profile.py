"""A profile's FLOPs and saved bytes are those of a real run, and its rows by op, module and region add up to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest
import sympy

from autopar.profiler.profile import Profile
from autopar.profiler.rows import REST
from autopar.profiler.tape import BACKWARD, FORWARD
from tests.profiler.profiled import counted_by_torch, counted_right, dynamic, saved_by_autograd, static, zoo
from tests.zoo import ZOO

each_model = zoo(fast=("gpt2", "bert", "mixtral", "resnet", "mlp"))
each_open_model = zoo(fast=("gpt2", "resnet", "mlp"))
SHARED = ("forward_flops", "backward_flops", "moved_bytes", "saved_bytes")
"""Figures that modules and regions have too."""


@each_model
def test_torch_flops_are_what_flop_counter_mode_counts(name: str, attention: str) -> None:
    """On the CPU as it is, with what it leaves out and what it counts too often."""
    got, eager = static(name, attention).at(), counted_by_torch(name, attention)
    assert (got.torch_forward_flops, got.torch_backward_flops) == (eager.forward, eager.backward)


@each_model
def test_flops_are_all_products_once(name: str, attention: str) -> None:
    """What `FlopCounterMode` counts with formulas for what it leaves out, and right ones for grouped convolutions."""
    got, eager = static(name, attention).at(), counted_right(name, attention)
    assert (got.forward_flops, got.backward_flops) == (eager.forward, eager.backward)


@each_model
def test_ops_have_the_flops_that_each_op_has(name: str, attention: str) -> None:
    eager, ops = counted_right(name, attention), static(name, attention).ops
    for phase, counted in ((FORWARD, eager.forward_by_op), (BACKWARD, eager.backward_by_op)):
        by_op: Counter[str] = Counter()
        for row in ops:
            if row.phase == phase:
                by_op[row.op] += int(row.flops)
        assert +by_op == +Counter(counted)


@each_model
def test_saved_bytes_are_what_autograd_saves(name: str, attention: str) -> None:
    """Each storage once; parameters, buffers and inputs not at all."""
    assert static(name, attention).at().saved_bytes == saved_by_autograd(name, attention)


@each_open_model
def test_rows_add_up(name: str, attention: str) -> None:
    """In closed form: ops to phases, the model's module row and all regions to the whole."""
    figures = dynamic(name, attention)
    for phase in (FORWARD, BACKWARD):
        rows = [row for row in figures.ops if row.phase == phase]
        for kind in ("", "torch_", "other_"):
            total = getattr(figures, f"{kind}{phase}_flops")
            assert equal((row.calls * getattr(row.one, f"{kind}flops") for row in rows), total)
    assert equal((row.bytes for row in figures.ops), figures.moved_bytes)
    model = figures.modules[0]
    assert (model.path, model.parameters) == ("", figures.parameter_count)
    assert sum(row.parameters for row in figures.regions) == figures.parameter_count
    for figure in SHARED:
        assert equal([getattr(model, figure)], getattr(figures, figure))
        assert equal((getattr(row, figure) for row in figures.regions), getattr(figures, figure))


@each_open_model
def test_a_module_has_what_its_own_code_and_its_children_have(name: str, attention: str) -> None:
    figures = dynamic(name, attention)
    paths = {row.path for row in figures.modules}
    for module in figures.modules:
        below = [row for row in figures.ops if holds(module.path, nearest(row.path, paths))]
        assert equal((row.flops for row in below if row.phase == FORWARD), module.forward_flops)
        assert equal((row.flops for row in below if row.phase == BACKWARD), module.backward_flops)


def test_regions_are_the_repeated_blocks_and_the_rest() -> None:
    regions = {row.region: row for row in static("t5").regions}
    assert {name: row.calls for name, row in regions.items()} == {
        "encoder.block.[1-3]": 3, "decoder.block.[1-3]": 3, REST: 1,
    }  # fmt: skip
    layer = ZOO["t5"].build(layers=4)[0].get_submodule("encoder.block.1")
    assert regions["encoder.block.[1-3]"].parameters == 3 * sum(p.numel() for p in layer.parameters())


def test_backward_belongs_to_the_modules_of_forward() -> None:
    """GPT-2's linears have twice the forward's products in backward, each in its own place."""
    ops = dynamic("gpt2").ops
    linears = ("transformer.h.*.attn.c_attn", "transformer.h.*.attn.c_proj", "transformer.h.*.mlp.c_fc", "lm_head")
    for path in linears:
        forward, backward = ([r for r in ops if r.path == path and r.phase == p and r.flops != 0] for p in (FORWARD, BACKWARD))
        assert equal((2 * r.flops for r in forward), sum(r.flops for r in backward))
        calls = [sum(r.calls for r in rows) for rows in (forward, backward)]
        assert calls == ([1, 2] if path == "lm_head" else [4, 8])


def equal(parts: Iterable[sympy.Expr], whole: sympy.Expr) -> bool:
    return sympy.expand(sympy.Add(*parts) - whole) == 0


def holds(module: str, path: str) -> bool:
    return not module or path == module or path.startswith(f"{module}.")


def nearest(path: str, paths: set[str]) -> str:
    while path and path not in paths:
        path = path.rpartition(".")[0]
    return path


@pytest.mark.parametrize("name", ["gpt2", "mlp"])
def test_a_deeper_model_has_no_more_rows(name: str) -> None:
    shallow, deep = static(name), static(name, layers=9)
    rows = lambda figures: [(r.region, r.path, r.op, r.phase, r.one.bytes) for r in figures.ops]  # noqa: E731
    assert sorted(rows(shallow)) == sorted(rows(deep))
    assert blocks(deep) == {region: calls + 5 for region, calls in blocks(shallow).items()}


def blocks(figures: Profile) -> dict[str, int]:
    return {row.region: row.calls for row in figures.regions if row.region != REST}
