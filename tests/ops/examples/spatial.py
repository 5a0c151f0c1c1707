from __future__ import annotations

import torch

from tests.ops.examples.common import Example, Examples
from tests.ops.pick import Pick
from tests.ops.proofs import Call

aten = torch.ops.aten


def convolution(rank: int) -> Example:
    def example(p: Pick) -> Call:
        groups = p.one(1, 2, 4)
        b, c, o = p.size(), groups * p.size(2, 1, 3), groups * p.size(2, 1, 3)
        kernel = [p.one(3, 1) for _ in range(rank)]
        bias = p.tensor(o) if p.one(True, False) else None
        image = [p.size(6, 4) for _ in range(rank)]
        stride, padding = [p.one(1, 2)] * rank, [p.one(0, 1)] * rank
        inputs = p.tensor(b, c, *image), p.tensor(o, c // groups, *kernel), bias
        return Call({1: aten.conv1d, 2: aten.conv2d}[rank].default, (*inputs, stride, padding, [1] * rank, groups))

    return example


EXAMPLES: Examples = {
    aten.conv1d.default: convolution(1),
    aten.conv2d.default: convolution(2),
}
