"""Convolutions, norms and softmax on local shapes: what their rows name in `sharded`, to what emits it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from autopar.ops import sharded, sharded_norms
from autopar.ops.fits import argument

if TYPE_CHECKING:
    from autopar.ops.lower import Axes, Cuts, LocalCall


def with_arguments(call: LocalCall, **values: Any) -> LocalCall:
    """With other values for the arguments that the op's schema calls so."""
    places = [declared.name for declared in call.node.target._schema.arguments]  # type: ignore[union-attr]
    args, kwargs = list(call.args), dict(call.kwargs)
    for name, value in values.items():
        if (place := places.index(name)) < len(args):
            args[place] = value
        else:
            kwargs[name] = value
    return replace(call, args=tuple(args), kwargs=kwargs)


def local_operand(call: LocalCall, name: str) -> Any:
    """What an argument is on a device; None if it is left out, or the op has no such argument."""
    places = [declared.name for declared in call.node.target._schema.arguments]  # type: ignore[union-attr]
    place = places.index(name) if name in places else len(call.args)
    return call.args[place] if place < len(call.args) else call.kwargs.get(name)


def all_axes(cuts: Cuts) -> Axes:
    return tuple(axis for cut in cuts.values() for axis in cut.axes)


def _convolution(call: LocalCall, cuts: Cuts) -> torch.fx.Node:
    values = {}
    bias = local_operand(call, "bias")
    if "c" in cuts and bias is not None:
        values["bias"] = call.emit(sharded.bias_of_first, (bias, cuts["c"].coordinates))
    if "g" in cuts:
        values["groups"] = argument(call.node, "groups") // sharded.parts(cuts["g"].axes)
    return with_arguments(call, **values).again()


def _group_norm(call: LocalCall, cuts: Cuts) -> torch.fx.Node:
    groups = argument(call.node, "num_groups") // sharded.parts(cuts["g"].axes)
    return with_arguments(call, num_groups=groups).again()


def _native_group_norm(call: LocalCall, cuts: Cuts) -> torch.fx.Node:
    counts = {"N": "b", "C": "g", "group": "g"}
    parts = {name: sharded.parts(cuts[f].axes) for name, f in counts.items() if f in cuts}
    return with_arguments(call, **{name: argument(call.node, name) // n for name, n in parts.items()}).again()


def _batch_norm(call: LocalCall, cuts: Cuts) -> torch.fx.Node:
    x, weight, bias, mean, variance = (
        local_operand(call, name) for name in ("input", "weight", "bias", "running_mean", "running_var")
    )
    running = None if mean is None else (mean, variance)
    momentum, eps = argument(call.node, "momentum"), argument(call.node, "eps")
    return call.emit(sharded_norms.batch_norm, (x, weight, bias, running, momentum, eps, all_axes(cuts)))


def _softmax(logarithm: bool) -> Callable[[LocalCall, Cuts], torch.fx.Node]:
    def emit(call: LocalCall, cuts: Cuts) -> torch.fx.Node:
        dtype = local_operand(call, "dtype") or (torch.float32 if argument(call.node, "half_to_float") else None)
        given = call.args[0], argument(call.node, "dim"), dtype, all_axes(cuts)
        return call.emit(sharded_norms.softmax, given, {"logarithm": logarithm})

    return emit


NORMS: dict[str, Callable[[LocalCall, Cuts], torch.fx.Node]] = {
    "convolution": _convolution,
    "group_norm": _group_norm,
    "native_group_norm": _native_group_norm,
    "batch_norm": _batch_norm,
    "softmax": _softmax(False),
    "log_softmax": _softmax(True),
}
"""Names in the `sharded` column of the rule table, to what emits them; a part of `lower.IMPLEMENTATIONS`."""
