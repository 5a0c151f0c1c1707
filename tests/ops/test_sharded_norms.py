"""Sharded norms and softmax: joint graphs, what they send, and their precision. Their strategies are proved in `test_rules`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from autopar.ir.mesh import MeshSpec
from autopar.ir.placement import Placement
from autopar.ops.sharded import common, norms
from tests.ops.joint import collectives_of, trace_joint
from tests.ops.test_sharded import AB, GATHER, MESHES, REDUCE, A, check, meshes, on, randn, value_and_gradient

Sent = list[tuple[str, str]]


@meshes
@pytest.mark.parametrize("dim", [0, 2])
def test_batch_norm_of_a_sharded_batch_or_space_is_that_of_the_whole_batch(mesh: MeshSpec, dim: int) -> None:
    check(
        mesh,
        lambda x, weight, bias: F.batch_norm(x, None, None, weight, bias, training=True),
        lambda x, axes, at: norms.batch_norm(x[0], x[1], x[2], None, 0.1, 1e-5, axes)[0],
        [randn(4, 3, 4) + 5, randn(3), randn(3) + 1],
        [on(mesh, dim), on(mesh, "R"), on(mesh, "R")],
        on(mesh, dim),
    )


@meshes
@pytest.mark.parametrize("logarithm", [False, True])
def test_softmax_along_a_sharded_dim(mesh: MeshSpec, logarithm: bool) -> None:
    check(
        mesh,
        lambda x: F.log_softmax(x, 1) if logarithm else F.softmax(x, 1),
        lambda x, axes, at: norms.softmax(x[0], 1, None, axes, logarithm=logarithm),
        [randn(3, 8) * 300],
        [on(mesh, 1)],
        on(mesh, 1),
    )


@pytest.mark.parametrize("logarithm", [False, True])
def test_softmax_of_masked_classes(logarithm: bool) -> None:
    """Of the first row one device has nothing but masked classes, of the second both."""
    x = randn(2, 8)
    x[0, 4:] = x[1] = float("-inf")
    check(
        MESHES[0],
        lambda x: F.log_softmax(x, 1) if logarithm else F.softmax(x, 1),
        lambda x, axes, at: norms.softmax(x[0], 1, None, axes, logarithm=logarithm),
        [x],
        [Placement((1,))],
        Placement((1,)),
    )


def test_running_statistics_have_the_variance_over_the_global_count_less_one() -> None:
    x, running = randn(4, 3, 5), (torch.zeros(3).double(), torch.ones(3).double())
    _, _, _, mean, variance = norms.batch_norm(x, None, None, running, 0.1, 1e-5, ())
    F.batch_norm(x, *running, training=True, momentum=0.1)
    torch.testing.assert_close((mean, variance), running, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("local", "expected"),
    [
        (
            lambda x: norms.batch_norm(x, None, None, None, 0.1, 1e-5, AB)[0],
            [(GATHER, "a"), (GATHER, "b"), (REDUCE, "a"), (REDUCE, "b")],
        ),
        (lambda x: norms.softmax(x, 1, None, A), [(REDUCE, "a")] * 3),
        (lambda x: norms.softmax(x, 1, None, A, logarithm=True), [(REDUCE, "a")] * 3),
    ],
    ids=["batch_norm", "softmax", "log_softmax"],
)
def test_joint_graphs_hold_just_these_collectives(local: Callable[[Tensor], Tensor], expected: Sent) -> None:
    module = trace_joint(local, [randn(4, 3).requires_grad_()], torch.empty(4, 3).double())
    assert collectives_of(module.graph) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_less_exact_than_the_full_op(dtype: torch.dtype) -> None:
    x = (randn(64, 32) * 4 + 3).to(dtype)
    pairs: Sequence[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = [
        (lambda x: F.softmax(x, 1), lambda x: norms.softmax(x, 1, None, ())),
        (lambda x: F.log_softmax(x, 1), lambda x: norms.softmax(x, 1, None, (), logarithm=True)),
        (
            lambda x: F.batch_norm(x, None, None, training=True),
            lambda x: norms.batch_norm(x, None, None, None, 0.1, 1e-5, ())[0],
        ),
    ]
    for full, ours in pairs:
        exact, theirs, mine = [value_and_gradient(f, x) for f, x in ((full, x.double()), (full, x), (ours, x))]
        for a, b, c in zip(exact, theirs, mine, strict=True):
            assert c.dtype == dtype
            assert (c - a).norm() <= 1.1 * (b - a).norm() + 1e-6 * a.norm()


def test_a_bias_is_added_once() -> None:
    bias = randn(3)
    pieces = [common.once(bias, (torch.tensor(i), torch.tensor(j))) for i in range(2) for j in range(2)]
    assert torch.equal(torch.stack(pieces).sum(0), bias)
