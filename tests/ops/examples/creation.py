from __future__ import annotations

from typing import Any

import torch

from autopar.ops.proof import Call
from tests.ops.examples.common import Example, Examples, factory, unary
from tests.ops.pick import DTYPE

aten = torch.ops.aten


def arange(target: Any, *bounds: Any) -> Example:
    return lambda p: Call(target, bounds, {"device": torch.device("cpu")})


EXAMPLES: Examples = {
    aten.arange.start_step: arange(aten.arange.start_step, 0, 12, 2),
    aten.arange.start: arange(aten.arange.start, 2, 6),
    aten.arange.default: arange(aten.arange.default, 6),
    aten.tril_indices.default: arange(aten.tril_indices.default, 4, 6),
    aten.triu_indices.default: arange(aten.triu_indices.default, 4, 6),
    aten.full.default: factory(aten.full.default, 2.5),
    aten.zeros.default: factory(aten.zeros.default),
    aten.ones.default: factory(aten.ones.default),
    aten.scalar_tensor.default: lambda p: Call(
        aten.scalar_tensor.default, (2.5,), {"dtype": DTYPE, "device": torch.device("cpu")}
    ),
    aten.full_like.default: unary(aten.full_like.default, 2.5),
    aten.zeros_like.default: unary(aten.zeros_like.default),
    aten.ones_like.default: unary(aten.ones_like.default),
}
