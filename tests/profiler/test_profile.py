"""A profile equals what a real run does, and its closed forms equal a fresh profile at every size."""

from __future__ import annotations

from functools import cache

import pytest
import sympy
import torch
from torch import nn

from autopar.errors import InputError, TraceError
from autopar.ir.program import Program
from autopar.ir.run import run_program
from autopar.profiler.profile import INPUTS, Profile, ProfileAt, profile
from autopar.tracer import trace
from tests.models import MODELS
from tests.profiler.eager import count_flops, saved_storages, state_of, total

SYMBOLIC = ("gpt2", "llama", "bert", "vit")


@cache
def program(name: str, **sizes: int) -> Program:
    model, kwargs = MODELS[name](device="meta", **sizes)
    return trace(model, (), kwargs)


@cache
def static(name: str) -> ProfileAt:
    return profile(program(name), "cpu").at()


@cache
def dynamic(name: str) -> Profile:
    model, kwargs = MODELS[name](device="meta")
    return profile(trace(model, (), kwargs, dynamic={"batch": 0} | ({} if name == "vit" else {"seq": 1})), "cpu")


@pytest.mark.parametrize("name", MODELS)
def test_flops_are_those_that_torch_counts(name: str) -> None:
    """Of the eager model itself, forward and backward, exactly; flash attention's backward recomputes: 5 products, not 4."""
    model, kwargs = MODELS[name]()
    outputs, forward = count_flops(lambda: model(**kwargs))
    _, backward = count_flops(lambda: outputs["loss"].backward())
    figures = static(name)
    assert (figures.forward_flops, figures.backward_flops) == (forward, backward)


@pytest.mark.parametrize("name", MODELS)
def test_saved_bytes_are_those_that_autograd_saves(name: str) -> None:
    """Of the program run op by op: the same bytes exactly, no tolerance.

    Storages count once, parameters and buffers not at all. Eager code of Hugging Face saves other bytes than the program
    where the two differ as code (a causal flag there, a mask tensor here), hence the program as reference.
    """
    model, kwargs = MODELS[name]()
    traced, state = program(name), state_of(model)
    want = saved_storages(lambda: run_program(traced, state, (), kwargs), state)
    assert static(name).saved_bytes == total(want)


@pytest.mark.parametrize(
    ("name", "batch", "seq"), [*((name, 3, 7) for name in SYMBOLIC), ("gpt2", 8, 16), ("llama", 8, 16), ("gpt2", 5, 32)]
)
def test_closed_form_equals_a_fresh_profile(name: str, batch: int, seq: int) -> None:
    """FLOPs, bytes and seconds; (8, 16) is where the closed form was traced."""
    sizes = {"batch": batch} | ({} if name == "vit" else {"seq": seq})
    got = dynamic(name).at(**sizes)
    assert got == (static(name) if (batch, seq) == (8, 16) else profile(program(name, **sizes), "cpu").at())
    assert got.forward_s is not None
    assert 0 < got.forward_s < got.backward_s


def test_closed_form_is_the_formula() -> None:
    """GPT-2's layer: 2 * 12 h^2 per token in its four linears, 4 h per token and key in attention; then the head, h v."""
    figures, h, v, layers = dynamic("gpt2"), 64, 128, 2
    tokens, seq = figures.symbols["batch"] * figures.symbols["seq"], figures.symbols["seq"]
    assert sympy.expand(figures.forward_flops - tokens * (layers * (24 * h**2 + 4 * h * seq) + 2 * h * v)) == 0
    assert sympy.expand(figures.backward_flops - tokens * (layers * (48 * h**2 + 10 * h * seq) + 4 * h * v)) == 0


def test_rows_add_up() -> None:
    figures = dynamic("gpt2")
    assert [(row.region, row.calls) for row in figures.regions] == [
        ("start", 1), ("transformer.h.*", 2), ("end", 1), (INPUTS, 1),
    ]  # fmt: skip
    for name in ("forward_flops", "backward_flops", "saved_bytes"):
        assert sympy.expand(sum(getattr(row, name) for row in figures.regions) - getattr(figures, name)) == 0
        for region in figures.regions[:3]:
            rows = [getattr(row, name) for row in figures.units if row.region == region.region]
            assert sympy.expand(sum(rows) - getattr(region, name)) == 0


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).sum()


def test_one_linear_by_hand() -> None:
    """x [4, 6] needs no gradient: forward 2*4*6*10, backward the weight's gradient only. Backward reads x.

    At rest 4 * 70 numbers of 4 bytes (parameters, gradients, AdamW's two) and x (4*6*4 bytes). Beside these at most the
    linear's result [4, 10] and its sum exist in forward, and in backward the sum's gradient, expanded: no memory of its own.
    """
    figures = profile(trace(Linear(), (torch.randn(4, 6),))).at()
    assert (figures.parameter_count, figures.parameter_bytes, figures.buffer_bytes) == (70, 280, 0)
    assert (figures.forward_flops, figures.backward_flops) == (480, 480)
    assert figures.saved_bytes == 96
    assert figures.peak_bytes == 4 * 280 + 96 + 160 + 4
    assert figures.forward_s is None


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 10, bias=False), nn.Linear(10, 3, bias=False)
        self.aside = nn.Linear(10, 5)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.first(x).relu()
        return {"loss": self.second(hidden).pow(2).sum(), "other": self.aside(hidden)}


def test_one_mlp_by_hand() -> None:
    """relu keeps its result, which the second linear keeps too: once. pow keeps its operand.

    The branch that the loss does not see has a forward, and no backward.
    """
    figures = profile(trace(Perceptron(), (torch.randn(4, 6),), dynamic={"rows": 0}))
    rows = figures.symbols["rows"]
    assert figures.forward_flops == rows * 2 * (60 + 30 + 50)
    assert figures.backward_flops == rows * 2 * (60 + 2 * 30)
    assert figures.saved_bytes == rows * 4 * (6 + 10 + 3)
    assert figures.parameter_count == 60 + 30 + 55


def test_sizes_must_be_all_and_positive() -> None:
    figures = dynamic("vit")
    with pytest.raises(InputError, match=r"has the dynamic dims \['batch'\], and sizes were given for \['batch', 'seq'\]"):
        figures.at(batch=2, seq=3)
    with pytest.raises(InputError, match="has the dynamic dims"):
        figures.at()
    with pytest.raises(InputError, match=r"'batch' of .* must be a positive int, not 0"):
        figures.at(batch=0)


@torch.library.custom_op("autopar_test_profile::stubborn", mutates_args=())
def stubborn(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@stubborn.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


stubborn.register_autograd(lambda ctx, grad: grad * (2 * int(grad.shape[0]) // int(grad.shape[0])))


class Stubborn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return stubborn(self.linear(x)).sum()


def test_an_op_whose_backward_fixes_a_dim_is_named() -> None:
    program = trace(Stubborn(), (torch.randn(4, 6),), dynamic={"rows": 0})
    with pytest.raises(TraceError, match=r"stubborn.* fixes the dynamic dim 'rows' to 4; leave it out"):
        profile(program)
