from __future__ import annotations

from typing import Any

import torch

from autopar.ops.proof import Call
from tests.ops.examples.common import Example, Examples
from tests.ops.pick import DTYPE, Pick

aten = torch.ops.aten


def dropout(p: Pick) -> Call:
    return Call(aten.dropout.default, (p.tensor(*p.shape(3)), *p.one((0.5, True), (0.5, False), (0.0, True), (1.0, True))))


def random_like(target: Any, *after: Any) -> Example:
    """Ops of (x) that draw numbers, whatever is in x."""

    def example(p: Pick) -> Call:
        return Call(target, (p.tensor(*p.shape(p.one(3, 2, 1, 0)), grad=False), *after))

    return example


def random_of_shape(target: Any, *before: Any, dtype: torch.dtype = DTYPE) -> Example:
    """Ops of (…, shape) that draw numbers."""

    def example(p: Pick) -> Call:
        return Call(target, (*before, p.shape(p.one(2, 1, 3))), {"dtype": dtype, "device": torch.device("cpu")})

    return example


EXAMPLES: Examples = {
    aten.dropout.default: dropout,
    aten.bernoulli.p: random_like(aten.bernoulli.p, 0.3),
    aten.uniform.default: random_like(aten.uniform.default, -1.0, 3.0),
    aten.normal_functional.default: random_like(aten.normal_functional.default, 1.0, 2.0),
    aten.exponential.default: random_like(aten.exponential.default, 2.0),
    aten.rand_like.default: random_like(aten.rand_like.default),
    aten.randn_like.default: random_like(aten.randn_like.default),
    aten.randint_like.default: random_like(aten.randint_like.default, 5),
    aten.randint_like.low_dtype: random_like(aten.randint_like.low_dtype, 2, 9),
    aten.rand.default: random_of_shape(aten.rand.default),
    aten.randn.default: random_of_shape(aten.randn.default),
    aten.normal.float_float: random_of_shape(aten.normal.float_float, 1.0, 2.0),
    aten.randint.default: random_of_shape(aten.randint.default, 5, dtype=torch.int64),
    aten.randint.low: random_of_shape(aten.randint.low, 2, 9, dtype=torch.int64),
    aten.randperm.default: lambda p: Call(aten.randperm.default, (p.size(),), {"device": torch.device("cpu")}),
}
