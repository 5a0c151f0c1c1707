"""Costs of sharded implementations, fitted once per family, against a trace of each strategy by itself."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import pytest
import torch

from autopar.ir.mesh import MeshSpec
from autopar.ops.flops import collectives_of
from autopar.ops.strategies import Strategy, cut_by, strategies
from autopar.ops.units import Unit
from autopar.profiler.model_cost import Measured, ModelCost, measure
from autopar.profiler.strategy_cost import StrategyCosts
from autopar.profiler.unit_cost import Monomial, NodeCost, UnitCost, constants, trace_unit, unit_cost
from autopar.profiler.unit_cost import figures as trace_figures
from autopar.tracer import trace
from tests import uneven
from tests.models import MODELS, convnet
from tests.zoo import ZOO


def needs_implementation(unit: Unit, strategy: Strategy) -> bool:
    """Whether some node runs another op than its own (its cost is then measured for that strategy by itself)."""
    return any(factor in unit.sharded for choice in strategy.factors for factor in cut_by(choice))


def cost_of_strategy(unit: Unit, chosen: Strategy, mesh: MeshSpec, device: str = "cpu") -> UnitCost:
    """For strategies with a sharded implementation: traced at exactly these local sizes."""
    trace = trace_figures(trace_unit(unit, chosen, mesh, device), len(unit.operands))
    return UnitCost(
        forward=tuple(NodeCost(Monomial(f), constants(moved), dtype) for f, moved, dtype in trace.forward),
        backward=tuple(NodeCost(Monomial(f), constants(moved), dtype) for f, moved, dtype in trace.backward),
        reads=trace.reads,
        internals=constants(trace.internals),
        forward_live=tuple(map(constants, trace.forward_live)),
        backward_live=tuple(map(constants, trace.backward_live)),
        aliases=trace.aliases,
        forward_collectives=tuple(collectives_of(trace.joint.forward)),
        backward_collectives=tuple(collectives_of(trace.joint.backward)),
    )


class Segments(torch.nn.Module):
    """Sums of tokens by segments, whose rows are of two dims: the batch, and segments of each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(16, 16)

    def forward(self, x: torch.Tensor, segment: torch.Tensor) -> torch.Tensor:
        values = self.linear(x).sum(-1).flatten()
        at = (segment + 12 * torch.arange(8).unsqueeze(1)).flatten()
        sums = values.new_zeros(8 * 12).scatter_reduce(0, at, values, "mean", include_self=False)
        return sums.view(8, 12).square().mean()


@functools.cache
def measured(model: str) -> ModelCost:
    if model == "uneven":
        module, kwargs = uneven.gpt2(device="meta", dtype=torch.float32), uneven.tokens()
    elif model == "segments":
        module, kwargs = Segments(), {"x": torch.randn(8, 16, 16), "segment": torch.randint(12, (8, 16))}
    elif model == "mixtral":
        module, kwargs = ZOO[model].build()
    else:
        module, kwargs = (MODELS | {"convnet": convnet})[model](device="meta")
    return measure(trace(module, (), kwargs))


def with_implementation(model: str, mesh: MeshSpec, most: int | None) -> Iterator[tuple[Measured, Strategy]]:
    """Strategies that run an implementation of their own; of each kind of unit not more than `most`, from both ends."""
    found: dict[str, list[tuple[Measured, Strategy]]] = {}
    for region in measured(model).regions.values():
        for m in region:
            alike = [(m, s) for s in strategies(m.unit, mesh.sizes) if needs_implementation(m.unit, s)]
            found.setdefault(m.unit.kind, []).extend(alike)
    for alike in found.values():
        yield from alike if most is None else (alike[:most] + alike[-most:])


def figures(kernels: Iterable[NodeCost], at: Mapping[str, int], local: Mapping[str, int]) -> Counter[object]:
    """FLOPs, bytes, dtype of each kernel; without those that only copy where a dim is down to one, since a reshape that
    copies elsewhere is a view there."""
    found = [(n.flops.at(at), tuple(round(m.at(at), 6) for m in n.moved), n.dtype) for n in kernels]
    return Counter(f for f in found if f[0] or len(f[1]) != 2 or 1 not in local.values())


CASES = [
    ("gpt2", "2x2", 3),
    ("convnet", "2x2", 12),
    ("uneven", "2", None),
    ("mixtral", "2x2", 8),
    ("segments", "2x2", None),
] + [
    pytest.param(model, mesh, None, marks=pytest.mark.slow)
    for model, mesh in (
        *(("gpt2", "2x4"), ("uneven", "2x3"), ("llama", "2x4"), ("bert", "2x2"), ("vit", "8")),
        ("mixtral", "2x2"),
    )
]


@pytest.mark.parametrize(("model", "mesh", "most"), CASES)
def test_equal_to_a_trace_of_the_strategy_itself(model: str, mesh: str, most: int | None) -> None:
    spec = MeshSpec.of(mesh)
    costs, seen, padded = StrategyCosts(spec, "cpu"), 0, 0
    for m, chosen in with_implementation(model, spec, most):
        ours, true = costs.of(m, chosen), cost_of_strategy(m.unit, chosen, spec)
        sizes, seen = chosen.local_sizes(m.unit, spec.sizes), seen + 1
        padded += bool(chosen.padded(m.unit, spec.sizes))
        where = f"{m.unit.name} {chosen.factors}"
        assert ours.forward_collectives == true.forward_collectives, where
        assert ours.backward_collectives == true.backward_collectives, where
        assert figures(ours.forward, sizes, sizes) == figures(true.forward, {}, sizes), where
        assert figures(ours.backward, sizes, sizes) == figures(true.backward, {}, sizes), where
        assert [i.at(sizes) for i in ours.internals] == [i.at({}) for i in true.internals], where
        assert ours.reads == true.reads, where
    assert seen > len(costs.families) / 2 > 0
    assert (padded > 1) == (model == "uneven")


def test_plain_strategies_and_linear_without_bias_are_traced_no_more() -> None:
    spec = MeshSpec.of("2x2")
    costs = StrategyCosts(spec, "cpu")
    (linear,) = (m for region in measured("gpt2").regions.values() for m in region if m.unit.name == "lm_head_linear")
    assert all(costs.of(linear, s) is linear.cost for s in strategies(linear.unit, spec.sizes))


def test_axes_keep_their_names() -> None:
    spec = MeshSpec.of("outer=2,inner=2")
    costs = StrategyCosts(spec, "cpu")
    (loss,) = (m for region in measured("gpt2").regions.values() for m in region if m.unit.kind == "loss")
    on = {}
    for chosen in strategies(loss.unit, spec.sizes):
        if sum(f is not None for f in chosen.factors) == 1:
            on[chosen.factors] = {c.axis for c in costs.of(loss, chosen).forward_collectives}
    assert {("outer" if factors[0] else "inner", *axes) for factors, axes in on.items()} == {
        ("outer", "outer"),
        ("inner", "inner"),
    }
    assert len(costs.families) == 2


def test_what_one_mesh_found_holds_on_another() -> None:
    """One store for several meshes: its keys tell norms apart, into which global sizes are written, and join embeddings."""
    shared = dict(measured("gpt2").families)
    for mesh in ("2x2", "4", "2x4"):
        spec = MeshSpec.of(mesh)
        known, alone = StrategyCosts(spec, "cpu", shared), StrategyCosts(spec, "cpu")
        for m, chosen in with_implementation("gpt2", spec, 2):
            assert known.of(m, chosen) == alone.of(m, chosen), f"{mesh}: {m.unit.name} {chosen.factors}"
        assert alone.families.keys() <= shared.keys()


@pytest.mark.parametrize("model", ["llama", "gpt2", "bert"])
def test_units_that_share_a_trace_cost_what_their_own_says(model: str) -> None:
    """Query, key and value, or the projections of an MLP: the same ops at other sizes."""
    found = [m for region in measured(model).regions.values() for m in region]
    shared = [m for m in found if sum(m.cost is other.cost for other in found) > 1]
    assert {str(sorted(m.unit.sizes.values())) for m in shared if m.unit.kind == "matmul"} != set()
    for m in shared:
        assert m.cost == unit_cost(m.unit), m.unit.name
    assert len({str(m.unit.sizes) for m in shared}) > len({id(m.cost) for m in shared})
