"""Every sharded implementation equals the full op, forward and in every gradient, on all ranks of small meshes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from autopar.ir.local_ranks import local_ranks
from autopar.ir.mesh import MeshSpec
from autopar.ir.placement import Placement
from autopar.ops.pieces import collect, cut, distribute, join
from autopar.ops.sharded import layers, losses, norms
from autopar.ops.sharded.losses import MEAN, NONE, SUM
from autopar.torch_private import coordinates
from tests.ops.joint import collectives_of, trace_joint, with_groups
from tests.processes import run_processes

MESHES = [MeshSpec((2,), ("a",)), MeshSpec((4,), ("a",)), MeshSpec((2, 2), ("a", "b"))]
meshes = pytest.mark.parametrize("mesh", MESHES, ids=str)

Axes = tuple[tuple[str, int], ...]
Local = Callable[[Sequence[Tensor], Axes, tuple[Tensor, ...]], Tensor]


def check(
    mesh: MeshSpec,
    full: Callable[..., Tensor],
    local: Local,
    inputs: Sequence[Tensor],
    befores: Sequence[Placement],
    after: Placement,
    *,
    constant: Sequence[int] = (),
    tolerance: float = 1e-12,
) -> None:
    """`local` on pieces cut as `befores` makes pieces of what `full` makes, placed as `after`; gradients likewise.

    Floating inputs get gradients, but for those that are `constant`. Runs eagerly, and as a joint graph that was traced
    without process groups.
    """
    learning = [i for i, x in enumerate(inputs) if x.is_floating_point() and i not in constant]
    inputs = [x.requires_grad_(i in learning) for i, x in enumerate(inputs)]
    expected = full(*inputs)
    upstream = torch.randn(expected.shape, dtype=expected.dtype, generator=torch.Generator().manual_seed(7))
    grads = torch.autograd.grad(expected, [inputs[i] for i in learning], upstream)
    graph = joint(mesh, local, inputs, befores, after, upstream)
    with local_ranks(mesh) as devices:
        groups = {name: devices.get_group(name).group_name for name in mesh.names}
        axes = tuple((groups[name], size) for name, size in zip(mesh.names, mesh.sizes, strict=True))
        at = coordinates(devices)
        pieces = [
            distribute(x.detach(), before, mesh.sizes, i) for i, (x, before) in enumerate(zip(inputs, befores, strict=True))
        ]
        upstreams = distribute(upstream, after.gradient(), mesh.sizes, 99)
        values = with_groups(graph, groups)(*pieces, *at, upstreams)
        pieces = [piece.requires_grad_(x.requires_grad) for piece, x in zip(pieces, inputs, strict=True)]
        output = local(pieces, axes, at)
        eager = output, *torch.autograd.grad(output, [pieces[i] for i in learning], upstreams)
        states = after, *(befores[i].gradient() for i in learning)
        for results in (values, eager):
            for what, (value, state, wanted) in enumerate(zip(results, states, (expected, *grads), strict=True)):
                joined = collect(value, state, mesh.sizes, tolerance=tolerance)
                name = f"gradient {what - 1}" if what else "output"
                torch.testing.assert_close(
                    joined, wanted, rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
                )


def joint(
    mesh: MeshSpec, local: Local, inputs: Sequence[Tensor], befores: Sequence[Placement], after: Placement, upstream: Tensor
) -> torch.fx.GraphModule:
    axes = tuple(zip(mesh.names, mesh.sizes, strict=True))
    examples = [
        torch.empty(before.local_shape(x.shape, mesh.sizes), dtype=x.dtype, requires_grad=x.requires_grad)
        for x, before in zip(inputs, befores, strict=True)
    ]
    count = len(inputs)
    return trace_joint(
        lambda *values: local(values[:count], axes, values[count:]),
        [*examples, *(torch.tensor(0) for _ in axes)],
        torch.empty(after.local_shape(upstream.shape, mesh.sizes), dtype=upstream.dtype),
    )


def on(mesh: MeshSpec, state: int | str) -> Placement:
    """The same state on every axis."""
    return Placement((state,) * len(mesh))


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


@meshes
@pytest.mark.parametrize("padding_idx", [-1, 5])
def test_embedding_with_a_sharded_vocabulary(mesh: MeshSpec, padding_idx: int) -> None:
    check(
        mesh,
        lambda weight, ids: torch.embedding(weight, ids, padding_idx),
        lambda x, axes, at: layers.embedding_vocab(x[0], x[1], axes, at, padding_idx),
        [randn(8, 3), torch.tensor([[0, 5, 7, 5], [3, 1, 2, 6]])],
        [on(mesh, 0), on(mesh, "I")],
        on(mesh, "P"),
    )


TARGET = torch.tensor([0, 3, -100, 7, 7, -100, 5, 2])


@meshes
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", [NONE, MEAN, SUM])
def test_cross_entropy_with_a_sharded_vocabulary(mesh: MeshSpec, reduction: int, smoothing: float, weighted: bool) -> None:
    weight = torch.linspace(0.5, 2.0, 8, dtype=torch.float64)
    count = 3 if weighted else 2
    check(
        mesh,
        lambda x, target, weight=None: torch.ops.aten.cross_entropy_loss(x, target, weight, reduction, -100, smoothing),
        lambda x, axes, at: losses.cross_entropy(
            x[0], x[1], x[2] if weighted else None, reduction, -100, smoothing, vocab_axes=axes, vocab_coordinates=at
        ),
        [randn(8, 8) * 20, TARGET, weight][:count],
        [on(mesh, 1), on(mesh, "I"), on(mesh, 0)][:count],
        on(mesh, "I"),
        constant=(2,),
    )


@meshes
@pytest.mark.parametrize("reduction", [NONE, MEAN, SUM])
def test_cross_entropy_with_sharded_tokens(mesh: MeshSpec, reduction: int) -> None:
    check(
        mesh,
        lambda x, target: torch.ops.aten.cross_entropy_loss(x, target, None, reduction, -100, 0.1),
        lambda x, axes, at: losses.cross_entropy(x[0], x[1], None, reduction, -100, 0.1, token_axes=axes),
        [randn(8, 6), TARGET % 6 + torch.where(TARGET < 0, -102, 0)],
        [on(mesh, 0), on(mesh, 0)],
        on(mesh, 0 if reduction == NONE else "P"),
    )


@pytest.mark.parametrize("ignore_index", [-100, 7])
def test_cross_entropy_with_tokens_and_vocabulary_sharded(ignore_index: int) -> None:
    check(
        MESHES[2],
        lambda x, target: torch.ops.aten.cross_entropy_loss(x, target, None, MEAN, ignore_index),
        lambda x, axes, at: losses.cross_entropy(
            *x, None, MEAN, ignore_index, vocab_axes=axes[1:], vocab_coordinates=at[1:], token_axes=axes[:1]
        ),
        [randn(8, 8), TARGET if ignore_index < 0 else TARGET.clamp(min=0)],
        [Placement((0, 1)), Placement((0, "I"))],
        Placement(("P", "I")),
    )


def test_cross_entropy_survives_masked_classes_and_huge_logits() -> None:
    logits = randn(8, 8) * 1000
    logits[:, 4:] = float("-inf")  # all that the second device has
    check(
        MESHES[0],
        lambda x, target: torch.ops.aten.cross_entropy_loss(x, target),
        lambda x, axes, at: losses.cross_entropy(*x, vocab_axes=axes, vocab_coordinates=at),
        [logits, TARGET.clamp(-100, 3)],
        [Placement((1,)), Placement(("I",))],
        Placement(("I",)),
    )


@meshes
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("shape", [(3, 8), (2, 3, 8)])
def test_layer_norm_with_a_sharded_hidden_dim(mesh: MeshSpec, affine: bool, shape: tuple[int, ...]) -> None:
    inputs = [randn(*shape) * 3 + 1, randn(8), randn(8) + 1][: 3 if affine else 1]
    hidden = on(mesh, len(shape) - 1)
    check(
        mesh,
        lambda x, *affine: F.layer_norm(x, (8,), *affine, eps=1e-5),
        lambda x, axes, at: norms.layer_norm_hidden(x[0], 8, *(x[1:] if affine else (None, None)), 1e-5, axes),
        inputs,
        [hidden, on(mesh, 0), on(mesh, 0)][: len(inputs)],
        hidden,
    )


def test_layer_norm_over_two_dims_of_which_the_outer_is_sharded() -> None:
    check(
        MESHES[0],
        lambda x, weight, bias: F.layer_norm(x, (4, 3), weight, bias),
        lambda x, axes, at: norms.layer_norm_hidden(x[0], 12, x[1], x[2], 1e-5, axes),
        [randn(2, 4, 3), randn(4, 3), randn(4, 3) + 1],
        [Placement((1,)), Placement((0,)), Placement((0,))],
        Placement((1,)),
    )


def test_layer_norm_does_not_cancel_when_the_mean_is_large() -> None:
    check(
        MESHES[1],
        lambda x: F.layer_norm(x, (8,)),
        lambda x, axes, at: norms.layer_norm_hidden(x[0], 8, None, None, 1e-5, axes),
        [randn(3, 8) + 1e6],
        [Placement((1,))],
        Placement((1,)),
        tolerance=1e-9,  # E[x^2] - E[x]^2 is off by 1e-4 here
    )


@meshes
@pytest.mark.parametrize("eps", [None, 1e-3])
@pytest.mark.parametrize("affine", [False, True])
def test_rms_norm_with_a_sharded_hidden_dim(mesh: MeshSpec, affine: bool, eps: float | None) -> None:
    check(
        mesh,
        lambda x, weight=None: F.rms_norm(x, (8,), weight, eps),
        lambda x, axes, at: norms.rms_norm_hidden(x[0], 8, x[1] if affine else None, eps, axes),
        [randn(2, 3, 8), randn(8)][: 2 if affine else 1],
        [on(mesh, 2), on(mesh, 0)][: 2 if affine else 1],
        on(mesh, 2),
    )


@meshes
def test_linear_with_the_contracted_dim_sharded_adds_its_bias_once(mesh: MeshSpec) -> None:
    check(
        mesh,
        F.linear,
        lambda x, axes, at: layers.linear_row_bias(*x, axes, at),
        [randn(2, 3, 8), randn(5, 8), randn(5)],
        [on(mesh, 2), on(mesh, 1), on(mesh, "R")],
        on(mesh, "P"),
    )


@meshes
def test_addmm_with_the_contracted_dim_sharded_adds_its_bias_once(mesh: MeshSpec) -> None:
    check(
        mesh,
        lambda bias, x, weight: torch.addmm(bias, x, weight, beta=0.5, alpha=2),
        lambda x, axes, at: layers.addmm_row_bias(*x, axes, at, beta=0.5, alpha=2),
        [randn(5), randn(3, 8), randn(8, 5)],
        [on(mesh, "R"), on(mesh, 1), on(mesh, 0)],
        on(mesh, "P"),
    )


GATHER, REDUCE = "all_gather_into_tensor", "all_reduce"
A, AB = (("a", 2),), (("a", 2), ("b", 2))


@pytest.mark.parametrize(
    ("local", "inputs", "shape", "expected"),
    [
        (
            lambda x, at: losses.cross_entropy(*x, vocab_axes=A, vocab_coordinates=(at,), token_axes=AB[1:]),
            [randn(4, 4), TARGET[:4]],
            (),
            [(REDUCE, "a"), (REDUCE, "a"), (REDUCE, "b")],
        ),
        (lambda x, at: losses.cross_entropy(*x), [randn(4, 4), TARGET[:4]], (), []),
        (
            lambda x, at: norms.layer_norm_hidden(*x[:1], 8, *x[1:], 1e-5, A),
            [randn(3, 4), randn(4), randn(4)],
            (3, 4),
            [(GATHER, "a"), (REDUCE, "a")],
        ),
        (
            lambda x, at: norms.rms_norm_hidden(x[0], 16, x[1], 1e-5, AB),
            [randn(3, 4), randn(4)],
            (3, 4),
            [(REDUCE, "a"), (REDUCE, "b")] * 2,
        ),
        (lambda x, at: layers.embedding_vocab(*x, A, (at,)), [randn(4, 3), TARGET[:2]], (2, 3), []),
        (lambda x, at: layers.linear_row_bias(*x, A, (at,)), [randn(2, 4), randn(3, 4), randn(3)], (2, 3), []),
    ],
    ids=["cross_entropy", "cross_entropy_whole", "layer_norm", "rms_norm", "embedding", "linear"],
)
def test_joint_graphs_hold_just_these_collectives(
    local: Callable[[Sequence[Tensor], Tensor], Tensor],
    inputs: Sequence[Tensor],
    shape: tuple[int, ...],
    expected: list[tuple[str, str]],
) -> None:
    examples = [x.requires_grad_(x.is_floating_point()) for x in inputs]
    module = trace_joint(lambda *x: local(x[:-1], x[-1]), [*examples, torch.tensor(0)], torch.empty(shape).double())
    assert collectives_of(module.graph) == expected


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_makes_one_buffer_of_the_logits_size_forward_and_one_backward(smoothing: float, weighted: bool) -> None:
    inputs = [randn(4, 8).requires_grad_(), TARGET[:4], randn(8)][: 3 if weighted else 2]
    module = trace_joint(lambda *x: losses.cross_entropy(*x, label_smoothing=smoothing), inputs, torch.empty(()).double())
    made = [n for n in module.graph.nodes if n.op == "call_function" and n.meta["val"].shape == (4, 8) and is_new(n.target)]
    assert [n.target for n in made] == [torch.ops.aten.sub.Tensor] * 2
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    (exp,) = made[0].users
    assert max(order[user] for user in exp.users) < order[made[1]]  # the first is gone before the second comes


def is_new(op: torch._ops.OpOverload) -> bool:
    """Whether the op's result has memory of its own."""
    return all(result.alias_info is None for result in op._schema.returns)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_less_exact_than_the_full_op(dtype: torch.dtype) -> None:
    logits, target, weight = (randn(64, 256) * 4).to(dtype), torch.arange(64) * 3, randn(256).to(dtype)
    logits[range(8), target[:8]] += 20  # learnt: their gradients are near 0, and differences of numbers near 1
    pairs: list[tuple[Callable[..., Tensor], Callable[..., Tensor]]] = [
        (lambda x: F.cross_entropy(x, target), lambda x: losses.cross_entropy(x, target)),
        (lambda x: F.layer_norm(x, (256,)), lambda x: norms.layer_norm_hidden(x, 256, None, None, 1e-5, ())),
        (lambda x: F.rms_norm(x, (256,), weight.to(x.dtype)), lambda x: norms.rms_norm_hidden(x, 256, weight, None, ())),
    ]
    for full, ours in pairs:
        exact, theirs, mine = [value_and_gradient(f, x) for f, x in ((full, logits.double()), (full, logits), (ours, logits))]
        for x, y, z in zip(exact, theirs, mine, strict=True):
            assert z.dtype == dtype
            assert (z - x).norm() <= 1.1 * (y - x).norm() + 1e-6 * x.norm()


def value_and_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = function(x)
    (grad,) = torch.autograd.grad(y, [x], torch.linspace(0.5, 1, y.numel()).to(x.dtype).view(y.shape))
    return y.detach(), grad


def real_process(rank: int, folder: str) -> None:
    """Cross-entropy over a sharded vocabulary and a norm over a sharded hidden dim, on this process's pieces."""
    group = init_device_mesh("cpu", (2,)).get_group(0).group_name
    axes, at = ((group, 2),), torch.tensor(rank)
    x = cut(randn(8, 8), Placement((1,)), (2,))[rank].requires_grad_()
    hidden = norms.layer_norm_hidden(x, 8, None, None, 1e-5, axes)
    loss = losses.cross_entropy(hidden, TARGET, vocab_axes=axes, vocab_coordinates=(at,))
    torch.save((loss.detach(), *torch.autograd.grad(loss, [x])), f"{folder}/{rank}.pt")


@pytest.mark.slow
def test_two_real_processes_equal_the_full_ops(tmp_path: Path) -> None:
    run_processes(2, real_process, str(tmp_path))
    x = randn(8, 8).requires_grad_()
    loss = F.cross_entropy(F.layer_norm(x, (8,)), TARGET)
    losses, grads = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True)
    torch.testing.assert_close(join(losses, Placement(("I",)), (2,)), loss.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(join(grads, Placement((1,)), (2,)), *torch.autograd.grad(loss, [x]), rtol=1e-12, atol=1e-12)


def test_the_harness_sees_a_wrong_gradient_and_a_wrong_placement() -> None:
    mesh = MESHES[0]
    arguments = [randn(3, 8), randn(5, 8), randn(5)], [on(mesh, 1), on(mesh, 1), on(mesh, "R")]
    with pytest.raises(AssertionError, match="output"):
        check(mesh, F.linear, lambda x, axes, at: F.linear(*x), *arguments, on(mesh, "P"))  # adds the bias twice
    with pytest.raises(AssertionError, match="gradient 2"):
        check(
            mesh,
            F.linear,
            lambda x, axes, at: layers.linear_row_bias(x[0], x[1], x[2].detach() + 0 * x[2], axes, at),
            *arguments,
            on(mesh, "P"),
        )
    with pytest.raises(AssertionError, match="ranks differ on I"):
        check(mesh, F.linear, lambda x, axes, at: layers.linear_row_bias(*x, axes, at), *arguments, on(mesh, "I"))
