"""Profiles of small models, and figures made of profiles, calculated by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sympy
import torch
from torch import nn

import autopar
from autopar.errors import InputError
from autopar.profiler.precision import Precision
from autopar.profiler.tape import BACKWARD, FORWARD
from tests.hardware_toy import toy_hardware
from tests.profiler.profiled import dynamic, static
from tests.zoo import ZOO
from tests.zoo_parts import HIDDEN, VOCAB


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).sum()


def test_one_linear() -> None:
    """x [4, 6] needs no gradient: forward 2*4*6*10, backward the weight's gradient only. Backward reads x.

    At rest 70 parameters, twice as many moments, two counters of 4 bytes, and x. Forward makes the result [4, 10] and its sum;
    backward its gradients: of the sum 1, spread without memory; of weight and bias 70, while the sum is there. That gradient
    of the result needs no memory: mm reads it spread. The optimizer's step: 70 gradients, the sum, AdamW's two of the weight.
    """
    figures = autopar.profile(Linear(), (torch.randn(4, 6),)).at()
    assert (figures.parameter_count, figures.parameter_bytes, figures.buffer_bytes, figures.input_bytes) == (70, 280, 0, 96)
    assert (figures.forward_flops, figures.backward_flops) == (480, 480)
    assert (figures.torch_forward_flops, figures.torch_backward_flops) == (480, 480)
    assert figures.other_forward_flops == 40
    assert figures.gradient_bytes == 280
    assert figures.optimizer_bytes == 2 * 280 + 8
    assert figures.saved_bytes == 0
    rest = 280 + 568 + 96
    assert figures.peak_bytes == rest + 280 + 4 + 2 * 240
    assert figures.inference_peak_bytes == 280 + 96 + 160 + 4


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 10, bias=False), nn.Linear(10, 3, bias=False)
        self.aside = nn.Linear(10, 5)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.first(x).relu()
        return {"loss": self.second(hidden).pow(2).sum(), "other": self.aside(hidden)}


def test_one_mlp() -> None:
    """relu keeps its result, which the second linear keeps too: once. pow keeps its operand.

    The branch that the loss does not see has a forward, and no backward; it keeps nothing once its result is gone.
    """
    figures = autopar.profile(Perceptron(), (torch.randn(4, 6),), dynamic={"rows": 0})
    rows = figures.symbols["rows"]
    assert sympy.expand(figures.forward_flops - rows * 2 * (60 + 30 + 50)) == 0
    assert sympy.expand(figures.backward_flops - rows * 2 * (60 + 2 * 30)) == 0
    assert sympy.expand(figures.saved_bytes - rows * 4 * (10 + 3)) == 0
    assert sympy.expand(figures.input_bytes - rows * 4 * 6) == 0
    assert figures.parameter_count == 60 + 30 + 55
    assert figures.gradient_bytes == 4 * 90


def test_the_closed_form_of_gpt2() -> None:
    """A layer: 24 h^2 per token in its four linears, 4 h per token and key in attention; then the head, 2 h v.

    Backward: twice that of linears; flash attention's computes the scores once more, 5 products for 2.
    """
    figures, h, v, layers = dynamic("gpt2"), HIDDEN, VOCAB, 4
    batch, seq = figures.symbols["batch"], figures.symbols["seq"]
    tokens = batch * seq
    assert sympy.expand(figures.forward_flops - tokens * (layers * (24 * h**2 + 4 * h * seq) + 2 * h * v)) == 0
    assert sympy.expand(figures.backward_flops - tokens * (layers * (48 * h**2 + 10 * h * seq) + 4 * h * v)) == 0
    assert figures.input_bytes == 16 * tokens
    assert figures.tokens == tokens
    assert figures.parameter_count == (v + 64) * h + layers * (12 * h**2 + 13 * h) + 2 * h
    assert figures.gradient_bytes == figures.parameter_bytes == 4 * figures.parameter_count
    assert set(sympy.Poly(figures.saved_bytes, batch, seq).monoms()) <= {(1, 1), (1, 0), (0, 1), (0, 0)}


def test_eager_attention_keeps_squares() -> None:
    """In float32: the scores' softmax, [batch, heads, seq, seq], in each of 4 layers; the formula says so."""
    figures = dynamic("gpt2", "eager")
    saved = sympy.Poly(figures.saved_bytes, *figures.symbols.values())
    assert saved.coeff_monomial(figures.symbols["batch"] * figures.symbols["seq"] ** 2) >= 4 * 4 * 4
    assert sympy.Poly(dynamic("gpt2").saved_bytes, *figures.symbols.values()).degree(figures.symbols["seq"]) == 1


@pytest.mark.parametrize("update_bytes_per_s", [None, 4e9])
def test_throughput(update_bytes_per_s: float | None) -> None:
    """Every op by the roofline, the optimizer by what it moves: parameters and state twice, gradients once."""
    hardware = replace(toy_hardware(), update_bytes_per_s=update_bytes_per_s)
    model, kwargs = ZOO["gpt2"].build(layers=4)
    figures = autopar.profile(model, kwargs=kwargs, hardware=hardware)
    got, numbers = figures.throughput(), figures.at()
    seconds = {
        phase: sum(
            row.calls * hardware.time_s(row.one.flops + row.one.other_flops, row.one.bytes, row.dtype)
            for row in figures.ops
            if row.phase == phase
        )
        for phase in (FORWARD, BACKWARD)
    }
    assert (numbers.forward_s, numbers.backward_s) == pytest.approx((seconds[FORWARD], seconds[BACKWARD]))
    moved = 2 * (numbers.parameter_bytes + numbers.optimizer_bytes) + numbers.gradient_bytes
    updated_s = moved / (update_bytes_per_s or hardware.bytes_per_s)
    assert numbers.optimizer_s == pytest.approx(updated_s)
    assert got.step_s == numbers.step_s == pytest.approx(sum(seconds.values()) + updated_s)
    assert (got.unit, got.tokens_per_s) == ("tokens", pytest.approx(2 * 12 / got.step_s))
    done = numbers.forward_flops + numbers.backward_flops
    assert got.mfu == pytest.approx(done / got.step_s / hardware.flops_per_s["float32"])
    assert 0 < got.mfu < 1


def test_throughput_counts_samples_of_images() -> None:
    figures = static("mlp")
    assert (figures.throughput().unit, figures.tokens) == ("samples", 8)
    assert figures.throughput().tokens_per_s == pytest.approx(8 / figures.throughput().step_s)


@pytest.mark.parametrize(
    ("precision", "parameters", "gradients", "optimizer"),
    [
        (None, 4 * 70, 4 * 70, 8 * 70 + 8),
        ("compute=bfloat16", (4 + 2) * 70, 2 * 70, 8 * 70 + 8),
        ("bfloat16", (4 + 2) * 70, 2 * 70, 8 * 70 + 8),
        ("parameters=bfloat16,compute=bfloat16", 2 * 70, 2 * 70, 4 * 70 + 8),
        ("compute=bfloat16,reduce=float32", (4 + 2) * 70, 4 * 70, 8 * 70 + 8),
        ("parameters=bfloat16", (2 + 4) * 70, 4 * 70, 4 * 70 + 8),
        ("parameters=float64,compute=float32", (8 + 4) * 70, 4 * 70, 16 * 70 + 8),
    ],
)
def test_mixed_precision(precision: str | None, parameters: int, gradients: int, optimizer: int) -> None:
    """Parameters as they rest and their copies; gradients in the dtype of compute, or of the buffers that add them up."""
    figures = autopar.profile(Linear(), (torch.randn(4, 6),), precision=precision).at()
    assert (figures.parameter_bytes, figures.gradient_bytes, figures.optimizer_bytes) == (parameters, gradients, optimizer)
    assert (figures.forward_flops, figures.backward_flops) == (480, 480)


def test_the_memory_of_mixed_precision() -> None:
    """Copies and buffers rest for the whole step; inputs are cast too; gradients go once they are added."""
    figures = autopar.profile(Linear(), (torch.randn(4, 6),), precision="compute=bfloat16,reduce=float32")
    memory = figures.memory()
    rests = {name: size for name, size in memory.split.items() if name not in ("gradients", "activations", "temporaries")}
    assert rests == {
        "parameters": 280, "compute copies": 140, "gradient buffers": 280, "optimizer": 568, "buffers": 0, "inputs": 48,
    }  # fmt: skip
    assert memory.course["gradients"][-1] == 0
    assert max(memory.course["gradients"]) in (20, 120)


@pytest.mark.parametrize("name", ["mlp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "bert"))])
def test_computing_in_a_dtype_is_what_a_model_of_that_dtype_does(name: str) -> None:
    model, kwargs = ZOO[name].build(layers=4)
    cast = autopar.profile(model, kwargs=kwargs, precision=Precision(compute="bfloat16")).at()
    model, kwargs = ZOO[name].build(layers=4)
    inputs = {key: t.bfloat16() if t.is_floating_point() else t for key, t in kwargs.items()}
    same = autopar.profile(model.bfloat16(), kwargs=inputs).at()
    figures = ("forward_flops", "backward_flops", "torch_backward_flops", "saved_bytes", "gradient_bytes", "moved_bytes")
    assert [getattr(cast, figure) for figure in figures] == [getattr(same, figure) for figure in figures]
    assert same.saved_bytes < static(name).at().saved_bytes


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        ("compute=int8", r"precision: compute='int8' is no floating-point dtype of torch"),
        ("compute=bf16", r"precision: compute='bf16' is no floating-point dtype"),
        ("reduce=tensor", r"precision: reduce='tensor' is no floating-point dtype"),
        ("weights=float32", r"precision 'weights=float32': 'weights' is none of parameters, compute, reduce"),
    ],
)
def test_unknown_precision(precision: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        autopar.profile(Linear(), (torch.randn(4, 6),), precision=precision)
