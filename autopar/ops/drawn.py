"""Which ops of a program draw random numbers, and what: data for giving each of them its key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from autopar.ir.layout import drawn_order
from autopar.ir.program import Region
from autopar.ops.draws import Draw
from autopar.ops.fits import argument
from autopar.torch_private import OpOverload, example_of

aten = torch.ops.aten
Numbers = Callable[[torch.fx.Node], tuple[float, ...]]


def of(*names: str) -> Numbers:
    """The op's arguments of these names."""
    return lambda node: tuple(float(argument(node, name)) for name in names)


def always(*numbers: float) -> Numbers:
    return lambda node: numbers


KINDS: Mapping[Any, tuple[str, Numbers]] = {
    aten.dropout.default: ("dropout", of("p")),
    aten.bernoulli.p: ("bernoulli", of("p")),
    aten.rand.default: ("uniform", always(0, 1)),
    aten.rand_like.default: ("uniform", always(0, 1)),
    aten.uniform.default: ("uniform", of("from", "to")),
    aten.randn.default: ("normal", always(0, 1)),
    aten.randn_like.default: ("normal", always(0, 1)),
    aten.normal_functional.default: ("normal", of("mean", "std")),
    aten.normal.float_float: ("normal", of("mean", "std")),
    aten.exponential.default: ("exponential", of("lambd")),
    aten.randint.default: ("integers", lambda node: (0.0, *of("high")(node))),
    aten.randint.low: ("integers", of("low", "high")),
    aten.randint_like.default: ("integers", lambda node: (0.0, *of("high")(node))),
    aten.randint_like.low_dtype: ("integers", of("low", "high")),
    aten.randperm.default: ("permutation", always()),
}
"""Ops whose numbers autopar draws: the kind, and what says how they are distributed. Attention with dropout is one more."""


def is_attention(node: torch.fx.Node) -> bool:
    return node.target is aten.scaled_dot_product_attention.default


def kind_of(node: torch.fx.Node) -> tuple[str, tuple[float, ...]] | None:
    """How the numbers are distributed that a node draws; None if it draws none, or some that autopar cannot draw."""
    if node.op != "call_function":
        return None
    if is_attention(node):
        probability = float(argument(node, "dropout_p", 0.0))
        return ("dropout", (probability,)) if probability else None
    if node.target not in KINDS:
        return None
    kind, numbers = KINDS[node.target]
    if kind == "dropout" and (not argument(node, "p") or not argument(node, "train")):
        return None
    return kind, numbers(node)


def draw_of(node: torch.fx.Node) -> Draw | None:
    """What a node draws, as a whole: at the sizes of the example where a program has dynamic ones."""
    found = kind_of(node)
    if found is None:
        return None
    value, shape = node.meta["val"], node.meta["val"].shape
    if is_attention(node):
        query, key = (n.meta["val"] for n in node.args[:2] if isinstance(n, torch.fx.Node))
        value, shape = query, (*query.shape[:-1], key.shape[-2])
    whole = tuple(int(example_of(n)) for n in shape)
    return Draw(kind=found[0], numbers=found[1], shape=whole, dtype=value.dtype, order=drawn_order(node))


def sites_of(region: Region) -> dict[torch.fx.Node, int]:
    """The nodes of a region that draw, numbered in order: the rows of the keys of a call."""
    return {node: site for site, node in enumerate(n for n in region.graph.nodes if kind_of(n) is not None)}


def is_unknown(node: torch.fx.Node) -> bool:
    """Whether the node draws from torch's generator in a way that autopar cannot draw: two runs of it differ."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return False
    draws = torch.Tag.nondeterministic_seeded in node.target.tags and argument(node, "training", True)
    return bool(draws) and node.target not in KINDS and not is_attention(node)
