from __future__ import annotations

from typing import Any

import torch

from autopar.ir.experts import EXPERTS
from autopar.ops.proof import Call
from tests.ops.examples.common import Example, Examples
from tests.ops.pick import Pick

aten = torch.ops.aten


def index(p: Pick) -> Call:
    x, at = p.tensor(4, 6, 2), p.integers(4, 3)
    return Call(aten.index.Tensor, (x, p.one([at], [None, at], [at, at])))


def linear(p: Pick) -> Call:
    batch, k, n = p.shape(p.one(2, 1, 3)), p.size(), p.size()
    bias = [p.tensor(n)] if p.one(True, False) else []
    return Call(aten.linear.default, (p.tensor(*batch, k), p.tensor(n, k), *bias))


def addmm(p: Pick) -> Call:
    t, k, n = p.shape(3)
    bias = p.one([n], [t, n], [1, n], [t, 1], [1])
    scales = p.one({}, {"beta": 2}, {"alpha": 0.5}, {"beta": 3, "alpha": 2})
    return Call(aten.addmm.default, (p.tensor(*bias), p.tensor(t, k), p.tensor(k, n)), scales)


def mm(p: Pick) -> Call:
    m, k, n = p.shape(3)
    return Call(aten.mm.default, (p.tensor(m, k), p.tensor(k, n)))


def bmm(p: Pick) -> Call:
    b, m, k, n = p.shape(4)
    return Call(aten.bmm.default, (p.tensor(b, m, k), p.tensor(b, k, n)))


def matmul(p: Pick) -> Call:
    batch, (m, k, n) = p.shape(p.one(2, 1, 0)), p.shape(3)
    vector = p.one("no", "left", "right", "both")
    left = [k] if vector in ("left", "both") else [*p.one(batch, p.against(batch)), m, k]
    right = [k] if vector in ("right", "both") else [*p.one(batch, p.against(batch)), k, n]
    return Call(aten.matmul.default, (p.tensor(*left), p.tensor(*right)))


def attention(p: Pick) -> Call:
    b, h, q, k, d, e = p.size(4, 2, 3), p.size(4, 6, 1), p.size(4, 6), p.size(4, 6), p.size(4, 2), p.size(4, 2)
    batch = p.one([b, h], [b, h], [b])
    groups = p.one(1, 2) if len(batch) == 2 and h % 2 == 0 else 1
    fewer = [b, h // groups] if len(batch) == 2 else batch
    options: dict[str, Any] = p.one({}, {"is_causal": True}, {"scale": 0.3})
    if p.one(False, False, True):
        options = {**options, "dropout_p": 0.5}
    if groups > 1:
        options = {**options, "enable_gqa": True}
    arguments = [p.tensor(*batch, q, d), p.tensor(*fewer, k, d), p.tensor(*fewer, k, e)]
    mask = "no" if "is_causal" in options else p.one("no", "added", "kept")
    if mask != "no":
        shape = [*p.against(batch), p.one(q, 1), k]
        kept = p.flags(*shape)
        kept[..., 0] = True
        arguments.append(kept if mask == "kept" else p.tensor(*shape, grad=p.one(False, True)))
    return Call(aten.scaled_dot_product_attention.default, tuple(arguments), options)


def added(target: Any, *texts: str) -> Example:
    """Ops of (what is added, left, right); texts give the dims of left, right and result in letters."""

    def example(p: Pick) -> Call:
        sizes = {letter: p.size() for letter in "bmkn"}
        left, right, out = ([sizes[letter] for letter in text] for text in texts)
        scales = p.one({}, {"beta": 2}, {"alpha": 0.5}, {"beta": 3, "alpha": 2})
        return Call(target, (p.tensor(*p.one(out, p.against(out))), p.tensor(*left), p.tensor(*right)), scales)

    return example


def bilinear(p: Pick) -> Call:
    t, i, j, o = p.shape(4)
    given = p.tensor(t, i), p.tensor(o, i, j), p.tensor(t, j)
    return Call(aten._trilinear.default, (*given, [1, 3], [0], [1, 2], [2, 3]))


def cdist(p: Pick) -> Call:
    batch, (m, n, d) = p.shape(p.one(1, 0, 2)), p.shape(3)
    return Call(aten._cdist_forward.default, (p.tensor(*batch, m, d), p.tensor(*batch, n, d), p.one(2.0, 1.0), None))


def of_matrices(target: Any, *options: Any) -> Example:
    """Of well-conditioned symmetric matrices with different eigenvalues."""

    def example(p: Pick) -> Call:
        batch, n = p.shape(p.one(1, 2, 0)), p.size(3, 2)
        x = p.tensor(*batch, n, n, grad=False)
        given = 0.1 * (x + x.mT) + torch.diag(torch.arange(1.0, n + 1, dtype=x.dtype))
        read = 1 if len(target._schema.returns) > 1 else None
        return Call(target, (given.requires_grad_(), *options), read=read)

    return example


def solve(p: Pick) -> Call:
    """Of one right side or several for each matrix, or of some that all matrices share."""
    (a,) = of_matrices(aten._linalg_solve_ex.default)(p).args
    *batch, n, _ = a.shape
    right = p.one((*batch, n), (*batch, n, 2), (n, 2))
    return Call(aten._linalg_solve_ex.default, (a, p.tensor(*right)), read=1)


def experts(p: Pick) -> Call:
    batch, k, n, o, count = p.shape(p.one(2, 1)), p.size(), p.size(), p.size(), p.size(4, 2, 3)
    choices = p.one(2, 1)
    index = p.integers(count, *batch, choices)
    gated = p.one([2], [])
    return Call(
        EXPERTS,
        (
            p.tensor(*batch, k),
            index,
            p.tensor(*batch, choices),
            p.tensor(count, *gated, n, k),
            p.tensor(count, o, n),
            p.one("silu", "gelu_tanh", "gelu", "relu", *(["clamped:1.7:0.5"] if gated else [])),
        ),
        p.one({}, {"up_bias": p.tensor(count, *gated, n), "down_bias": p.tensor(count, o)}),
    )


EXAMPLES: Examples = {
    aten.linear.default: linear,
    aten.addmm.default: addmm,
    aten.mm.default: mm,
    aten.bmm.default: bmm,
    aten.baddbmm.default: added(aten.baddbmm.default, "bmk", "bkn", "bmn"),
    aten.addbmm.default: added(aten.addbmm.default, "bmk", "bkn", "mn"),
    aten.addmv.default: added(aten.addmv.default, "mk", "k", "m"),
    aten.matmul.default: matmul,
    aten._trilinear.default: bilinear,
    aten._cdist_forward.default: cdist,
    aten.linalg_qr.default: of_matrices(aten.linalg_qr.default),
    aten._linalg_svd.default: of_matrices(aten._linalg_svd.default),
    aten._linalg_eigh.default: of_matrices(aten._linalg_eigh.default),
    aten._linalg_det.default: of_matrices(aten._linalg_det.default),
    aten._linalg_slogdet.default: of_matrices(aten._linalg_slogdet.default),
    aten.linalg_inv_ex.default: of_matrices(aten.linalg_inv_ex.default),
    aten.linalg_cholesky_ex.default: of_matrices(aten.linalg_cholesky_ex.default),
    aten._linalg_solve_ex.default: solve,
    aten.scaled_dot_product_attention.default: attention,
    EXPERTS: experts,
}
