"""Models that use `torch.utils.checkpoint` trace as without it, with gradients, and the checkpointed nodes are marked."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, checkpoint_sequential, create_selective_checkpoint_contexts

from autopar.ir.program import Program
from autopar.ir.run import run_program
from autopar.tracer import trace
from tests.models import MODELS

HIDDEN = 8
BOTH = pytest.mark.parametrize("reentrant", [False, True])


class Block(nn.Module):
    """A product, and an MLP that may be under a checkpoint of its own; part of it is computed without gradients."""

    def __init__(self, inner: bool | None = None) -> None:
        super().__init__()
        self.attn, self.mlp, self.inner = nn.Linear(HIDDEN, HIDDEN), nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.GELU()), inner

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = x.abs().mean()
        x = x + self.attn(x) / scale
        return x + (self.mlp(x) if self.inner is None else checkpoint(self.mlp, x, use_reentrant=self.inner))


class Model(nn.Module):
    """`layers` blocks; block i is checkpointed where `which(i)`."""

    def __init__(self, which: Any = lambda i: True, *, reentrant: bool = False, layers: int = 3, **options: Any) -> None:
        super().__init__()
        inner = options.pop("inner", None)
        self.embed = nn.Linear(HIDDEN, HIDDEN)
        self.blocks = nn.ModuleList(Block(inner) for _ in range(layers))
        self.which, self.options = which, {"use_reentrant": reentrant} | options

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for i, block in enumerate(self.blocks):
            x = checkpoint(block, x, **self.options) if self.which(i) else block(x)
        return x.square().mean()


def example() -> Tensor:
    return torch.randn(4, HIDDEN, generator=torch.Generator().manual_seed(0))


def marks(program: Program) -> dict[str, list[int | None]]:
    """Region -> the checkpoint of each of its nodes."""
    return {
        name: [node.meta.get("checkpoint") for node in region.graph.nodes if node.op == "call_function"]
        for name, region in program.regions.items()
    }


def calls(program: Program) -> list[str]:
    return [call.region for call in program.calls]


@BOTH
@pytest.mark.parametrize("once", [True, False])
def test_checkpointed_layers(reentrant: bool, once: bool) -> None:
    plain = trace(Model(lambda i: False), (example(),))
    program = trace(Model(reentrant=reentrant), (example(),), blocks_once=once)
    assert calls(program) == calls(plain) == ["start", *["blocks.*"] * 3, "end"]
    assert set(marks(program)["blocks.*"]) == {0}
    assert set(marks(program)["start"]) == set(marks(program)["end"]) == {None}
    assert set(marks(plain)["blocks.*"]) == {None}
    assert program.fingerprint == plain.fingerprint, "a plan for the one fits the other"
    assert [spec.needs_grad for spec in program.values.values()] == [spec.needs_grad for spec in plain.values.values()]


@BOTH
def test_the_program_trains_as_the_model_does(reentrant: bool) -> None:
    model, x = Model(lambda i: i != 1, reentrant=reentrant), example()
    program = trace(model, (x,))
    parameters = dict(model.named_parameters())
    ours = torch.autograd.grad(run_program(program, parameters, (x,)), list(parameters.values()))
    model(x).backward()
    for (name, parameter), gradient in zip(parameters.items(), ours, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, msg=name)
    assert all(bool(g.abs().sum()) for g in ours)


@BOTH
def test_layers_that_differ_in_it_are_different_regions(reentrant: bool) -> None:
    program = trace(Model(lambda i: i % 2 == 0, reentrant=reentrant, layers=4), (example(),))
    first, second, third, fourth = calls(program)[1:5]
    assert first == third != second == fourth
    assert set(marks(program)[first]) == {0}
    assert set(marks(program)[second]) == {None}


@BOTH
@pytest.mark.parametrize("once", [True, False])
def test_a_checkpoint_within_each_layer(reentrant: bool, once: bool) -> None:
    program = trace(Model(lambda i: False, inner=reentrant), (example(),), blocks_once=once)
    assert calls(program)[1:4] == ["blocks.*"] * 3
    region = program.regions["blocks.*"]
    inside = {node.meta["path"] for node in region.graph.nodes if node.meta.get("checkpoint") == 0}
    assert inside == {"mlp.0", "mlp.1"}


@BOTH
def test_two_calls_in_a_row_are_two_checkpoints(reentrant: bool) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(HIDDEN, HIDDEN)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(2):
                x = checkpoint(lambda y: self.linear(y).relu(), x, use_reentrant=reentrant)
            return x.square().mean()

    x = example().requires_grad_()
    (found,) = marks(trace(Twice(), (x,))).values()
    assert found == [0, 0, 1, 1, None, None]


def test_checkpoint_sequential() -> None:
    """Two segments of two layers: torch runs the last one without a checkpoint."""

    class Sequential(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*(nn.Linear(HIDDEN, HIDDEN) for _ in range(4)))

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint_sequential(self.layers, 2, x, use_reentrant=False).square().mean()

    program = trace(Sequential(), (example(),))
    found = [mark for region in calls(program) for mark in marks(program)[region]]
    assert found == [0, 0, None, None, None, None]


def test_selective_checkpoints_are_left_to_the_solver() -> None:
    save = functools.partial(create_selective_checkpoint_contexts, lambda *_, **__: CheckpointPolicy.PREFER_RECOMPUTE)
    program = trace(Model(context_fn=save), (example(),))
    assert {mark for part in marks(program).values() for mark in part} == {None}


@BOTH
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable")
def test_gradient_checkpointing_of_transformers(name: str, reentrant: bool) -> None:
    model, kwargs = MODELS[name]()
    plain = trace(model, (), kwargs)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})  # type: ignore[operator]
    program = trace(model, (), kwargs)
    assert program.fingerprint == plain.fingerprint
    (layer,) = (region for region in program.regions if region.endswith("*"))
    assert set(marks(program)[layer]) == {0}
    assert {name for name, s in program.values.items() if s.needs_grad} == {
        name for name, s in plain.values.items() if s.needs_grad
    }
