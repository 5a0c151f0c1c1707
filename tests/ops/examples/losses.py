from __future__ import annotations

import torch

from tests.ops.examples.common import Examples
from tests.ops.pick import Pick
from tests.ops.proofs import Call

aten = torch.ops.aten


def cross_entropy(p: Pick) -> Call:
    t, v = p.size(4, 6, 12), p.size(4, 6, 12)
    target = p.integers(v, t)
    if p.one(False, True):
        target[1::2] = -100
    options = p.one(
        {}, {"reduction": 2}, {"reduction": 0}, {"label_smoothing": 0.1}, {"ignore_index": int(target[1])},
        {"reduction": 2, "label_smoothing": 0.2}, {"weight": p.positive(v).detach()},
    )  # fmt: skip
    return Call(aten.cross_entropy_loss.default, (p.tensor(t, v), target), options)


EXAMPLES: Examples = {
    aten.cross_entropy_loss.default: cross_entropy,
}
