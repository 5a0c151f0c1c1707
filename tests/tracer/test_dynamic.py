"""Named dims are symbols everywhere, and the program runs at other sizes than it was traced at."""

from __future__ import annotations

import pytest
import sympy
import torch

from autopar.errors import InputError, TraceError
from autopar.ir.run import run_program
from autopar.tracer import trace
from tests.models import MODELS
from tests.tracer.small import Function


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_other_sizes(name) -> None:
    model, example = MODELS[name](device="meta", dtype=torch.float64)
    program = trace(model, (), example, dynamic={"batch": 0, "seq": 1})
    assert [len(program.calls_of(r)) for r in program.regions] == [1, 2, 1]
    batch, seq = program.symbols["batch"], program.symbols["seq"]
    assert batch.is_positive
    assert batch.is_integer
    free = {s for spec in program.values.values() for n in spec.shape if isinstance(n, sympy.Expr) for s in n.free_symbols}
    assert free == {batch, seq}
    assert program.values["labels"].shape == (batch, seq)
    model, kwargs = MODELS[name](dtype=torch.float64, batch=3, seq=7)
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    want, got = model(**kwargs)["loss"], run_program(program, state, (), kwargs)["loss"]
    torch.testing.assert_close(got, want)


def test_one_input_only() -> None:
    program = trace(Function(lambda x: x.sum()), (torch.randn(4, 6),), dynamic={"rows": {"x": 0}})
    assert program.values["x"].shape == (program.symbols["rows"], 6)


def test_a_dim_that_the_model_fixes_is_named() -> None:
    with pytest.raises(TraceError, match=r"dim 0 of input 'x' cannot be dynamic as 'batch': the model's code fixes it to 8"):
        trace(Function(lambda x: x.reshape(8, 2, -1).sum()), (torch.randn(8, 4),), dynamic={"batch": 0})


@pytest.mark.parametrize(
    ("dynamic", "message"),
    [
        ({"batch": {"y": 0}}, "names 'y', which is no example input; those are: x"),
        ({"batch": 5}, "no example input has the dim"),
        ({"batch": "x"}, "neither a dim"),
        ({"a": 0, "b": 0}, "named both 'a' and 'b'"),
        ({"one": 2}, "give at least 2"),
    ],
)
def test_dims_that_do_not_exist(dynamic, message) -> None:
    with pytest.raises(InputError, match=message):
        trace(Function(lambda x: x.sum()), (torch.randn(4, 6, 1),), dynamic=dynamic)
