"""Every mistake in asking for a profile is one clear error, and leaves the model as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import autopar
from autopar.errors import HardwareError, InputError, TraceError
from tests.profiler.test_profile_models import snapshot


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.linear = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Any:
        return self.linear(self.first(x)).sum()


class AsksForData(Model):
    def forward(self, x: Tensor) -> Any:
        hidden = self.first(x)
        return self.linear(hidden if hidden.sum() > 0 else -hidden).sum()


class AsksForInput(Model):
    def forward(self, x: Tensor) -> Any:
        return self.linear(x if x.sum() > 0 else -x).sum()


class Inner(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[x[:, 0] > 0])


class AsksDeepInside(Model):
    def __init__(self) -> None:
        super().__init__()
        self.linear = Inner(6, 6)


class Wrong(Model):
    def forward(self, x: Tensor) -> Any:
        return self.linear(x @ x)


class Raises(Model):
    def forward(self, x: Tensor) -> Any:
        raise RuntimeError("out of cheese")


class FixesRows(Model):
    def forward(self, x: Tensor) -> Any:
        assert x.shape[0] == 4
        return super().forward(x)


class FixesByNumber(Model):
    def forward(self, x: Tensor) -> Any:
        return self.linear(x.reshape(int(x.shape[0]), 6)).sum()


class FixesByShape(Model):
    def forward(self, x: Tensor) -> Any:
        return self.linear(x + torch.ones(4, 6)).sum()


class Untrained(Model):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class Detached(Model):
    def forward(self, x: Tensor) -> Any:
        return self.linear(x).detach().sum()


X = torch.randn(4, 6)
META = torch.empty(4, 6, device="meta")
Call = tuple[type[nn.Module], Any, dict[str, Any], type[Exception], str]

ROWS = {"dynamic": {"rows": 0}}
FIXED = "cannot be dynamic: the model fixes it to"
HERE = r"\(.*test_profile_errors.py:\d+.*\)"
FAILS = "cannot run on shapes alone: RuntimeError"

WRONG: dict[str, Call] = {
    "unknown input": (Model, X, {"dynamic": {"rows": {"y": 0}}}, InputError, "'y', which is no example input; those are: x"),
    "unknown dim": (Model, X, {"dynamic": {"rows": 5}}, InputError, "no example input has the dim that 'rows': 5 names"),
    "no dim": (Model, X, {"dynamic": {"rows": "first"}}, InputError, "dynamic dim 'rows': 'first' is neither a dim"),
    "negative dim": (Model, X, {"dynamic": {"rows": -1}}, InputError, "dynamic dim 'rows': -1 is neither a dim"),
    "two names": (Model, X, {"dynamic": {"a": 0, "b": 0}}, InputError, "dim 0 of input 'x' is named both 'a' and 'b'"),
    "example of one": (Model, X[:1], ROWS, InputError, "the example size of dynamic dim 'rows' is 1"),
    "fixed by assert": (FixesRows, X, ROWS, TraceError, f"dim 'rows' {FIXED} 4 {HERE}"),
    "fixed by int": (FixesByNumber, X, ROWS, TraceError, f"dim 'rows' {FIXED} 4 {HERE}"),
    "fixed by shape": (FixesByShape, X, ROWS, TraceError, f"dim 'rows' {FIXED} 4"),
    "fixed by weights": (Model, X, {"dynamic": {"width": 1}}, TraceError, f"dim 'width' {FIXED} 6"),
    "data of activations": (AsksForData, X, {}, TraceError, r"the model asks for the data of a tensor \(aten\._local_scalar"),
    "data that is not given": (AsksForInput, META, {}, TraceError, "give example inputs with data, or make the code indep"),
    "data inside": (AsksDeepInside, X, {}, TraceError, "linear asks for the data of a tensor"),
    "code that fails": (Raises, X, {}, TraceError, "Raises cannot run on shapes alone: RuntimeError: out of cheese"),
    "shapes that do not fit": (Wrong, X, {}, TraceError, rf"Wrong {FAILS}: .*\[4, 6\]"),
    "wrong width": (Model, X[:, :5], {}, TraceError, rf"first {FAILS}: .*\[4, 5\]"),
    "nothing to train": (Untrained, X, {}, TraceError, "no result of the model depends on a parameter that is trained"),
    "detached": (Detached, X, {}, TraceError, "no result of the model depends on a parameter that is trained"),
    "unknown hardware": (Model, X, {"hardware": "abacus"}, HardwareError, "no hardware 'abacus'.*: give one of a100-40gb"),
    "unknown optimizer": (Model, X, {"optimizer": "lion"}, InputError, "unknown optimizer 'lion': use one of adafactor, adam"),
    "unknown precision": (Model, X, {"precision": "int4"}, InputError, "compute='int4' is no floating-point dtype"),
}


@pytest.mark.parametrize("name", WRONG)
def test_each_mistake_is_one_error_that_leaves_the_model_alone(name: str) -> None:
    kind, x, options, error, message = WRONG[name]
    model = kind().eval()
    model.linear.train()
    before = snapshot(model)
    with pytest.raises(error, match=message) as caught:
        autopar.profile(model, (x,), **options)
    assert "\n" not in str(caught.value).strip()
    assert snapshot(model) == before
    assert torch.is_grad_enabled()
    if kind is not Raises and x.device.type == "cpu" and x.shape[1] == 6 and kind is not Wrong:
        assert isinstance(model(x), Tensor)


def test_inputs_that_do_not_fit() -> None:
    with pytest.raises(TraceError, match=r"the example inputs do not fit Model.forward: .*'y'.*; it takes \(x"):
        autopar.profile(Model(), (X,), {"y": X})
    with pytest.raises(TraceError, match=r"the example inputs do not fit Model.forward: missing a required argument: 'x'"):
        autopar.profile(Model())


def test_data_of_an_input_that_came_with_data_is_known() -> None:
    assert autopar.profile(AsksForInput(), (X,)).at().forward_flops == 2 * 4 * 6 * 6


def test_an_example_of_two_sizes() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.linear(x).sum() + self.linear(y).sum()

    with pytest.raises(InputError, match=r"the example inputs give 'rows' the sizes \[4, 5\]; name these dims differently"):
        autopar.profile(Two(), (X, torch.randn(5, 6)), dynamic={"rows": 0})


def test_a_profile_after_a_failure_is_as_before() -> None:
    model = Model()
    wanted = autopar.profile(model, (X,)).at()
    with pytest.raises(TraceError):
        autopar.profile(model, (X[:, :5],))
    assert autopar.profile(model, (X,)).at() == wanted


def test_operands_of_different_dtypes() -> None:
    """On shapes alone they would multiply; for real they do not."""
    with pytest.raises(TraceError, match=r"addmm.* of tensors of different dtypes: torch.float32, torch.int64"):
        autopar.profile(nn.Linear(4, 2), (torch.ones(3, 4, dtype=torch.int64),))


def test_a_trained_tensor_that_no_module_has() -> None:
    """Its gradient would end up in the user's own tensor."""
    stray = torch.ones(4, requires_grad=True)

    class Stray(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (torch.cat([stray, x]) * 2).sum()

    with pytest.raises(TraceError, match=r"uses a tensor of shape \[4\] that is trained and that no module has"):
        autopar.profile(Stray(), (torch.ones(3),))
    assert stray.grad is None
