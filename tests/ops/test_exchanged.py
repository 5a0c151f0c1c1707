"""Tokens that travel to their experts: any load, in one process and on real ones, equals the whole op; costs at even load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from autopar.ir.activations import ACTIVATIONS
from autopar.ir.experts import experts
from autopar.ir.local_ranks import local_ranks
from autopar.ir.placement import Placement
from autopar.ops import exchanged
from autopar.ops.exchanged import EXCHANGED, EXCHANGED_BACKWARD, experts_exchanged, gradients_of_experts, results_of_experts
from autopar.ops.exchanged_cost import Inside, backward_inside, forward_inside
from autopar.ops.flops import collectives_of, node_flops
from autopar.ops.joint import Joint, TensorLike, trace_joint
from autopar.ops.pieces import collect, cut, distribute
from autopar.torch_private import AllocationTracker, coordinates
from tests.processes import run_processes
from tests.sent import Sent

COUNT, TOKENS, CHOICES, K, N, OUT = 8, 24, 2, 6, 5, 7
LOADS: dict[str, Callable[[], Tensor]] = {
    "even": lambda: torch.arange(TOKENS * CHOICES).view(TOKENS, CHOICES) % COUNT,
    "random": lambda: torch.randint(0, COUNT, (TOKENS, CHOICES)),
    "some experts have no token": lambda: torch.randint(2, 5, (TOKENS, CHOICES)),
    "one expert has all": lambda: torch.full((TOKENS, CHOICES), COUNT - 1),
    "each token goes far": lambda: COUNT - 1 - torch.arange(TOKENS).unsqueeze(1).expand(TOKENS, CHOICES) // 3,
}
"""Each token's experts."""


@dataclass(frozen=True)
class Case:
    """The whole op: x, scale, up and down, what it returns, and gradients of the four from a random one of the result."""

    index: Tensor
    operands: tuple[Tensor, ...]
    activation: str
    upstream: Tensor
    result: Tensor
    gradients: tuple[Tensor, ...]


def case(load: str, gated: bool = True, activation: str = "silu") -> Case:
    torch.manual_seed(3)
    index = LOADS[load]()
    shapes = ((TOKENS, K), (TOKENS, CHOICES), (COUNT, 2, N, K) if gated else (COUNT, N, K), (COUNT, OUT, N))
    x, scale, up, down = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    result = experts(x, index, scale, up, down, activation)
    upstream = torch.randn_like(result)
    gradients = torch.autograd.grad(result, (x, scale, up, down), upstream)
    return Case(index, (x, scale, up, down), activation, upstream, result.detach(), gradients)


@pytest.mark.parametrize("sizes", [(2,), (4,), (2, 2), (2, 4)], ids=str)
@pytest.mark.parametrize("load", LOADS)
def test_any_load_is_the_whole_op(load: str, sizes: tuple[int, ...]) -> None:
    require_equal(case(load), sizes)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [True, False])
def test_gradients_of_all_activations(activation: str, gated: bool) -> None:
    require_equal(case("random", gated, activation), (2,))


def test_a_wrong_order_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanged.Journey, "back", lambda journey, rows: exchanged.Journey.there(journey, rows))
    with pytest.raises((AssertionError, RuntimeError)):
        require_equal(case("random"), (2,))


def require_equal(whole: Case, sizes: tuple[int, ...]) -> None:
    """All ranks in one process, with tokens and experts cut by all axes."""
    states = by_all(sizes)
    with local_ranks(sizes) as devices:
        pieces = [distribute(t.detach(), states, sizes, i).requires_grad_() for i, t in enumerate(whole.operands)]
        index, upstream = (distribute(t, states, sizes, 9) for t in (whole.index, whole.upstream))
        result = on_pieces(pieces, index, whole.activation, devices, coordinates(devices))
        found = torch.autograd.grad(result, pieces, upstream)
        ours = [collect(t.detach(), states, sizes, tolerance=0.0) for t in (result, *found)]
    for mine, theirs in zip(ours, (whole.result, *whole.gradients), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def on_pieces(pieces: Sequence[Tensor], index: Tensor, activation: str, devices: DeviceMesh, at: Sequence[Tensor]) -> Tensor:
    axes = [(devices.get_group(axis).group_name, size) for axis, size in enumerate(devices.shape)]
    x, scale, up, down = pieces
    return experts_exchanged(x, index, scale, up, down, activation, axes, at, axes)


def by_all(sizes: Sequence[int]) -> Placement:
    return Placement((0,) * len(sizes), tuple(range(len(sizes))))


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_any_load_on_processes(count: int) -> None:
    run_processes(count, any_load)


def any_load(rank: int) -> None:
    for sizes in {2: [(2,)], 4: [(4,), (2, 2)]}[dist.get_world_size()]:
        devices = init_device_mesh("cpu", sizes, mesh_dim_names=("a", "b")[: len(sizes)])
        at = [torch.tensor(devices.get_local_rank(axis)) for axis in range(len(sizes))]
        states = by_all(sizes)
        for load in LOADS:
            whole = case(load)
            pieces = [cut(t.detach(), states, sizes)[rank].requires_grad_() for t in whole.operands]
            index, upstream = (cut(t, states, sizes)[rank] for t in (whole.index, whole.upstream))
            result = on_pieces(pieces, index, whole.activation, devices, at)
            found = torch.autograd.grad(result, pieces, upstream)
            for mine, theirs in zip((result, *found), (whole.result, *whole.gradients), strict=True):
                wanted = cut(theirs, states, sizes)[rank]
                torch.testing.assert_close(mine, wanted, rtol=1e-12, atol=1e-12, msg=lambda m, load=load: f"{load}: {m}")


RUNS = 5
"""A thread of gloo lets go of a collective's tensors a moment after the wait: the least of some runs is what is needed."""
LARGE = {"tokens": 256, "k": 64, "n": 48, "o": 80}


def large(gated: bool, experts: int) -> tuple[Tensor, ...]:
    """x, index (as many rows for each of 8 experts), up and down of one device, in float32."""
    tokens, k, n, o = LARGE.values()
    torch.manual_seed(0)
    index = torch.arange(tokens * CHOICES).view(tokens, CHOICES) % COUNT
    up = torch.randn(experts, 2, n, k) if gated else torch.randn(experts, n, k)
    return torch.randn(tokens, k), index, up, torch.randn(experts, o, n)


def test_even_load_sends_and_holds_what_is_counted() -> None:
    """On two axes of two devices each, so that rows travel twice."""
    run_processes(4, even_load)


def even_load(rank: int) -> None:
    devices = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
    groups, sizes = [devices.get_group(name).group_name for name in ("a", "b")], [2, 2]
    for gated in (True, False):
        x, index, up, down = large(gated, COUNT // 4)
        grad = torch.randn(*index.shape, down.shape[1])
        forward, backward = (x, index, up, down, "silu", groups, sizes), (grad, x, index, up, down, "silu", groups, sizes)
        require_counted(lambda f=forward: [results_of_experts(*f)], forward_inside(*forward), devices)
        require_counted(lambda b=backward: gradients_of_experts(*b), backward_inside(*backward), devices)


def require_counted(run: Callable[[], Sequence[Tensor]], counted: Inside, devices: DeviceMesh) -> None:
    """The bytes of each all-to-all; memory beside the results at most as counted, and near it."""
    with Sent(devices) as sent:
        run()
    wanted = Counter[str]()
    for group, size in counted.sent:
        wanted[group] += size
    assert {axis: size for (_, axis, _), size in sent.bytes.items()} == {sent.axes[g]: size for g, size in wanted.items()}
    assert sum(sent.counts.values()) == len(counted.sent)
    peaks = []
    for _ in range(RUNS):
        with AllocationTracker() as tracker:
            results = run()
        peaks.append(tracker.peak_bytes)
    said = sum(t.nbytes for t in results) + max(map(sum, counted.alive))
    assert 0.7 * said < min(peaks) <= 1.02 * said, (peaks, said)


def test_graphs_have_two_ops_whose_figures_are_those_of_the_even_share() -> None:
    joint = traced()
    (forward,) = joint.graph.find_nodes(op="call_function", target=EXCHANGED.default)
    (backward,) = joint.graph.find_nodes(op="call_function", target=EXCHANGED_BACKWARD.default)
    tokens, k, n, o = LARGE.values()
    products = 2 * tokens * CHOICES * (2 * n * k + n * o)
    again = 2 * tokens * CHOICES * 2 * n * k
    assert [node_flops(forward), node_flops(backward)] == [products, 2 * products + again]
    row = 4 * tokens * CHOICES
    counts = [8 * COUNT, row * k, row * o]
    assert [c.bytes for c in collectives_of([forward])] == counts
    assert sorted(c.bytes for c in collectives_of([backward])) == sorted([*counts, row * k])
    assert {c.axis for c in collectives_of(joint.graph.nodes)} == {"a"}


def traced() -> Joint:
    graph = torch.fx.Graph()
    operands = [graph.placeholder(f"x{i}") for i in range(6)]
    at = graph.call_function(experts_exchanged, (*operands[:5], "silu", (("a", 4),), operands[5:], (("a", 4),)))
    graph.output((at,))
    x, index, up, down = large(True, COUNT // 4)
    given = (x, index, torch.randn(index.shape), up, down, torch.tensor(0))
    inputs = [TensorLike(shape=tuple(t.shape), dtype=t.dtype, needs_grad=t.is_floating_point()) for t in given]
    return trace_joint(graph, inputs, [True])
