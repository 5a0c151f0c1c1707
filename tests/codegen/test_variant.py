"""Calls in another form than the traced one: the same arguments by position, by name, or left at None."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from autopar.codegen.variant import arrange, looks


def forward(x: int, y: int | None = None, *, z: int | None = None, scale: float = 1.0) -> None:
    """The signature is all that counts."""


SIGNATURE = inspect.signature(forward)


@pytest.mark.parametrize(
    ("args", "kwargs", "positional", "names", "expected"),
    [
        ((1, 2), {}, 0, ["x", "y"], ((), {"x": 1, "y": 2})),
        ((), {"y": 2, "x": 1}, 2, [], ((1, 2), {})),
        ((1,), {"z": None}, 1, [], ((1,), {})),
        ((1,), {}, 1, ["z"], ((1,), {"z": None})),
        ((1,), {"z": 3}, 1, [], ((1,), {"z": 3})),  # more than was traced
        ((1,), {"scale": 1.0}, 1, [], ((1,), {"scale": 1.0})),  # only None is left out: other defaults may be arrays
        ((1, 2, 3), {}, 0, ["x", "y"], ((1, 2, 3), {})),  # wrong, and left so for an error that says it
    ],
)
def test_arrange(args: tuple[Any, ...], kwargs: dict[str, Any], positional: int, names: list[str], expected: Any) -> None:
    assert arrange(SIGNATURE, args, kwargs, positional, names) == expected


def test_looks_tell_what_needs_another_program() -> None:
    x = torch.zeros(2, 3)
    same = looks((x,), {"a": 1, "b": None})
    assert same == looks((torch.ones(2, 3),), {"b": None, "a": 1})
    others = [torch.zeros(3, 2), x.double(), torch.zeros(2, 3, requires_grad=True)]
    assert all(looks((other,), {"a": 1, "b": None}) != same for other in others)
    assert looks((x,), {"a": True, "b": None}) != same
    assert looks((x,), {"a": 1}) != same
