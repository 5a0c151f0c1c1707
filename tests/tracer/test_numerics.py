"""A traced program computes what the model computes: outputs, every gradient, and the new content of its buffers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from autopar.errors import InputError
from autopar.ir.run import run_program, run_values
from autopar.tracer import trace
from tests.models import MODELS
from tests.tracer.small import Normed, Tied


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", MODELS)
def test_program_equals_the_eager_model(name, device) -> None:
    model, kwargs = MODELS[name](dtype=torch.float64)
    traced, example = MODELS[name](dtype=torch.float64, device=device)
    program = trace(traced, (), example)
    want = model(**kwargs)
    got = run_program(program, state_of(model), (), kwargs)
    assert type(got) is type(want)
    assert got.keys() == want.keys()
    parameters = list(model.parameters())
    torch.testing.assert_close(got["loss"], want["loss"], rtol=1e-12, atol=0)
    for mine, theirs in zip(
        torch.autograd.grad(got["loss"], parameters), torch.autograd.grad(want["loss"], parameters), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_tied_weights_are_one_state_with_its_gradient() -> None:
    model, x = Tied(), torch.arange(6)
    program = trace(model, (x,))
    assert program.state["embed.weight"].aliases == ("head.weight",)
    assert "unused" in program.state
    assert program.parameter_count == 16 * 8 + 3
    (mine,) = torch.autograd.grad(run_program(program, state_of(model), (x,)), [model.embed.weight])
    (theirs,) = torch.autograd.grad(model(x), [model.embed.weight])
    torch.testing.assert_close(mine, theirs)


def test_buffers_constants_no_grad_and_detach() -> None:
    model, x = Normed(), torch.randn(8, 4)
    program = trace(model, (x,), {"scale": 2.0})
    given = {
        name: tensor.clone() if name in dict(model.named_buffers()) else tensor for name, tensor in state_of(model).items()
    }
    want = model(x, scale=2.0)
    got = run_program(program, given, (x,), {"scale": 2.0})
    assert got["none"] is None
    assert got["three"] == 3
    parameters = list(model.parameters())
    for key in ("loss", "other"):
        torch.testing.assert_close(got[key], want[key])
        mine, theirs = (torch.autograd.grad(out[key], parameters, retain_graph=True) for out in (got, want))
        torch.testing.assert_close(mine, theirs)
    values = run_values(program, given, (x,), {"scale": 2.0})
    assert set(program.mutations) == {"count", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    for buffer, value in program.mutations.items():
        torch.testing.assert_close(values[value], model.get_buffer(buffer))
        assert not program.values[value].needs_grad
    assert [s.kind for s in program.state.values()].count("constant") == 1
    assert program.values[program.loss].needs_grad
    assert program.outputs.index(program.loss) == 0


def test_the_model_is_left_as_it_was() -> None:
    model, kwargs = MODELS["gpt2"]()
    before = copy.deepcopy(model.state_dict())
    trace(model, (), {k: v.to("meta") for k, v in kwargs.items()})
    assert model.training
    assert all(p.device.type == "cpu" and p.grad is None for p in model.parameters())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_other_inputs_than_traced_are_refused() -> None:
    model, x = Normed(), torch.randn(8, 4)
    program = trace(model, (x,), {"scale": 2.0})
    with pytest.raises(InputError, match=r"2\.0 when traced, now it is 3\.0"):
        run_program(program, state_of(model), (x,), {"scale": 3.0})
    with pytest.raises(InputError, match="other inputs"):
        run_program(program, state_of(model), (), {"x": x, "scale": 2.0})
