from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from autopar.ops.proof import Call
from tests.ops.examples.common import Example, Examples
from tests.ops.pick import Pick

aten = torch.ops.aten


def complex_tensor(p: Pick, *shape: int) -> Tensor:
    return torch.view_as_complex(p.tensor(*shape, 2, grad=False)).requires_grad_()


def transform(target: Any) -> Example:
    def example(p: Pick) -> Call:
        shape = p.shape(p.one(3, 2, 1))
        dims, norm = sorted(d % len(shape) for d in p.dims(len(shape))), p.one(0, 1, 2)
        if target is aten._fft_r2c.default:
            return Call(target, (p.tensor(*shape), dims, norm, p.one(True, False)))
        last = p.one(True, False) if target is aten._fft_c2c.default else max(1, 2 * (shape[dims[-1]] - 1) + p.one(0, 1))
        return Call(target, (complex_tensor(p, *shape), dims, norm, last))

    return example


def of_complex(target: Any) -> Example:
    return lambda p: Call(target, (complex_tensor(p, *p.shape(p.one(2, 1, 3))),))


def view_as_complex(p: Pick) -> Call:
    return Call(aten.view_as_complex.default, (p.tensor(*p.shape(p.one(2, 1, 3)), 2),))


def of_two(target: Any) -> Example:
    def example(p: Pick) -> Call:
        shape = p.shape(p.one(2, 1, 3))
        return Call(target, (p.tensor(*shape), p.tensor(*p.one(shape, p.against(shape)))))

    return example


EXAMPLES: Examples = {
    aten._fft_r2c.default: transform(aten._fft_r2c.default),
    aten._fft_c2c.default: transform(aten._fft_c2c.default),
    aten._fft_c2r.default: transform(aten._fft_c2r.default),
    aten.view_as_real.default: of_complex(aten.view_as_real.default),
    aten.view_as_complex.default: view_as_complex,
    aten._conj_physical.default: of_complex(aten._conj_physical.default),
    aten.complex.default: of_two(aten.complex.default),
    aten.polar.default: of_two(aten.polar.default),
}
