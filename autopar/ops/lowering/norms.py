"""How norms, softmax and convolutions over cut loops are written into a local graph."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from autopar.ops.fits import argument
from autopar.ops.lowering.reductions import axes_of
from autopar.ops.sharded import common, norms

if TYPE_CHECKING:
    from autopar.ops.lowering.emit import Cuts, LocalCall, Lowering


def _layer_norm(call: LocalCall, cuts: Cuts) -> torch.fx.Node:
    x, normalized_shape = call.args[:2]
    eps = argument(call.node, "eps", 1e-5)
    given = x, math.prod(normalized_shape), call.argument(2), call.argument(3), eps, cuts["h"].axes
    return call.emit(norms.layer_norm_hidden, given)


def _rms_norm(call: LocalCall, cuts: Cuts) -> torch.fx.Node:
    x, normalized_shape = call.args[:2]
    eps = argument(call.node, "eps")
    return call.emit(norms.rms_norm_hidden, (x, math.prod(normalized_shape), call.argument(2), eps, cuts["h"].axes))


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
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "convolution": _convolution,
    "batch_norm": _batch_norm,
    "softmax": _softmax(False),
    "log_softmax": _softmax(True),
}
