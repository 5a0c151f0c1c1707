"""Models that do something unusual: their profiles are those of their eager runs too, and they are left as they were."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import autopar
from autopar.profiler.rows import REST
from tests.profiler.eager import CORRECTED, TORCH, saved_tensors, training_flops
from tests.profiler.eager_memory import inference, training_steps
from tests.profiler.unusual import FOLDED, MODELS, WIDTH, Layers, blocks, build, linear

FAST = {
    "plain",
    "checkpoint",
    "one twice",
    "by index",
    "told",
    "hooks",
    "frozen",
    "tied",
    "closure",
    "branches",
    "autocast",
    "sharing",
}
each_model = pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FAST else [pytest.mark.slow]) for n in MODELS])


@each_model
def test_unusual_models_cost_what_eager_costs(name: str) -> None:
    model, kwargs = build(name)
    figures = autopar.profile(model, kwargs=kwargs)
    got, memory = figures.at(), figures.memory()
    raw, right = training_flops(*build(name), TORCH), training_flops(*build(name), CORRECTED)
    assert (got.torch_forward_flops, got.torch_backward_flops) == (raw.forward, raw.backward)
    assert (got.forward_flops, got.backward_flops) == (right.forward, right.backward)
    assert got.saved_bytes == saved_tensors(*build(name)).bytes
    step = training_steps(*build(name))[1]
    assert max(memory.levels[: memory.forward_end]) == step.phase_peak("forward")
    assert max(memory.levels[memory.forward_end :]) == step.phase_peak("backward")
    assert got.peak_bytes == step.peak_bytes
    assert got.inference_peak_bytes == inference(*build(name)).peak_bytes


@each_model
def test_closed_forms_of_unusual_models(name: str) -> None:
    if name == "branches":
        pytest.skip("what it does depends on the number of rows")
    model, kwargs = build(name)
    figures = autopar.profile(model, kwargs=kwargs, dynamic={"rows": 0})
    wanted = autopar.profile(model, kwargs={"x": kwargs["x"].repeat(3, 1)})
    got = figures.at(rows=12)
    for figure in ("forward_flops", "backward_flops", "saved_bytes", "peak_bytes", "inference_peak_bytes", "moved_bytes"):
        assert getattr(got, figure) == getattr(wanted.at(), figure), figure
    assert figures.memory(rows=12).levels == wanted.memory().levels


@pytest.mark.parametrize("name", FOLDED)
def test_equal_blocks_are_run_once(name: str) -> None:
    regions = autopar.profile(*build(name)[:1], kwargs=build(name)[1]).regions
    assert [row.calls for row in regions if row.region != REST] == [FOLDED[name]]


@each_model
def test_a_model_is_left_as_it_was(name: str) -> None:
    model, kwargs = build(name)
    model.eval() if name == "dropout" else model.train()
    before = snapshot(model)
    values = copy.deepcopy([(t.detach(), t.grad) for t in (*model.parameters(), *model.buffers())])
    autopar.profile(model, kwargs=kwargs, dynamic={} if name == "branches" else {"rows": 0})
    assert snapshot(model) == before
    for (value, gradient), tensor in zip(values, (*model.parameters(), *model.buffers()), strict=True):
        assert torch.equal(value, tensor)
        assert gradient is tensor.grad is None


def snapshot(model: nn.Module) -> list[Any]:
    """Identities of all that a module holds, and hooks, flags and plain attributes."""
    found: list[Any] = []
    for path, module in model.named_modules():
        held = {**module._parameters, **module._buffers, **module._modules}
        found.append((path, id(module), type(module), {key: id(value) for key, value in held.items()}))
        plain = {key: value for key, value in module.__dict__.items() if key not in ("_parameters", "_buffers", "_modules")}
        found.append({key: len(value) if key.endswith("hooks") else (id(value), str(value)) for key, value in plain.items()})
    return found


def test_snapshots_see_changes() -> None:
    model = Layers(*blocks())
    before = snapshot(model)
    model.layers[0].note = 1
    assert snapshot(model) != before
    del model.layers[0].note
    assert snapshot(model) == before
    handle = model.layers[1].register_forward_hook(lambda *_: None)
    assert snapshot(model) != before
    handle.remove()
    model.layers[0].one.weight = nn.Parameter(model.layers[0].one.weight.detach())
    assert snapshot(model) != before


@pytest.mark.parametrize("name", ["plain", "checkpoint", "dropout", "tied", "batchnorm"])
def test_models_without_data(name: str) -> None:
    """On "meta", inputs too: the same figures."""
    model, kwargs = build(name)
    with torch.device("meta"):
        empty, inputs = build(name)
    on_meta = autopar.profile(empty, kwargs=inputs)
    assert on_meta.at() == autopar.profile(model, kwargs=kwargs).at()


class Returns(nn.Module):
    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.one, self.two, self.form = linear(), linear(), form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.one(x), self.two(x))


@pytest.mark.parametrize(
    ("form", "linears"),
    [
        (lambda a, b: a + b, 2),
        (lambda a, b: (a, b), 2),
        (lambda a, b: {"a": a, "deep": [b, None, 3]}, 2),
        (lambda a, b: (a.sum(), b), 1),
        (lambda a, b: {"loss": b.sum(), "a": a}, 1),
        (lambda a, b: (a.detach(), b), 1),
        (lambda a, b: {"loss": a, "b": b}, 2),
    ],
)
def test_what_backward_starts_from(form: Callable[[Tensor, Tensor], Any], linears: int) -> None:
    """The loss, the first scalar, or all results that have gradients."""
    figures = autopar.profile(Returns(form), (torch.randn(4, WIDTH),)).at()
    assert figures.forward_flops == 2 * 2 * 4 * WIDTH**2
    assert figures.backward_flops == linears * 2 * 4 * WIDTH**2


def test_inputs_with_gradients() -> None:
    """The gradient of an input is made, and kept."""
    model = Layers(linear(bias=False))
    plain, grad = (autopar.profile(model, (torch.randn(4, WIDTH, requires_grad=r),)) for r in (False, True))
    assert grad.at().backward_flops == 2 * plain.at().backward_flops
    assert grad.memory().levels[-1] == plain.memory().levels[-1] + 4 * WIDTH * 4


def test_parameters_of_several_dtypes() -> None:
    """Inference needs those that are copied and those that need no copy."""
    model = Layers(linear(bias=False), linear(bias=False).bfloat16())
    model.body = lambda x: model.layers[1](model.layers[0](x).bfloat16())  # type: ignore[method-assign]
    figures = autopar.profile(model, (torch.randn(4, WIDTH),), precision="compute=bfloat16").at()
    assert figures.parameter_bytes == WIDTH**2 * (4 + 2 + 2)
    assert figures.inference_peak_bytes >= 2 * 2 * WIDTH**2 + 2 * 4 * WIDTH
