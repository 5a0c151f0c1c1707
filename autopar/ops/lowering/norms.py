"""Convolutions, norms and softmax on local shapes: what their rows name in `sharded`, to what emits it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from autopar.ops.fits import argument
from autopar.ops.lowering.reductions import axes_of
from autopar.ops.sharded import common, norms

if TYPE_CHECKING:
    from autopar.ops.lowering.emit import Cuts, LocalCall, Lowering


def _convolution(call: LocalCall, cuts: Cuts) -> torch.fx.Node:
    bias = call.named("bias")
    return call.with_arguments(bias=call.emit(common.once, (bias, cuts["c"].coordinates))).again()


def _batch_norm(call: LocalCall, cuts: Cuts) -> torch.fx.Node:
    x, weight, bias, mean, variance = map(call.named, ("input", "weight", "bias", "running_mean", "running_var"))
    running = None if mean is None else (mean, variance)
    momentum, eps = argument(call.node, "momentum"), argument(call.node, "eps")
    return call.emit(norms.batch_norm, (x, weight, bias, running, momentum, eps, axes_of(cuts)[0]))


def _softmax(logarithm: bool) -> Lowering:
    def emit(call: LocalCall, cuts: Cuts) -> torch.fx.Node:
        dtype = call.named("dtype") or (torch.float32 if argument(call.node, "half_to_float") else None)
        given = call.args[0], argument(call.node, "dim"), dtype, axes_of(cuts)[0]
        return call.emit(norms.softmax, given, {"logarithm": logarithm})

    return emit


IMPLEMENTATIONS: dict[str, Lowering] = {
    "convolution": _convolution,
    "batch_norm": _batch_norm,
    "softmax": _softmax(False),
    "log_softmax": _softmax(True),
}
"""Names in the `sharded` column of the rule table, to what emits them; a part of `lower.IMPLEMENTATIONS`."""
