"""Composition: which nodes become one unit, and that every strategy of every unit of real models is right."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx

from autopar.ir.program import Region
from autopar.ir.widen import widened
from autopar.ops.factors import CannotUnify
from autopar.ops.proof import Call, prove, unit_of
from autopar.ops.strategies import PASS_PARTIAL, strategies
from autopar.ops.units import Unit, compose, needs_grad, units
from tests.planned import traced

aten = torch.ops.aten

GPT2_LAYER = {
    "ln_1_layer_norm": "norm",
    "attn_c_attn_addmm": "matmul",
    "attn_split_with_sizes": "pointwise",
    "attn_scaled_dot_product_attention": "attention",
    "attn_c_proj_addmm": "matmul",
    "add": "pointwise",
    "ln_2_layer_norm": "norm",
    "mlp_c_fc_addmm": "matmul",
    "mlp_act_mul_3": "pointwise",
    "mlp_c_proj_addmm": "matmul",
    "add_1": "pointwise",
}


def x(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


def region_of(*lines: tuple[str, object, tuple[object, ...]], inputs: dict[str, tuple[int, ...]], outputs: list[str]) -> Region:
    """A region from (name, op, arguments) lines, where a string among the arguments names a value."""
    graph = fx.Graph()
    nodes: dict[object, fx.Node] = {}
    for name, shape in inputs.items():
        nodes[name] = graph.placeholder(name)
        nodes[name].meta = {"val": torch.zeros(shape, dtype=torch.float64), "needs_grad": True}
    for name, op, args in lines:
        given = tuple(nodes.get(a, a) if isinstance(a, str) else a for a in args)
        nodes[name] = graph.create_node("call_function", op, given, name=name)  # type: ignore[arg-type]
        values = fx.node.map_arg(given, lambda n: n.meta["val"])
        nodes[name].meta = {"val": op(*values), "needs_grad": True}  # type: ignore[operator]
    graph.output(tuple(nodes[name] for name in outputs))
    return Region(name="made", graph=graph, inputs=tuple(inputs), state=())


def names(region: Region) -> list[tuple[str, ...]]:
    return [tuple(node.name for node in unit.nodes) for unit in units(region)]


def test_gpt2_layer_is_eleven_decisions() -> None:
    layer = traced("gpt2").program.regions["transformer.h.*"]
    found = {unit.name: unit for unit in units(layer)}
    assert {name: unit.kind for name, unit in found.items()} == GPT2_LAYER
    calls = [node for node in layer.graph.nodes if node.op == "call_function"]
    assert sorted(n.name for unit in found.values() for n in unit.nodes) == sorted(n.name for n in calls)
    assert len(calls) > 2 * len(found)


def test_residual_adds_stay_alone() -> None:
    """What an add reads is read elsewhere too, and its result must be free to rest at any placement."""
    layer = traced("gpt2").program.regions["transformer.h.*"]
    found = {unit.name: unit for unit in units(layer)}
    assert [n.name for n in found["add"].nodes] == ["add"]
    assert [n.name for n in found["add_1"].nodes] == ["add_1"]
    assert found["add"].linear


def test_diamond_of_pointwise_ops_is_one_unit() -> None:
    """x * sigmoid(x + b): both branches come back together, and b is read as R where tokens are cut."""
    region = region_of(
        ("shifted", aten.add.Tensor, ("a", "b")),
        ("gate", aten.sigmoid.default, ("shifted",)),
        ("out", aten.mul.Tensor, ("shifted", "gate")),
        inputs={"a": (4, 6), "b": (6,)},
        outputs=["out"],
    )
    assert names(region) == [("shifted", "gate", "out")]


def test_value_with_two_readers_is_a_boundary() -> None:
    region = region_of(
        ("twice", aten.mul.Tensor, ("a", 2.0)),
        ("left", aten.linear.default, ("twice", "w")),
        ("right", aten.linear.default, ("twice", "v")),
        inputs={"a": (4, 6), "w": (2, 6), "v": (2, 6)},
        outputs=["left", "right"],
    )
    assert names(region) == [("twice",), ("left",), ("right",)]


def test_reshape_shares_factors_across_the_product() -> None:
    """[batch, seq, k] -> [(batch seq), k] -> mm: batch may be cut, and seq where no placement of the flat dim says so."""
    unit, operands = unit_of(
        [Call(aten.reshape.default, (x(4, 6, 2), [24, 2])), lambda flat: Call(aten.mm.default, (flat, x(2, 3)))]
    )
    assert sorted(int(unit.sizes[f]) for f in unit.shardable) == [2, 3, 4, 6]
    inner = [s for s in strategies(unit, (2,)) if str(s.operands[0]) == "S(1)"]
    assert not inner, "rows that only seq cuts have no placement outside the unit"
    prove(unit, operands, (2,))


def test_partial_sums_pass_linear_readers_only() -> None:
    summed = Call(aten.sum.dim_IntList, (x(4, 6), [1]))
    unit, operands = unit_of([summed, lambda s: Call(aten.mul.Tensor, (s, 2.0))])
    assert any(str(s.results[0]) == "P" and PASS_PARTIAL not in s.factors for s in strategies(unit, (2,)))
    prove(unit, operands, (2,))
    with pytest.raises(CannotUnify, match="not linear"):
        unit_of([summed, lambda s: Call(aten.gelu.default, (s,))])


@pytest.mark.parametrize(("op", "left"), [(aten.mm.default, ()), (aten.linear.default, ("k",))], ids=["x @ x", "x @ x.T"])
def test_square_of_a_tensor_ties_its_dims(op: object, left: tuple[str, ...]) -> None:
    """Two dims of one tensor would be one loop, which nothing may cut."""
    square = x(4, 4)
    unit, operands = unit_of([Call(op, (square, square))])
    assert unit.shardable == left
    prove(unit, operands, (2, 2))


def test_sum_with_the_transpose_stays_in_pieces() -> None:
    square = x(4, 4)
    with pytest.raises(CannotUnify, match="two dims of one tensor"):
        unit_of([Call(aten.t.default, (square,)), lambda turned: Call(aten.add.Tensor, (turned, square))])
    region = region_of(
        ("turned", aten.t.default, ("a",)), ("out", aten.add.Tensor, ("turned", "a")), inputs={"a": (4, 4)}, outputs=["out"]
    )
    assert names(region) == [("turned",), ("out",)]
    assert all(len(strategies(unit, (2,))) > 1 for unit in units(region))


def test_nodes_out_of_order_are_refused() -> None:
    unit, _ = unit_of([Call(aten.neg.default, (x(4),)), lambda y: Call(aten.neg.default, (y,))])
    with pytest.raises(CannotUnify, match="before it is made"):
        compose(unit.nodes[::-1])


def values_of(unit: Unit) -> list[Tensor]:
    """Random ones; numbers that the program counts out are what rules may take them for."""
    generator = torch.Generator().manual_seed(1)

    def value(node: fx.Node) -> Tensor:
        like = node.meta["val"]
        if node.target is aten.arange.start_step:
            return aten.arange.start_step(*node.args, **node.kwargs)  # type: ignore[no-any-return]
        if like.dtype.is_floating_point:
            return (torch.rand(like.shape, dtype=like.dtype, generator=generator) + 0.5).requires_grad_(needs_grad(node))
        return torch.randint(2, like.shape, generator=generator).to(like.dtype)

    return [value(node) for node in unit.operands]


@pytest.mark.parametrize("sizes", [(2,), pytest.param((2, 2), marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "vit"])
def test_units_of_models(family: str, sizes: tuple[int, ...]) -> None:
    """Every strategy of every unit, in float64, against the unit run whole."""
    program = widened(traced(family).program)
    count = 0
    for region in program.regions.values():
        for unit in units(region):
            count += prove(unit, values_of(unit), sizes)
    assert count > 60
