"""Pointwise ops that let partial sums pass, or lack torch's tag; the others need no row: the tag makes their rule."""

from __future__ import annotations

import torch

from autopar.ops import fits
from autopar.ops.rule import OpRule, Rows, tensor_operands

aten = torch.ops.aten


def both_tensors(node: torch.fx.Node) -> bool:
    """a + b, a - b: linear in both together; with a number in place of a tensor they are not."""
    return sum(n is not None for n in tensor_operands(node)) == 2


def by_number(node: torch.fx.Node) -> bool:
    """a * 2, a / 2: linear; a * b is not (in both together)."""
    return sum(n is not None for n in tensor_operands(node)) == 1


def float_to_float(node: torch.fx.Node) -> bool:
    """A cast between floating-point types, or one that leaves the type."""
    dtype, source = node.kwargs.get("dtype"), node.args[0]
    if not isinstance(source, torch.fx.Node) or not source.meta["val"].is_floating_point():
        return False
    return not isinstance(dtype, torch.dtype) or dtype.is_floating_point


ROWS: Rows = {
    aten._to_copy.default: OpRule(kind="pointwise", fit=fits.elementwise, linear=float_to_float),
    aten.add.Tensor: OpRule(kind="pointwise", fit=fits.elementwise, linear=both_tensors),
    aten.sub.Tensor: OpRule(kind="pointwise", fit=fits.elementwise, linear=both_tensors),
    aten.neg.default: OpRule(kind="pointwise", fit=fits.elementwise, linear=True),
    aten.mul.Tensor: OpRule(kind="pointwise", fit=fits.elementwise, linear=by_number),
    aten.div.Tensor: OpRule(kind="pointwise", fit=fits.elementwise, linear=by_number),
    aten.mul.Scalar: OpRule(kind="pointwise", fit=fits.elementwise, linear=True),
    aten.hardswish.default: OpRule(kind="pointwise", fit=fits.elementwise),
    aten.log_sigmoid.default: OpRule(kind="pointwise", fit=fits.elementwise),
}
