from __future__ import annotations

import torch

from tests.ops.examples.common import Examples, along_one
from tests.ops.pick import Pick
from tests.ops.proofs import Call

aten = torch.ops.aten


def layer_norm(p: Pick) -> Call:
    rank = p.one(1, 1, 2)
    shape, normalized = p.shape(p.one(2, 1, 3)), [p.size(4, 6, 2, 12) for _ in range(rank)]
    weights = p.one(2, 1, 0)
    given = [p.tensor(*normalized) for _ in range(weights)]
    eps = p.one((), (1e-3,)) if weights == 2 else ()
    return Call(aten.layer_norm.default, (p.tensor(*shape, *normalized), normalized, *given, *eps))


def rms_norm(p: Pick) -> Call:
    rank = p.one(1, 1, 2)
    shape, normalized = p.shape(p.one(2, 1, 3)), [p.size(4, 6, 2, 12) for _ in range(rank)]
    given = p.one((p.tensor(*normalized),), (p.tensor(*normalized), 1e-3), ())
    return Call(aten.rms_norm.default, (p.tensor(*shape, *normalized), normalized, *given))


EXAMPLES: Examples = {
    aten.layer_norm.default: layer_norm,
    aten.rms_norm.default: rms_norm,
    aten.softmax.int: along_one(aten.softmax.int),
    aten._softmax.default: along_one(aten._softmax.default, False),
    aten.log_softmax.int: along_one(aten.log_softmax.int),
    aten._log_softmax.default: along_one(aten._log_softmax.default, False),
}
