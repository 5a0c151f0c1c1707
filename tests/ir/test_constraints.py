"""The language of pins and bans, read without any model."""

from __future__ import annotations

from pathlib import Path

import pytest

from autopar.errors import ConstraintError, InputError
from autopar.ir.constraints import Constraints, Rule, Selector


def said(text: str) -> list[tuple[str, str, str | None]]:
    return [(s.subject, s.value, s.axis) for s in Rule.parse(text).statements]


def test_statements() -> None:
    assert said("a.b: tensor=gpu, batch=*") == [("role", "tensor", "gpu"), ("role", "batch", "*")]
    assert said("a.b: rest=S(0) on node, R on gpu") == [("rest", "S(0)", "node"), ("rest", "R", "gpu")]
    assert said("a.b: rest = whole") == [("rest", "whole", None)]
    assert said("a.b: zero3=node, keep") == [("rest", "S", "node"), ("keep", "", None)]
    assert said("kind=matmul: factor=k on gpu, recompute") == [("factor", "k", "gpu"), ("recompute", "", None)]
    (first, second) = Rule.parse("a: in[1]=R on gpu, out=S(1)").statements
    assert (first.position, first.axis, second.position, second.axis) == (1, "gpu", None, None)


def test_selectors() -> None:
    assert Rule.parse("model.*.mlp kind=matmul op=linear: keep").selector == Selector(
        path="model.*.mlp", kind="matmul", op="linear"
    )
    layers = Selector(path="model.layers.*")
    assert layers.has_path("model.layers.3")
    assert layers.has_path("model.layers.3.mlp.gate_proj")
    assert not layers.has_path("model.layers")
    assert not layers.has_path("model.norm")
    assert Selector(path="layers.[0-2]").has_path("layers.1.mlp")
    assert not Selector(path="layers.[0-2]").has_path("layers.3.mlp")
    assert not Selector(path="*.mlp").has_path("model.layers.0.mlp"), "* stays within one part of the name"
    assert Selector(path="**.mlp").has_path("model.layers.0.mlp")
    assert Selector(path="**").has_path("")
    for name in ("linear", "aten.linear", "aten.linear.default", "linear.default", "lin*"):
        assert Selector(op=name).has_op("aten.linear.default")
    assert not Selector(op="add").has_op("aten.linear.default")


@pytest.mark.parametrize(
    ("text", "states", "other"),
    [
        ("rest=R", ("R", "I"), (0, 1)),
        ("out=R", ("R",), ("I", "P", 0)),
        ("out=whole", ("R", "I"), ("P", 0)),
        ("out=S", (0, 3), ("R", "I", "P")),
        ("out=S(1)", (1,), (0, "R")),
        ("out=P", ("P",), ("R", 0)),
    ],
)
def test_states(text: str, states: tuple[str | int, ...], other: tuple[str | int, ...]) -> None:
    (statement,) = Rule.parse(f"a: {text}").statements
    assert all(map(statement.has_state, states))
    assert not any(map(statement.has_state, other))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model.layers", "is not of the form SELECTOR: STATEMENT"),
        ("model.layers:", "is not of the form SELECTOR: STATEMENT"),
        (": keep", "selects nothing"),
        ("a b: keep", "two of path, 'a' and 'b'"),
        ("size=3: keep", "'size=3' selects nothing"),
        ("a: tensr=gpu", "Did you mean tensor"),
        ("a: fast", "says nothing that a plan can hold"),
        ("a: tensor=", "names no mesh axis"),
        ("a: out=S(x) on gpu", r"'S\(x\)' in 'out=S\(x\) on gpu' is no placement"),
        ("a: rest=P on gpu", "cannot rest as partial sums"),
        ("a: out[x]=R", "is none of in, out"),
        ("a: rest[0]=R", "is none of in, out"),
    ],
)
def test_malformed_rules(text: str, message: str) -> None:
    with pytest.raises(ConstraintError, match=message) as caught:
        Constraints(pins=(text,))
    assert repr(text) in str(caught.value), "the rule is named"
    with pytest.raises(ConstraintError, match=r"^ban "):
        Constraints(bans=(text,))


def test_an_axis_that_the_mesh_lacks() -> None:
    constraints = Constraints(pins=["a: batch=nodes"])
    constraints.require_axes(("nodes",))
    with pytest.raises(ConstraintError, match=r"names no axis of the mesh, which has node, gpu\. Did you mean node\?"):
        constraints.require_axes(("node", "gpu"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("recompute", "maybe"),
        ("checkpoints", "ignore"),
        ("parameters", "fixed"),
        ("min_micro_batch", 0),
        ("min_micro_batch", "2"),
        ("min_micro_batch", True),
    ],
)
def test_values_that_are_not_known(field: str, value: object) -> None:
    with pytest.raises(ConstraintError, match=field):
        Constraints(**{field: value})  # type: ignore[arg-type]


YAML = """
pins:
  - model.layers.*.mlp: tensor=gpu, batch=node
  - "kind=attention: sequence=gpu"
bans:
  "**": hidden=node
parameters:
  lm_head.weight: S(0) on gpu, whole on node
recompute: never
min_micro_batch: 2
checkpoints: free
"""


def test_yaml(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(YAML)
    loaded = Constraints.load(tmp_path / "c.yaml")
    assert loaded == Constraints(
        pins=["model.layers.*.mlp: tensor=gpu, batch=node", "kind=attention: sequence=gpu"],
        bans=["**: hidden=node"],
        parameters={"lm_head.weight": "S(0) on gpu, whole on node"},
        recompute="never",
        min_micro_batch=2,
        checkpoints="free",
    )
    assert [str(rule) for rule in loaded.rules][2] == "pin 'lm_head.weight: rest=S(0) on gpu, whole on node'"
    assert list(loaded.lines())[-3:] == ["recompute never", "min_micro_batch 2", "checkpoints free"]
    assert loaded
    assert not Constraints()
    assert Constraints.from_yaml("") == Constraints()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pins:\n - **.mlp: keep", r"c\.yaml, line 2 is no YAML: .*Put rules that begin with \* in quotes"),
        ("pins: [a", r"c\.yaml, line 1 is no YAML"),
        ("- a", "holds no mapping"),
        ("pin: []", r"unknown key 'pin'\. Did you mean pins\?"),
        ("pins: [3]", "3 is no rule"),
        ("pins: ['a: fast']", r"c\.yaml: pin 'a: fast'"),
        ("parameters: [a]", "parameters"),
        ("min_micro_batch: two", "min_micro_batch 'two'"),
    ],
)
def test_bad_yaml(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConstraintError, match=message):
        Constraints.load(tmp_path / "c.yaml")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read constraints .*No such file"):
        Constraints.load(tmp_path / "no.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="are not text"):
        Constraints.load(tmp_path / "binary.yaml")
