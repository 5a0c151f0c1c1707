"""Optimizer state and the temporaries of a step equal those of torch's own optimizers on real parameters, to the byte."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from autopar.errors import InputError
from autopar.ir.optimizer import STATE_COPIES
from autopar.profiler.optimizers import (
    OPTIMIZERS,
    TORCH_OPTIMIZERS,
    Implementation,
    Parameter,
    adam8bit_state,
    default_implementation,
    optimizer_bytes,
    predecessors,
    stretches,
)
from tests.profiler.eager_memory import TimelineTracker
from tests.zoo import ZOO

each_implementation = pytest.mark.parametrize("implementation", ["for-loop", "foreach"])
each_optimizer = pytest.mark.parametrize("name", TORCH_OPTIMIZERS)


def with_gradients(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    found = [p for p in parameters if p.requires_grad]
    for parameter in found:
        parameter.grad = torch.randn_like(parameter)
    return found


def trained(model: str, layers: int) -> list[nn.Parameter]:
    return with_gradients(ZOO[model].build(layers=layers)[0].parameters())


def mixed() -> list[nn.Parameter]:
    """Two dtypes in turn; vectors between matrices, and one of four dims."""
    shapes = [(8, 16), (16,), (4, 8, 2, 3), (8, 16), (16,), (5,), (40, 3), (7,)]
    dtypes = (torch.float32, torch.bfloat16)
    return with_gradients(nn.Parameter(torch.randn(s).to(dtypes[i % 3 == 0])) for i, s in enumerate(shapes))


MODELS: dict[str, Callable[[], list[nn.Parameter]]] = {
    "gpt2": lambda: trained("gpt2", 4),
    "llama": lambda: trained("llama", 5),
    "resnet": lambda: trained("resnet", 1),
    "mixed": mixed,
}
each_model = pytest.mark.parametrize("model", MODELS)


def spec(parameters: Iterable[Tensor]) -> list[tuple[tuple[int, ...], torch.dtype]]:
    return [(tuple(p.shape), p.dtype) for p in parameters]


def tensors_of(optimizer: Optimizer) -> list[Tensor]:
    return [t for kept in optimizer.state.values() for t in kept.values() if isinstance(t, Tensor)]


def measured_step(step: Callable[[], object], resting: Iterable[Tensor]) -> int:
    """Bytes of the most alive while it runs, beyond what was there before."""
    with TimelineTracker(resting) as tracker:
        before = tracker.bytes
        step()
    return max(size for _, size in tracker.take(before).timeline) - before


@each_model
@each_optimizer
@each_implementation
def test_bytes_are_those_of_the_real_optimizer(model: str, name: str, implementation: Implementation) -> None:
    """A real step holds 4 bytes more at times: foreach makes `torch.tensor(1.0)` on the host to count steps with."""
    parameters = MODELS[model]()
    optimizer = TORCH_OPTIMIZERS[name](parameters, foreach=implementation == "foreach")
    optimizer.step()
    state = tensors_of(optimizer)
    got = optimizer_bytes(name, spec(parameters), implementation=implementation)
    assert got.state_bytes + got.counter_bytes == sum(t.nbytes for t in state)
    resting = [*parameters, *(p.grad for p in parameters if p.grad is not None), *state]
    extra = measured_step(optimizer.step, resting) - got.step_bytes
    assert extra in ((0, 4) if got.step_bytes == 0 or implementation == "foreach" else (0,))


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "momentum"])
def test_fused_steps_need_nothing(name: str) -> None:
    parameters = trained("gpt2", 2)
    optimizer = TORCH_OPTIMIZERS[name](parameters, fused=True)
    optimizer.step()
    resting = [*parameters, *(p.grad for p in parameters if p.grad is not None), *tensors_of(optimizer)]
    assert measured_step(optimizer.step, resting) == 0
    assert optimizer_bytes(name, spec(parameters), implementation="fused").step_bytes == 0


def test_foreach_holds_a_copy_of_all_parameters_and_a_loop_two_of_the_largest() -> None:
    """AdamW's square roots: what makes the difference on large models."""
    parameters = [((64, 32), torch.float32), ((32,), torch.float32)] * 10
    assert optimizer_bytes("adamw", parameters, implementation="foreach").step_bytes == 10 * 4 * (64 * 32 + 32)
    assert optimizer_bytes("adamw", parameters).step_bytes == 4 * (2 * 64 * 32 + 32)


@each_implementation
@pytest.mark.parametrize("make", [SGD, AdamW])
def test_master_weights(make: Callable[..., Optimizer], implementation: Implementation) -> None:
    """The step that it stands for: gradients cast, the optimizer on the masters, the result cast back."""
    parameters = [p.detach().bfloat16() for p in trained("gpt2", 2)]
    parameters[3] = parameters[3].float()
    gradients = [torch.randn_like(p) for p in parameters]
    masters = [nn.Parameter(p.float() if p.dtype is torch.bfloat16 else p) for p in parameters]
    optimizer = make(masters, lr=1e-3, foreach=implementation == "foreach")

    def step() -> None:
        for master, gradient in zip(masters, gradients, strict=True):
            master.grad = gradient.float()
        optimizer.step()
        optimizer.zero_grad()
        for master, parameter in zip(masters, parameters, strict=True):
            parameter.copy_(master.detach())

    step()
    resting = [*parameters, *gradients, *masters, *tensors_of(optimizer)]
    got = optimizer_bytes(make.__name__.lower(), spec(parameters), implementation=implementation, master_dtype=torch.float32)
    assert got.master_bytes == sum(4 * p.numel() for p in parameters if p.dtype is torch.bfloat16)
    assert got.state_bytes + got.counter_bytes == sum(t.nbytes for t in tensors_of(optimizer))
    assert got.step_bytes in (measured := measured_step(step, resting), measured - 4)
    assert got.resting_bytes == got.state_bytes + got.master_bytes


def test_adam8bit_by_hand() -> None:
    """Bytes and scales of a large one whose last block is not full, two float32 moments of a small one, two maps."""
    large, small = ((65, 64), torch.bfloat16), ((100,), torch.bfloat16)
    assert adam8bit_state([large]) == 2 * (65 * 64 + 4 * 17 + 1024)
    assert adam8bit_state([large, large, small]) == 2 * (2 * (65 * 64 + 4 * 17) + 400 + 1024)
    assert adam8bit_state([small]) == 800
    got = optimizer_bytes("adam8bit", [large, small], master_dtype=torch.float32)
    assert (got.master_bytes, got.step_bytes) == (4 * 4260, 4 * 4260)


@pytest.mark.parametrize("name", STATE_COPIES)
def test_copies_that_plans_count_with(name: str) -> None:
    """What solver and codegen multiply by, said in `autopar.ir`, is what torch's optimizer keeps."""
    parameters = spec(trained("gpt2", 2))
    sizes = sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in parameters)
    assert optimizer_bytes(name, parameters).state_bytes == STATE_COPIES[name] * sizes


def test_no_more_is_run_for_a_deeper_model() -> None:
    f32 = torch.float32
    layer = [((8, 8), f32), ((4, 8), f32), ((8,), f32)]
    shallow, deep = (stretches([((9, 8), f32), *layer * n, ((8,), f32), ((9, 8), f32)]) for n in (4, 400))
    assert shallow == deep
    assert sum(map(len, deep)) < 20


@given(st.lists(st.sampled_from([(2, 2), (3, 2), (4, 2), (2,), (3,)]), max_size=30))
def test_stretches_have_what_the_sequence_has(shapes: list[tuple[int, ...]]) -> None:
    """Each parameter after the same last matrix and vector."""

    def follows(parameters: Sequence[Parameter]) -> list[tuple[Parameter, ...]]:
        found = zip(parameters, predecessors(parameters), strict=True)
        return [(*(parameters[j] for j in before), own) for own, before in found]

    sequence = [(shape, torch.float32) for shape in shapes]
    assert set(follows(sequence)) <= {window for run in stretches(sequence) for window in follows(run)}


def test_defaults() -> None:
    assert {name: default_implementation(name, "cuda") for name in OPTIMIZERS if name != "adam8bit"} == {
        "adam": "foreach",
        "adamw": "foreach",
        "sgd": "foreach",
        "momentum": "foreach",
        "adafactor": "for-loop",
    }
    assert default_implementation("adamw", "cpu") == "for-loop"


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(InputError, match=r"unknown optimizer 'lion': use one of adafactor, adam, adam8bit"):
        optimizer_bytes("lion", [])


def test_no_parameters_no_bytes() -> None:
    got = optimizer_bytes("adamw", [], implementation="foreach")
    assert (got.state_bytes, got.counter_bytes, got.step_bytes) == (0, 0, 0)
