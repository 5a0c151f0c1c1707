"""Masks that are causal by construction go back into attention, which then is the fast kernel without a mask.

Traced Hugging Face models compute a mask [batch, 1, seq, seq] from positions, where their eager code may pass `is_causal`.
Which one a mask is follows from what its nodes are (`autopar.tracer.known`), whatever the sizes. With the mask goes what it
forces upon models with fewer key heads: copies of keys and values for every head. Masks that stay are made only as large as
they differ: not once per row of the batch if all rows have the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, Node

from autopar.torch_private import OpOverload
from autopar.tracer.affine import Affine, Unknown, Where, is_zero, truth_of
from autopar.tracer.clean import shape_of
from autopar.tracer.known import Knowledge

aten = torch.ops.aten
SDPA = aten.scaled_dot_product_attention.default
ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
COPIES = frozenset({aten.clone.default, aten.contiguous.default, aten._to_copy.default})


def fold_masks(graph: Graph) -> None:
    """Attention under a mask that is true everywhere loses it; under a causal one it becomes `is_causal`. In place."""
    known = Knowledge()
    narrow = Narrow(graph, known)
    for node in graph.find_nodes(op="call_function", target=SDPA):
        given = dict(zip(ARGUMENTS, node.args, strict=False)) | dict(node.kwargs)
        mask = given.pop("attn_mask", None)
        if not isinstance(mask, Node) or given.get("is_causal", False):
            continue
        kind = kind_of(known, mask, node)
        if kind == "other":
            node.replace_input_with(mask, narrow.mask(mask))
            continue
        if kind == "causal":
            given["is_causal"] = True
        node.args = tuple(given.pop(name) for name in ARGUMENTS[:3])
        node.kwargs = given
        share_heads(node)


def kind_of(known: Knowledge, mask: Node, attention: Node) -> str:
    """ "causal", "nothing" (it changes nothing), or "other"."""
    found = known.of(mask)
    queries, keys = (shape_of(attention.args[i].meta["val"])[-2] for i in (0, 1))  # type: ignore[union-attr]
    if mask.meta["val"].dtype is not torch.bool or not isinstance(found, Where):
        return "nothing" if is_zero(found) else "other"
    if not found.forms:
        return "nothing"
    lower = Affine(0, (*(0,) * (found.rank - 2), 1, -1))
    return "causal" if found.forms == {lower} and queries == keys else "other"


class Narrow:
    """Masks with size one in the dims in which they do not differ; attention broadcasts them."""

    def __init__(self, graph: Graph, known: Knowledge) -> None:
        self.graph, self.known = graph, known
        self.done: dict[tuple[Node, int], Node | None] = {}

    def mask(self, node: Node) -> Node:
        """Of a mask [batch, heads, queries, keys]: all dims but the last."""
        for dim in range(len(shape_of(node.meta["val"])) - 1):
            node = self.at(node, dim) or node
        return node

    def at(self, node: Node, dim: int) -> Node | None:
        """The same with size one at `dim`; None if it differs there or nobody knows."""
        if (node, dim) not in self.done:
            self.done[node, dim] = self.made(node, dim)
        return self.done[node, dim]

    def made(self, node: Node, dim: int) -> Node | None:
        shape = shape_of(node.meta["val"])
        if node.target is aten.where.self and (chosen := self.chosen(node)):
            return self.at(chosen, dim)
        if shape[dim] == 1:
            return node
        if node.target is aten.expand.default and (narrower := self.expanded(node, dim)):
            return narrower
        if self.is_alike(node, dim):
            with self.graph.inserting_after(node):
                return self.copy(node, dim, aten.slice.Tensor, (node, dim, 0, 1), {})
        pointwise = isinstance(node.target, OpOverload) and torch.Tag.pointwise in node.target.tags
        if node.op != "call_function" or not (pointwise or node.target in COPIES):
            return None
        return self.again(node, dim)

    def chosen(self, node: Node) -> Node | None:
        """Of a `where` whose condition is the same everywhere: what it takes, if that has all dims."""
        condition = self.known.of(node.args[0])  # type: ignore[arg-type]
        try:
            taken = node.args[1 if truth_of(condition) else 2] if isinstance(condition, Where) else None
        except Unknown:
            return None
        if not isinstance(taken, Node) or taken.meta["val"].dtype != node.meta["val"].dtype:
            return None
        return taken if taken.meta["val"].dim() == node.meta["val"].dim() else None

    def is_alike(self, node: Node, dim: int) -> bool:
        found = self.known.of(node)
        forms = [found] if isinstance(found, Affine) else found.forms if isinstance(found, Where) else None
        return forms is not None and all(form.slopes[dim] == 0 for form in forms)

    def expanded(self, node: Node, dim: int) -> Node | None:
        source, sizes = node.args[:2]
        assert isinstance(source, Node)
        assert isinstance(sizes, list | tuple)
        inner = dim - (len(sizes) - source.meta["val"].dim())
        if inner >= 0:
            narrower = self.at(source, inner)
            if narrower is None:
                return None
            source = narrower
        wanted = [1 if d == dim else n for d, n in enumerate(sizes)]
        value = one(node.meta["val"], dim)
        if shape_of(source.meta["val"]) == shape_of(value):
            return source
        with self.graph.inserting_before(node):
            return self.copy(node, dim, aten.expand.default, (source, wanted), {})

    def again(self, node: Node, dim: int) -> Node | None:
        """The op on narrower operands."""
        rank, operands = node.meta["val"].dim(), {}
        for source in node.all_input_nodes:
            inner = dim - (rank - source.meta["val"].dim())
            narrower = self.at(source, inner) if inner >= 0 else source
            if narrower is None:
                return None
            operands[source] = narrower
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), operands.__getitem__)
        with self.graph.inserting_before(node):
            return self.copy(node, dim, node.target, args, kwargs)  # type: ignore[arg-type]

    def copy(self, node: Node, dim: int, target: Callable[..., Any], args: Any, kwargs: Any) -> Node:
        new = self.graph.call_function(target, tuple(args), dict(kwargs))
        new.meta = {**node.meta, "val": one(node.meta["val"], dim)}
        return new


def one(value: torch.Tensor, dim: int) -> torch.Tensor:
    """A fake tensor like this with size one at `dim`."""
    return value.new_empty([1 if d == dim else n for d, n in enumerate(value.shape)])


def share_heads(node: Node) -> None:
    """Keys and values that were copied for each of a group of heads are given as they are: `enable_gqa`."""
    query, key, value = (a for a in node.args if isinstance(a, Node))
    fewer = [repeated(key), repeated(value)]
    if node.kwargs.get("enable_gqa") or not all(fewer) or len(shape_of(query.meta["val"])) != 4:
        return
    shapes = [shape_of(f.meta["val"]) for f in fewer if f is not None]
    if shapes[0][:3] == shapes[1][:3]:
        node.args = (query, *fewer)
        node.kwargs = {**node.kwargs, "enable_gqa": True}


def repeated(node: Node) -> Node | None:
    """The [batch, heads, seq, dim] whose heads were each repeated in place, as `repeat_kv` does; None if this was not."""
    chain: list[Node] = []
    for target in (aten.reshape.default, aten.expand.default, aten.unsqueeze.default):
        if node.target is not target or not isinstance(node.args[0], Node):
            return None
        chain.append(node)
        node = node.args[0]
    whole, wide, one = (shape_of(n.meta["val"]) for n in chain)
    shape = shape_of(node.meta["val"])
    if len(shape) != 4 or one != (*shape[:2], 1, *shape[2:]) or len(wide) != 5 or wide != (*one[:2], wide[2], *one[3:]):
        return None
    return node if whole == (shape[0], shape[1] * wide[2], *shape[2:]) else None
