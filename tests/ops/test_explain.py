"""What `autopar.ops.explain` shows of a rule."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

import autopar
from autopar.cli import app
from autopar.errors import InputError
from autopar.ops.names import known_names
from tests.own_rules import routed


def lines(text: object) -> list[str]:
    return [" ".join(line.split()) for line in str(text).splitlines()]


def test_linear_on_a_mesh() -> None:
    found = lines(autopar.ops.explain("aten.linear", mesh="2x2"))
    assert found[0] == "aten.linear.default, matmul"
    assert "b* k, n k, n -> b* n" in found
    assert "input [b0 k], weight [n k], bias [n] -> result [b0 n]" in found
    assert "k 32 each device has a summand of the results; another implementation runs, linear" in found
    assert "16 strategies on mesh 2x2 (node, gpu), a factor (or -) on each axis:" in found
    # data parallelism on one axis, Megatron's row-parallel on the other: what each tensor is, and its gradient
    assert "b0, k S(0), S(1) R, S(1) R, R -> S(0), P S(0), S(1) P, S(1) P, P" in found
    assert "I -> R nothing is sent all-reduce to operands, from results" in found
    assert "P -> S reduce-scatter all-gather to operands, from results" in found


def test_names_overloads_functions_and_calls() -> None:
    assert str(autopar.ops.explain("linear")) == str(autopar.ops.explain(torch.ops.aten.linear.default))
    assert lines(autopar.ops.explain("aten::softmax.int"))[0] == "aten.softmax.int, norm"
    assert "t k!, n k! -> t n" in lines(autopar.ops.explain(routed, "2"))
    given = torch.empty(6, 10, device="meta")
    assert "self [d0 d1] -> result [d0 d1]" in lines(autopar.ops.explain("aten.relu", "2", args=(given,)))
    assert "d0 6 each device has a piece of the results" in lines(autopar.ops.explain("aten.relu", "2", args=(given,)))
    assert "self [d0 d1] -> result [d0 d1]" not in lines(autopar.ops.explain("aten.relu", "2"))


def test_an_op_without_a_rule_is_said_to_have_none() -> None:
    assert "aten.renorm.default has no row" in str(autopar.ops.explain("aten.renorm.default"))


def test_unknown_names_and_wrong_calls() -> None:
    with pytest.raises(InputError, match=r"there is no op 'aten\.linaer'\. Did you mean aten\.linear"):
        autopar.ops.explain("aten.linaer")
    with pytest.raises(InputError, match=r"there is no op 'zzzz'; `autopar rules` lists"):
        autopar.ops.explain("zzzz")
    with pytest.raises(InputError, match=r"aten\.mm\.default does not take these arguments"):
        autopar.ops.explain("aten.mm", args=(torch.empty(2, 3), torch.empty(2, 3)))


def test_without_a_typical_call_one_is_asked_for() -> None:
    """Its windows have no usual form."""
    assert "no typical call of it is known: give one" in str(autopar.ops.explain("aten.im2col"))
    image, windows = torch.empty(4, 3, 8, 8), ([2, 2], [1, 1], [0, 0], [2, 2])
    assert "strategies on mesh 2" in str(autopar.ops.explain("aten.im2col", "2", args=(image, *windows)))


FAMILIAR = (
    "addmm autopar.experts bmm cat conv2d cross_entropy_loss dropout embedding layer_norm linear matmul mean.dim reshape "
    "rms_norm scaled_dot_product_attention slice softmax.int split_with_sizes topk transpose.int"
)


def test_every_row_is_explained() -> None:
    for name in known_names():
        assert str(autopar.ops.explain(name, "2")).startswith(f"{name}, "), name


@pytest.mark.parametrize("name", FAMILIAR.split())
def test_familiar_ops_have_a_typical_call(name: str) -> None:
    assert "strategies on mesh 2" in str(autopar.ops.explain(name, "2"))


def test_all_rows() -> None:
    found = lines(autopar.ops.explain())
    assert "matrices" in found
    assert "aten.linear.default matmul b* k, n k, n -> b* n" in found


def test_it_is_there_after_import_and_loads_torch_only_then() -> None:
    loaded = "'torch' in sys.modules"
    code = f"import sys, autopar; autopar.ops; assert not {loaded}; autopar.ops.explain; assert {loaded}"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        autopar.ops.nothing  # noqa: B018


def test_the_command_shows_one_or_all() -> None:
    one = CliRunner().invoke(app, ["rules", "aten.linear", "--mesh", "2"])
    assert one.exit_code == 0
    assert lines(one.output)[0] == "aten.linear.default, matmul"
    assert "aten.linear.default" in CliRunner().invoke(app, ["rules"]).output
    unknown = CliRunner().invoke(app, ["rules", "linaer"])
    assert unknown.exit_code == 2
    assert "Did you mean aten.linear" in unknown.output
