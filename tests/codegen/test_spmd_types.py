"""A third party's proof that no collective is missing: emitted forwards pass the type checker of `spmd_types`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import spmd_types as spmd
import torch

from autopar.codegen.emit import Emitted, emit
from autopar.hardware import load
from autopar.ir.mesh import MeshSpec
from autopar.ops import collectives
from autopar.profiler.model_cost import measure
from autopar.solver.baselines import BASELINES, solve_baselines
from autopar.solver.build import Builder, Setting
from autopar.solver.to_plan import to_plan
from tests.codegen.typed import TypedRun, fake_mesh
from tests.planned import planned, traced

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.distributed._functional_collectives:FutureWarning")
"""spmd_types 0.3 calls functions that torch 2.13 renamed."""

FAMILIES = ["gpt2", "llama", "bert", "vit"]


def runs(emitted: Emitted) -> Iterator[TypedRun]:
    """One per region type, inside a fake mesh."""
    spec = emitted.plan.mesh
    with fake_mesh(spec) as groups:
        for name, region in emitted.regions.items():
            yield TypedRun(region.local, emitted.plan.regions[name], spec, groups)


@pytest.mark.parametrize("family", FAMILIES)
def test_forward_has_the_planned_types(family: str) -> None:
    _, emitted, _ = planned(family, "2x2")
    kinds = set()
    for run in runs(emitted):
        run.run()
        assert run.checked >= 2 * len(run.local.values)
        kinds |= {node.target for node in run.local.graph.nodes if "conversion" in node.meta}
    assert {collectives.gather, collectives.reduce} <= kinds, "a plan that shards nothing proves nothing"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_dropped_conversion_is_caught(family: str) -> None:
    """`copy` does nothing forward: without it all values are right, and gradients lack their all-reduce.

    Of the best plan, which may shard all parameters and then copies none, and of tensor parallelism.
    """
    cost = measure(traced(family).program)
    builder = Builder(cost, Setting(mesh=MeshSpec.of("2x2"), hardware=load("h100-sxm")))
    problem = builder.problem()
    solution = solve_baselines(problem, ["tp"])["tp"]
    assert solution is not None
    dropped = []
    for emitted in (planned(family, "2x2")[1], emit(cost.program, to_plan(builder, problem, solution))):
        dropped += drop_each(emitted)
    assert collectives.copy in dropped
    assert collectives.reduce in dropped


def drop_each(emitted: Emitted) -> list[object]:
    """What was dropped, each time to the checker's protest."""
    dropped = []
    for run in runs(emitted):
        for node in run.local.graph.nodes:
            if node.target in DROPPABLE:
                with pytest.raises(spmd.SpmdTypeError):
                    run.run(without(run.local.graph, node.name))
                dropped.append(node.target)
    return dropped


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_baselines_have_the_planned_types(family: str) -> None:
    """Row-parallel sums, sequence-parallel scatters and sharded vocabularies, whatever the best plan is made of.

    (On hardware whose links cost something: where they are free, exchanges are as good as scatters.)"""
    cost = measure(traced(family).program)
    builder = Builder(cost, Setting(mesh=MeshSpec.of("2x2"), hardware=load("h100-sxm")))
    problem = builder.problem()
    summed = set()
    for name, solution in solve_baselines(problem, BASELINES.keys() - {"ep"}).items():  # there are no experts
        assert solution is not None, name
        emitted = emit(cost.program, to_plan(builder, problem, solution))
        for run in runs(emitted):
            run.run()
            for node in run.local.graph.nodes:
                if node.target in DROPPABLE:
                    summed.add(node.target)
                    with pytest.raises(spmd.SpmdTypeError):
                        run.run(without(run.local.graph, node.name))
    assert {collectives.copy, collectives.reduce, collectives.scatter} <= summed


DROPPABLE = {collectives.copy, collectives.reduce, collectives.reduce_replicate, collectives.scatter}


def without(graph: torch.fx.Graph, name: str) -> torch.fx.Graph:
    """A copy of the graph in which a conversion only does what shapes need: nothing, or the own piece without the sum."""
    copied: dict[torch.fx.Node, torch.fx.Node] = {}
    new = torch.fx.Graph()
    new.output(new.graph_copy(graph, copied))
    (node,) = (n for n in new.nodes if n.name == name)
    instead = node.args[0]
    if node.target is collectives.scatter:
        with new.inserting_before(node):
            instead = new.call_function(first_piece, node.args)
    node.replace_all_uses_with(instead)
    new.erase_node(node)
    return new


def first_piece(x: torch.Tensor, dim: int, axis: str, size: int) -> torch.Tensor:
    return torch.narrow(x, dim, 0, x.shape[dim] // size)
