"""Which dims a search may cut unevenly: those that a vocabulary reaches, and no others."""

from __future__ import annotations

import pytest
import torch

from autopar.hardware import load
from autopar.ir.mesh import MeshSpec
from autopar.ir.placement import Placement
from autopar.ops.units import units
from autopar.profiler.model_cost import measure
from autopar.solver.build import Builder, Setting
from autopar.solver.ragged import Ragged
from autopar.tracer import trace
from tests.training import HIDDEN
from tests.uneven import VOCAB, batch, gpt2, tied, tokens


def ragged_of(model: torch.nn.Module, kwargs: dict[str, torch.Tensor], resting: dict[str, Placement] | None = None) -> Ragged:
    program = trace(model, (), kwargs)
    return Ragged(program, {name: units(region) for name, region in program.regions.items()}, resting or {}, (2,))


def reached(found: Ragged) -> dict[str, list[int]]:
    """Of all parameters and values that are reached: sizes of these dims."""
    program = found.program
    state = {n: found.of_state(n) for n in program.state}
    dims = state | {n: found.of_value(n) for n in program.values}
    shapes = {n: (program.state[n].spec if n in program.state else program.values[n]).shape for n in dims}
    return {n: [int(shapes[n][d]) for d in sorted(ds)] for n, ds in dims.items() if ds}


def test_a_vocabulary_is_reached_wherever_it_is() -> None:
    """The table, the logits on their way to the loss and out; no hidden dim, no batch, no input."""
    found = ragged_of(gpt2(device="meta"), tokens())
    sizes = reached(found)
    assert sizes.pop("transformer.wte.weight") == [VOCAB]
    assert {tuple(dims) for name, dims in sizes.items() if "wpe" not in name} == {(VOCAB,)}
    factors = {u.name: found.factors(r, u) for r, all_of in found.units.items() for u in all_of}
    assert {name for name, fs in factors.items() if fs} >= {"transformer_wte_embedding", "lm_head_linear", "cross_entropy_loss"}
    assert all(int(u.sizes[f]) in (VOCAB, 8) for r, us in found.units.items() for u in us for f in found.factors(r, u))


def test_a_head_alone_is_not_reached_unless_it_rests_so() -> None:
    """Nothing in such a program says that the dim is a vocabulary; but parameters stay where another program put them."""
    head, x = torch.nn.Linear(HIDDEN, VOCAB), {"input": torch.zeros(4, HIDDEN)}
    assert reached(ragged_of(head, x)) == {}
    at = {"weight": Placement((0,)), "bias": Placement((0,))}
    assert reached(ragged_of(head, x, at)).keys() >= at.keys()
    setting = Setting(mesh=MeshSpec.of("2"), hardware=load("cpu"), resting=at)
    problem = Builder(measure(trace(head, (), x)), setting).problem()
    assert all(Placement((0,)) in problem.state[name].bytes_at for name in at)


def test_what_pads_much_is_left_out() -> None:
    """97 rows on 2, 4 and 64 devices: 1, 3 and 31 more; on 64 nothing is cut."""
    cost = measure(trace(tied(device="meta"), (), batch()))
    for mesh, cut in (("2", True), ("4", True), ("64", False)):
        problem = Builder(cost, Setting(mesh=MeshSpec.of(mesh), hardware=load("cpu"))).problem()
        group = problem.state["embed.weight"]
        assert (Placement((0,)) in group.bytes_at) == cut
        rows = -(-VOCAB // int(mesh))
        if cut:
            assert group.grad_bytes_at[Placement((0,))] == pytest.approx(rows * HIDDEN * 8)
        uneven = [s for r in problem.regions for u in r.units for s in u.strategies if u.kind == "loss" and "tensor" in s.roles]
        assert bool(uneven) == cut
