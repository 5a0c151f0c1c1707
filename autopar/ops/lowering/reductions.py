"""How reductions and losses over cut loops are written into a local graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from autopar.ops.fits import argument, dim_list
from autopar.ops.sharded import common, losses, reductions
from autopar.ops.units import shapes_of

if TYPE_CHECKING:
    from autopar.ops.lowering.emit import Axes, Cuts, LocalCall, Lowering

Places = tuple[torch.fx.Node, ...]


def axes_of(cuts: Cuts, *but: str) -> tuple[Axes, Places]:
    """The mesh axes that cut any factor but these, one factor after another, and the coordinates on them."""
    found = [cut for factor, cut in cuts.items() if factor not in but]
    return tuple(axis for cut in found for axis in cut.axes), tuple(place for cut in found for place in cut.coordinates)


def cut_of(cuts: Cuts, factor: str) -> tuple[Axes, Places]:
    """The mesh axes that cut the factor, outermost first, and the coordinates on them; nothing where it is not cut."""
    return (cuts[factor].axes, cuts[factor].coordinates) if factor in cuts else ((), ())


def mean(call: LocalCall, cuts: Cuts) -> torch.fx.Node:
    parts = math.prod(size for cut in cuts.values() for _, size in cut.axes)
    return call.emit(torch.ops.aten.div.Tensor, (call.again(), parts))


def once(call: LocalCall, cuts: Cuts) -> torch.fx.Node:
    """The op is linear in its first operand, which lacks the loop that is cut."""
    first = call.emit(common.once, (call.args[0], axes_of(cuts)[1]))
    return call.emit(call.target, (first, *call.args[1:]), call.kwargs)


def cross_entropy(call: LocalCall, cuts: Cuts) -> torch.fx.Node:
    vocab_axes, vocab_coordinates = cut_of(cuts, "v")
    options = {
        "reduction": call.named("reduction"),
        "ignore_index": call.named("ignore_index"),
        "label_smoothing": call.named("label_smoothing"),
        "vocab_axes": vocab_axes,
        "vocab_coordinates": vocab_coordinates,
        "token_axes": axes_of(cuts, "v")[0],
    }
    if "v" in cuts and cuts["v"].uneven is not None:
        options["classes"] = cuts["v"].uneven
    return call.emit(losses.cross_entropy, (*call.args[:2], call.named("weight")), options)


def nll_mean(call: LocalCall, cuts: Cuts) -> torch.fx.Node:
    given = *call.args[:2], call.named("weight"), call.named("ignore_index"), axes_of(cuts)[0]
    return call.emit(losses.nll_mean, given)


def dims_of(call: LocalCall) -> tuple[int, ...]:
    """The reduced dims, non-negative."""
    (source,) = call.node.all_input_nodes
    return tuple(dim_list(argument(call.node, "dim"), len(shapes_of(source)[0])))


def over(function: Callable[..., Any], *options: Any) -> Lowering:
    """`function(x, dims, keepdim, *options, axes)`."""

    def lower(call: LocalCall, cuts: Cuts) -> torch.fx.Node:
        keepdim = bool(argument(call.node, "keepdim", False))
        return call.emit(function, (call.args[0], dims_of(call), keepdim, *options, axes_of(cuts)[0]))

    return lower


def along(function: Callable[..., Any], *options: Any) -> Lowering:
    """`function(x, dim, keepdim, *options, axes, coordinates)`."""

    def lower(call: LocalCall, cuts: Cuts) -> torch.fx.Node:
        keepdim = bool(argument(call.node, "keepdim", False))
        return call.emit(function, (call.args[0], *dims_of(call), keepdim, *options, *axes_of(cuts)))

    return lower


def moments(function: Callable[..., Any]) -> Lowering:
    """`function(x, dims, correction, keepdim, axes)`."""

    def lower(call: LocalCall, cuts: Cuts) -> torch.fx.Node:
        correction = argument(call.node, "correction")
        options = 1 if correction is None else correction, bool(argument(call.node, "keepdim"))
        return call.emit(function, (call.args[0], dims_of(call), *options, axes_of(cuts)[0]))

    return lower


IMPLEMENTATIONS: dict[str, Lowering] = {
    "mean": mean,
    "once": once,
    "cross_entropy": cross_entropy,
    "nll_mean": nll_mean,
    "maximum": over(reductions.extremum, False),
    "minimum": over(reductions.extremum, True),
    "any": over(reductions.truth, False),
    "all": over(reductions.truth, True),
    "euclidean_norm": over(reductions.euclidean_norm),
    "max_at": along(reductions.extremum_at, False),
    "min_at": along(reductions.extremum_at, True),
    "argmax": along(reductions.position_of_extremum, False),
    "argmin": along(reductions.position_of_extremum, True),
    "var": moments(reductions.var),
    "var_mean": moments(reductions.var_mean),
}
