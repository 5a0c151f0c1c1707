"""Peaks are those of a real run, and the memory of a step over time explains them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adafactor, Adam, Optimizer

import autopar
from autopar.profiler import blocks
from autopar.profiler.memory import KINDS, STEP, MemoryAt
from autopar.profiler.rows import REST
from autopar.profiler.tape import BACKWARD, FORWARD
from tests.profiler.eager_memory import inference, mem_tracker_peaks, training_steps
from tests.profiler.profiled import CASES, LAYERS, dynamic, example, inferred, second_step, static, zoo
from tests.profiler.test_eager import HELD_BY_MEM_TRACKER
from tests.zoo import ZOO

FAST = ("gpt2", "bert", "mixtral", "resnet", "mlp")
each_model = zoo(fast=FAST)

LATER = {"t5", "bart", "whisper"}
"""In backward of decoder blocks that are run once, the branch through cross-attention comes at another moment: levels within a
block differ by less than 1 % in both directions, its ends and the peaks do not."""

OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], Optimizer]] = {
    "adam": lambda p: Adam(p, foreach=False),
    "momentum": lambda p: SGD(p, momentum=0.9, foreach=False),
    "sgd": lambda p: SGD(p, foreach=False),
    "adafactor": lambda p: Adafactor(p, foreach=False),
}


@each_model
def test_peak_of_a_training_step_is_what_eager_holds(name: str, attention: str) -> None:
    got, eager = static(name, attention).at().peak_bytes, second_step(name, attention).peak_bytes
    assert got == eager


@each_model
def test_peak_of_each_phase(name: str, attention: str) -> None:
    """Exactly; what is alive between phases too."""
    memory, eager = static(name, attention).memory(), second_step(name, attention)
    end = memory.forward_end
    assert memory.levels[end - 1] == eager.after("forward")
    assert memory.levels[-1] == eager.after("backward")
    assert max(memory.levels[:end]) == eager.phase_peak("forward")
    assert max(memory.levels[end:]) == eager.phase_peak("backward")
    assert memory.levels[-1] + memory.step_bytes == eager.phase_peak("step")


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("mlp", "adam"),
        ("mlp", "momentum"),
        ("mlp", "adafactor"),
        pytest.param("gpt2", "sgd", marks=pytest.mark.slow),
        pytest.param("gpt2", "adafactor", marks=pytest.mark.slow),
        pytest.param("bert", "momentum", marks=pytest.mark.slow),
        pytest.param("bert", "adam", marks=pytest.mark.slow),
        pytest.param("resnet", "adafactor", marks=pytest.mark.slow),
    ],
)
def test_peak_with_other_optimizers(name: str, optimizer: str) -> None:
    step = training_steps(*ZOO[name].build(layers=LAYERS), optimizer=OPTIMIZERS[optimizer])[1]
    assert static(name, optimizer=optimizer).at().peak_bytes == step.peak_bytes


@pytest.mark.parametrize(
    "name", ["mlp", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gpt2", "bart", "whisper", "vit", "mixtral", "unet"))]
)
def test_peak_is_that_of_mem_tracker(name: str) -> None:
    """Torch's own tracker; what its hooks hold of encoder-decoder models is said in test_eager."""
    _, second = mem_tracker_peaks(*ZOO[name].build(layers=2))
    assert static(name, layers=2).at().peak_bytes == second - HELD_BY_MEM_TRACKER.get(name, 0)


@zoo(fast=FAST, cases=[c for c in CASES if c[0] != "encoder"])
def test_inference_peak_is_what_eager_holds(name: str, attention: str) -> None:
    assert static(name, attention).at().inference_peak_bytes == inferred(name, attention).peak_bytes


def test_inference_peak_of_a_transformer_layer_without_its_fused_kernel() -> None:
    """In eval mode `nn.TransformerEncoderLayer` runs one kernel, whose memory no tracker sees: ops are profiled one by one."""
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        measured = inference(*ZOO["encoder"].build(layers=LAYERS)).peak_bytes
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    assert static("encoder").at().inference_peak_bytes == measured


@zoo(fast=("gpt2", "batchnorm", "mlp"))
def test_running_blocks_once_changes_nothing(name: str, attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every level of memory over time, every figure, are those of a profile that runs each block."""
    folded = static(name, attention)
    monkeypatch.setattr(blocks, "FEWEST", 1 << 30)
    model, kwargs = ZOO[name].build(layers=LAYERS, attention=attention)
    each = autopar.profile(model, kwargs=kwargs, name=name)
    assert [row.region for row in each.regions] == [REST]
    assert each.at() == folded.at()
    if name not in LATER:
        assert each.memory().levels == folded.memory().levels
        assert each.memory().course == folded.memory().course
    levels = list(zip(each.memory().levels, folded.memory().levels, strict=True))
    assert all(abs(one - other) <= 0.01 * one for one, other in levels)


@pytest.mark.parametrize("name", ["gpt2", "mlp", "resnet"])
def test_what_is_alive_at_the_peak_adds_up(name: str) -> None:
    figures = dynamic(name)
    for scale in (2, 5):
        sizes = {dim: size * scale for dim, size in example(name).items()}
        memory, numbers = figures.memory(**sizes), figures.at(**sizes)
        assert memory.peak_bytes == numbers.peak_bytes == sum(memory.split.values())
        in_phase = memory.levels[-1] + memory.step_bytes if memory.phase == STEP else memory.levels[memory.peak_index]
        assert memory.peak_bytes == in_phase
        for kind in KINDS:
            stepping = memory.step_bytes if memory.phase == STEP and kind == "temporaries" else 0
            assert sum(a.bytes for a in memory.alive if a.kind == kind) == memory.split[kind] - stepping
            assert memory.course[kind][memory.peak_index] == memory.split[kind] - stepping
        rests = memory.peak_bytes - sum(memory.split[kind] for kind in KINDS)
        assert [rests + sum(parts) for parts in zip(*memory.course.values(), strict=True)] == list(memory.levels)
        values = figures.values(sizes)
        assert {part: int(size.xreplace(values)) for part, size in memory.growth.items()} == memory.split


def test_phases_of_peaks() -> None:
    """Few samples: the optimizer's step, with all gradients. Many: backward."""
    figures = dynamic("mlp")
    small, large = figures.memory(batch=2), figures.memory(batch=4096)
    assert (small.phase, small.path, small.op) == (STEP, "", "")
    assert large.phase == BACKWARD
    assert large.split["activations"] > large.split["gradients"] > 0
    assert large.path.startswith("body")


class Wide(nn.Module):
    """A forward that needs much for a moment, and a backward that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(8))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            scale = x.unsqueeze(1).repeat(1, 100, 1).mean()
        return {"loss": (self.w * scale).sum()}


def test_a_peak_in_forward_by_hand() -> None:
    """x [4, 8] and its 100 copies; w, two moments and a counter; the mean (4 bytes), which backward will read."""
    memory = autopar.profile(Wide(), (torch.randn(4, 8),), dynamic={"rows": 0}).memory(rows=4)
    assert (memory.phase, memory.op, memory.path) == (FORWARD, "aten.mean.default", "")
    assert memory.peak_bytes == 4 * 32 + 100 * 4 * 32 + 4 + 3 * 32 + 4
    assert memory.split == {
        "parameters": 32, "compute copies": 0, "gradient buffers": 0, "optimizer": 2 * 32 + 4, "buffers": 0,
        "inputs": 128, "gradients": 0, "activations": 4, "temporaries": 12800,
    }  # fmt: skip


def test_a_copy_for_the_moment_of_the_peak_is_named() -> None:
    memory: MemoryAt = autopar.profile(Wide(), (torch.randn(4, 8),)).memory()
    assert next((a.op, a.bytes, a.count, a.kind) for a in memory.alive) == ("aten.repeat.default", 12800, 1, "temporaries")


def test_blocks_are_alive_together() -> None:
    """At GPT-2's peak in backward, each of the four layers holds its attention's result."""
    memory = static("gpt2").memory()
    counts: dict[str, Any] = {a.path: a.count for a in memory.alive if "attn" in a.path and a.kind == "activations"}
    assert counts
    assert set(counts.values()) & {4, 8, 12}
