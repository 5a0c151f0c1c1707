"""Every conversion moves values and gradients as its placements say: all ranks in one process, traced, on real processes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx
from torch.distributed.device_mesh import init_device_mesh

from autopar.ir.conversion import TABLE, Conversion
from autopar.ir.local_ranks import local_ranks
from autopar.ir.mesh import MeshSpec
from autopar.ir.placement import Placement
from autopar.ops.collectives import FUNCTIONS, all_reduce, arguments, copy, forget, gather, merge, shard
from autopar.ops.pieces import ANYTHING, collect, cut, distribute, join
from autopar.torch_private import by_rank, coordinates, rank_map
from tests.ops.joint import collectives_of, trace_joint, with_groups
from tests.processes import run_processes

MESHES = [MeshSpec((2,), ("a",)), MeshSpec((4,), ("a",)), MeshSpec((2, 2), ("a", "b"))]
SHAPES = [(4, 3, 8), (4, 3, 8), (4, 8)]
UNEVEN = [(5, 3, 8), (10, 4, 7), (6, 7)]
NAMES = {"slice": "shard", "slice_replicate": "shard_replicate", "reduce_scatter": "scatter"}


def conversions(shape: tuple[int, ...], sizes: tuple[int, ...]) -> Iterator[Conversion]:
    """Every conversion of the table between placements of the shape, pieces of different sizes included, the other axis sharded
    or I (R and P act as I there)."""
    states = itertools.product(["R", "I", "P", *range(len(shape))], repeat=len(sizes))
    everywhere = [placement for placement in map(Placement, states) if placement.fits(shape, sizes)]
    for before, after in itertools.permutations(everywhere, 2):
        same = [x for x, y in zip(before.states, after.states, strict=True) if x == y]
        if set(same) & {"R", "P"}:
            continue
        try:
            yield Conversion(before, after)
        except ValueError:  # changes two axes, or would scramble shards
            continue


def call(
    conversion: Conversion,
    x: Tensor,
    axes: tuple[str, ...],
    sizes: tuple[int, ...],
    at: tuple[Tensor, ...],
    shape: tuple[int, ...],
) -> Tensor:
    axis = conversion.axis
    length, _ = conversion.lengths(shape, sizes)
    rest = arguments(conversion.kind, conversion.dims, axes[axis], sizes[axis], at[axis], length)
    return FUNCTIONS[conversion.kind.name](x, *rest)


def test_there_is_a_function_for_every_row_of_the_table() -> None:
    assert [FUNCTIONS[kind.name].__name__ for kind in TABLE] == [NAMES.get(kind.name, kind.name) for kind in TABLE]


@pytest.mark.parametrize(("mesh", "shape"), [*zip(MESHES, SHAPES, strict=True), *zip(MESHES, UNEVEN, strict=True)], ids=str)
def test_values_and_gradients_follow_the_placements(mesh: MeshSpec, shape: tuple[int, ...]) -> None:
    full, upstream = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    seen = set()
    with local_ranks(mesh) as devices:
        groups = tuple(devices.get_group(name).group_name for name in mesh.names)
        at = coordinates(devices)
        for conversion in conversions(shape, mesh.sizes):
            before, after = conversion.before, conversion.after
            x = distribute(full, before, mesh.sizes, padding=ANYTHING).requires_grad_()
            y = call(conversion, x, groups, mesh.sizes, at, shape)
            (grad,) = torch.autograd.grad(y, [x], distribute(upstream, after.gradient(), mesh.sizes, seed=1))
            assert all(v.is_contiguous() for v in by_rank(y).values()), str(conversion)
            check(conversion, mesh, y, grad, full, upstream)
            seen.add(conversion.kind)
    assert seen == set(TABLE)


def check(conversion: Conversion, mesh: MeshSpec, y: Tensor, grad: Tensor, full: Tensor, upstream: Tensor) -> None:
    close(conversion, collect(y, conversion.after, mesh.sizes, tolerance=1e-12, shape=full.shape), full)
    whole = collect(grad, conversion.before.gradient(), mesh.sizes, tolerance=1e-12, shape=full.shape, zeros=True)
    close(conversion, whole, upstream)


def close(conversion: Conversion, actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12, msg=lambda m: f"{conversion}: {m}")


def test_joint_graphs_hold_just_the_collectives_of_the_table_and_compute_the_same() -> None:
    mesh, shape = MESHES[0], SHAPES[0]
    full, upstream = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    names = {
        "all_gather": "all_gather_into_tensor",
        "reduce_scatter": "reduce_scatter_tensor",
        "all_to_all": "all_to_all_single",
    }
    traced = []
    for conversion in conversions(shape, mesh.sizes):
        module = trace_joint(
            lambda x, at, c=conversion: call(c, x, mesh.names, mesh.sizes, (at,), shape),
            [torch.empty(conversion.before.local_shape(shape, mesh.sizes)).double().requires_grad_(), torch.tensor(0)],
            torch.empty(conversion.after.local_shape(shape, mesh.sizes)).double(),
        )
        expected = [c for c in (conversion.kind.forward, conversion.kind.backward) if c]
        assert collectives_of(module.graph) == [(names.get(c, c), "a") for c in expected], str(conversion)
        traced.append((conversion, module))
    with local_ranks(mesh) as devices:
        groups = {"a": devices.get_group("a").group_name}
        for conversion, module in traced:
            x, upstreams = distribute(full, conversion.before, (2,)), distribute(upstream, conversion.after.gradient(), (2,), 1)
            y, grad = with_groups(module, groups)(x, *coordinates(devices), upstreams)
            check(conversion, mesh, y, grad, full, upstream)


def test_integers_and_truth_values_are_gathered_and_the_maximum_is_taken() -> None:
    full = torch.arange(12).view(2, 6)
    with local_ranks("a=2") as devices:
        group = devices.get_group("a").group_name
        for values in (full, full % 3 == 0):
            gathered = gather(distribute(values, Placement((1,)), (2,)), 1, group, 2)
            assert torch.equal(collect(gathered, Placement(("I",)), (2,)), values)
        highest = all_reduce(rank_map(lambda rank: torch.tensor([float(rank), -float(rank)])), group, "max")
        assert torch.equal(collect(highest, Placement(("I",)), (2,)), torch.tensor([1.0, 0.0]))


def test_a_graph_of_conversions_prints_as_readable_code() -> None:
    graph = fx.Graph()
    x, at = graph.placeholder("x"), graph.placeholder("coordinate_data")
    graph.output(graph.call_function(shard, (graph.call_function(copy, (x, "data", 8)), 0, "data", 8, at)))
    code = fx.GraphModule({}, graph).code
    assert "collectives_copy(x, 'data', 8)" in code
    assert "collectives_shard(copy, 0, 'data', 8, coordinate_data)" in code


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    x = torch.ones(2, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(forget(x, "a", 2, torch.tensor(0)).square().sum(), [x], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize(("state", "message"), [("I", "ranks differ on I"), ("R", "ranks differ on R")])
def test_joining_pieces_that_should_agree_and_do_not_fails(state: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        join([torch.zeros(2), torch.ones(2)], Placement((state,)), (2,))


def real_process(rank: int, mesh: MeshSpec, shape: tuple[int, ...], folder: str) -> None:
    """Run every conversion on this process's pieces and write the results to `folder`."""
    devices = init_device_mesh("cpu", mesh.sizes, mesh_dim_names=mesh.names)
    groups = tuple(devices.get_group(name).group_name for name in mesh.names)
    at = tuple(torch.tensor(devices.get_local_rank(name)) for name in mesh.names)
    generator = torch.Generator().manual_seed(0)
    full, upstream = torch.randn(2, *shape, dtype=torch.float64, generator=generator)
    results = []
    for conversion in conversions(shape, mesh.sizes):
        x = cut(full, conversion.before, mesh.sizes)[rank].requires_grad_()
        y = call(conversion, x, groups, mesh.sizes, at, shape)
        results.append(
            (y.detach(), *torch.autograd.grad(y, [x], cut(upstream, conversion.after.gradient(), mesh.sizes, 1)[rank]))
        )
    for dtype in (torch.int64, torch.bool, torch.bfloat16):
        results.append((gather(torch.tensor([rank, 1]).to(dtype), 0, groups[0], 2),))
    torch.save((full, upstream, results), f"{folder}/{rank}.pt")


@pytest.mark.slow
def test_two_real_processes_agree(tmp_path: Path) -> None:
    mesh, shape = MESHES[0], SHAPES[0]
    run_processes(2, real_process, mesh, shape, str(tmp_path))
    (full, upstream, first), (_, _, second) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    pairs = list(zip(first, second, strict=True))
    *converted, integers, truths, halves = pairs
    for conversion, ((y0, grad0), (y1, grad1)) in zip(conversions(shape, mesh.sizes), converted, strict=True):
        close(conversion, join([y0, y1], conversion.after, mesh.sizes, tolerance=1e-12, shape=shape), full)
        grad = join([grad0, grad1], conversion.before.gradient(), mesh.sizes, tolerance=1e-12, shape=shape, zeros=True)
        close(conversion, grad, upstream)
    for (mine,), (other,) in (integers, truths, halves):
        assert torch.equal(mine, other)
        assert mine.tolist() == [0, 1, 1, 1]


def test_what_is_put_together_is_contiguous() -> None:
    """Also from pieces of size 1, which need no copy: the next op was measured on a contiguous tensor."""
    for size in (1, 2):
        merged = merge(torch.arange(4 * 3 * size * 5).reshape(4, 3, size, 5), 1)
        assert merged.shape == (3, 4 * size, 5)
        assert merged.is_contiguous()
