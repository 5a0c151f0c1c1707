"""How layers over cut loops are written into a local graph: embeddings, linear layers, attention, experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from autopar.ops import exchanged
from autopar.ops.fits import argument
from autopar.ops.lowering.reductions import cut_of
from autopar.ops.sharded import layers

if TYPE_CHECKING:
    from autopar.ops.lowering.emit import Cuts, LocalCall, Lowering


def embedding(call: LocalCall, cuts: Cuts) -> torch.fx.Node:
    weight, ids = call.args[:2]
    padding, cut = argument(call.node, "padding_idx", -1), cuts["v"]
    size = () if cut.uneven is None else (cut.uneven,)
    return call.emit(layers.embedding_vocab, (weight, ids, cut.axes, cut.coordinates, padding, *size))


def linear(call: LocalCall, cuts: Cuts) -> torch.fx.Node:
    if call.argument(2) is None:
        return call.again()
    return call.emit(layers.linear_row_bias, (*call.args, *cut_of(cuts, "k")))


def addmm(call: LocalCall, cuts: Cuts) -> torch.fx.Node:
    return call.emit(layers.addmm_row_bias, (*call.args, *cut_of(cuts, "k")), call.kwargs)


def causal_attention(call: LocalCall, cuts: Cuts) -> torch.fx.Node:
    names = ("dropout_p", "scale", "enable_gqa")
    options = {name: value for name in names if (value := argument(call.node, name)) is not None}
    return call.emit(layers.causal_attention, (*call.args[:3], *cut_of(cuts, "q")), options)


def experts(call: LocalCall, cuts: Cuts) -> torch.fx.Node:
    options = dict(call.kwargs)
    if "n" in cuts:
        options["summed"] = cuts["n"].coordinates
    given = *call.args[:6], *cut_of(cuts, "e")
    if "+e" not in cuts:
        return call.emit(layers.experts_of_axes, given, options)
    return call.emit(exchanged.experts_exchanged, (*given, cuts["+e"].axes), options)


IMPLEMENTATIONS: dict[str, Lowering] = {
    "embedding": embedding,
    "linear": linear,
    "addmm": addmm,
    "causal_attention": causal_attention,
    "experts": experts,
}
