"""The reference that profiles are held against: two trackers agree, and nothing is alive that nobody accounts for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.profiler.eager import CORRECTED, FILLED, TORCH, count_flops_by_op, saved_tensors, training_flops
from tests.profiler.eager_memory import PHASES, Measured, inference, mem_tracker_peaks, training_steps
from tests.zoo import ZOO

FAST = {"gpt2", "bart", "mixtral", "resnet", "mlp", "batchnorm"}
each_setup = pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FAST else [pytest.mark.slow]) for n in ZOO])
HELD_BY_MEM_TRACKER = {"bart": 6144, "whisper": 3072}
"""Its hooks hold the gradients of a decoder layer's inputs until the last, the encoder's output, has its own."""


@each_setup
def test_peaks_are_those_of_mem_tracker(name: str) -> None:
    steps = training_steps(*ZOO[name].build())
    first, second = mem_tracker_peaks(*ZOO[name].build())
    assert [step.peak_bytes for step in steps] == [first, second - HELD_BY_MEM_TRACKER.get(name, 0)]


@each_setup
def test_after_forward_only_what_autograd_saved_and_the_loss_are_alive(name: str) -> None:
    model, inputs = ZOO[name].build()
    saved = saved_tensors(model, inputs)
    loss = model(**inputs)["loss"].untyped_storage().nbytes()
    step, again = training_steps(*ZOO[name].build())
    assert saved.context_bytes == 0
    assert step.after("forward") == step.resting_bytes + saved.bytes + loss
    assert again.after("forward") == again.resting_bytes + saved.bytes + loss


@each_setup
def test_phases_and_inference(name: str) -> None:
    """Gradients die at the end of a step; a forward without gradients never needs more than one with them."""
    model, inputs = ZOO[name].build()
    first, second = training_steps(model, inputs)
    assert max(second.phase_peak(phase) for phase in PHASES) == second.peak_bytes == second.timeline[second.peak_at][1]
    assert first.after("step") > first.after("zero_grad")
    assert inference(*ZOO[name].build()).peak_bytes <= first.phase_peak("forward")


class Keeps(torch.autograd.Function):
    """Saves its input twice: as one should, and as one should not."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.exp())
        ctx.twice = 2 * x  # type: ignore[attr-defined]
        return x.exp()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        return grad


class Saver(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        unused = (x * self.weight).sin()
        del unused  # its graph goes with it
        y = x * self.weight
        y = y[:4].square() + y[4:].square()
        return {"loss": Keeps.apply(y).sum()}  # type: ignore[no-untyped-call]


def test_saved_bytes_by_hand() -> None:
    """The input, two views of one storage of 32 bytes, what was saved in the function (16), and on its context (16)."""
    saved = saved_tensors(Saver(), {"x": torch.randn(8)})
    assert (saved.input_bytes, dict(saved.sizes), saved.context_bytes) == (32, {32: 1, 16: 1}, 16)


def test_a_timeline_by_hand() -> None:
    """x, w (32 bytes each) rest; w * x and the loss (36) are made, of which backward keeps nothing; AdamW: two moments."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"loss": (self.w * x).sum()}

    first, second = training_steps(Model(), {"x": torch.randn(8)})
    assert (first.resting_bytes, first.phase_peak("forward"), first.after("forward")) == (64, 64 + 36, 64 + 4)
    assert first.after("backward") == 64 + 4 + 32
    assert first.after("step") == 64 + 4 + 32 + 64 + 4
    assert second.resting_bytes == 64 + 64 + 4
    assert second.peak_bytes == second.resting_bytes + 4 + 32 + 64


def test_phase_peaks_are_of_their_phase() -> None:
    measured = Measured(resting_bytes=0, timeline=[("a", 5), ("forward", 2), ("b", 9), ("c", 1), ("backward", 1)])
    assert (measured.phase_peak("forward"), measured.phase_peak("backward"), measured.peak_at) == (5, 9, 2)


def test_flops_that_torch_leaves_out_or_counts_too_often() -> None:
    """Flash attention on the CPU, products of experts, gradients of grouped convolutions' weights."""
    q = torch.randn(2, 4, 16, 8)
    product = 2 * (2 * 4) * 16 * 16 * 8
    attention = lambda: F.scaled_dot_product_attention(q, q, q)  # noqa: E731
    assert sum(count_flops_by_op(attention, TORCH)[1].values()) == 0
    assert sum(count_flops_by_op(attention, FILLED)[1].values()) == 2 * product
    assert training_flops(*ZOO["mixtral"].build(), TORCH).forward == 454656
    experts = 2 * 48 * (32 * 2 * 96 + 96 * 32)
    eager = 454656 + 2 * (2 * 2 * (2 * 4) * 12 * 12 * 8) + 2 * experts
    assert training_flops(*ZOO["mixtral"].build(), FILLED).forward == eager
    x, weight = torch.randn(2, 8, 6, 6, requires_grad=True), torch.randn(8, 1, 3, 3, requires_grad=True)
    forward = 2 * 2 * 36 * 8 * 9
    for counts, times in ((TORCH, 9), (CORRECTED, 2)):
        out, by_op = count_flops_by_op(lambda: F.conv2d(x, weight, padding=1, groups=8), counts)
        assert by_op == {"aten.convolution": forward}
        assert count_flops_by_op(out.sum().backward, counts)[1] == {"aten.convolution_backward": times * forward}
