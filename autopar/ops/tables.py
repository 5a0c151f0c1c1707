"""The table: one row per op. Pointwise ops need none: torch's own tag makes their rule.

Rows are ordered by family. See `autopar.ops.rule` for the notation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import torch

from autopar.ops import fits
from autopar.ops.fits import argument
from autopar.ops.rule import OpRule, fit_text, parse, tensor_operands
from autopar.torch_private import OpOverload

logger = logging.getLogger("autopar")
aten = torch.ops.aten


def both_tensors(node: torch.fx.Node) -> bool:
    """a + b, a - b: linear in both together; with a number in place of a tensor they are not."""
    return sum(n is not None for n in tensor_operands(node)) == 2


def by_number(node: torch.fx.Node) -> bool:
    """a * 2, a / 2: linear; a * b is not (in both together)."""
    return sum(n is not None for n in tensor_operands(node)) == 1


def float_to_float(node: torch.fx.Node) -> bool:
    dtype = node.kwargs.get("dtype")
    source = node.args[0]
    return isinstance(source, torch.fx.Node) and source.meta["val"].is_floating_point and (
        dtype is None or dtype.is_floating_point  # type: ignore[union-attr]
    )  # fmt: skip


def sdpa(node: torch.fx.Node, operands: object, results: object) -> object:
    """Attention over [batch, heads, queries, dim]; each query shard needs all keys, so causal masks keep queries whole."""
    shapes: list = list(operands)  # type: ignore[call-overload]
    causal = bool(argument(node, "is_causal", False))
    query = "q!" if causal else "q"
    if (bool(argument(node, "enable_gqa", False)) and shapes[0][1] != shapes[1][1]) or len(shapes[0]) != 4:
        return fits.all_whole(node, shapes, results)  # type: ignore[arg-type]
    mask = {0: "", 2: f", {query} k!", 3: f", h {query} k!", 4: f", b h {query} k!"}[
        len(shapes[3]) if len(shapes) > 3 and shapes[3] else 0
    ]
    return fit_text(f"b h {query} d!, b h k! d!, b h k! e!{mask} -> b h {query} e!", shapes, results)  # type: ignore[arg-type]


def cross_entropy(node: torch.fx.Node, operands: object, results: object) -> object:
    shapes: list = list(operands)  # type: ignore[call-overload]
    reduces = argument(node, "reduction", 1) in (1, 2)
    if len(shapes) != 2 or len(shapes[0]) != 2 or len(shapes[1]) != 1 or not reduces:
        return fits.all_whole(node, shapes, results)  # type: ignore[arg-type]
    sharded = {"t": "cross_entropy", "v": "cross_entropy"}
    return fit_text("t v, t ->", shapes, results, sharded, frozenset({"v"}))  # type: ignore[arg-type]


def layer_norm(node: torch.fx.Node, operands: object, results: object) -> object:
    shapes: list = list(operands)  # type: ignore[call-overload]
    if len(argument(node, "normalized_shape")) != 1:  # type: ignore[arg-type]
        return fits.last_whole(node, shapes, results)  # type: ignore[arg-type]
    return fit_text("b* h, h, h -> b* h", shapes, results, {"h": "layer_norm"})  # type: ignore[arg-type]


def addmm(node: torch.fx.Node, operands: object, results: object) -> object:
    bias = "n" if len(operands[0]) == 1 else "t n"  # type: ignore[index]
    return fit_text(f"{bias}, t k, k n -> t n", operands, results, {"k": "addmm"})  # type: ignore[arg-type]


def embedding(node: torch.fx.Node, operands: object, results: object) -> object:
    """Gradients that are divided by how often a row was read need all reads, and all rows, in one place."""
    if argument(node, "scale_grad_by_freq", False) or argument(node, "sparse", False):
        return fit_text("v! h, b*! -> b*! h", operands, results)  # type: ignore[arg-type]
    return fit_text("v h, b* -> b* h", operands, results, {"v": "embedding"})  # type: ignore[arg-type]


def convolution(node: torch.fx.Node, operands: object, results: object) -> object:
    """Groups tie output channels to input channels: then both stay whole."""
    image, kernel, out = {3: ("x!", "i!", "y!"), 4: ("x! u!", "i! j!", "y! v!")}[len(results[0])]  # type: ignore[index]
    text = f"b c! {image}, o c! {kernel}, o -> b o {out}"
    if argument(node, "groups", 1) != 1:
        text = f"b c! {image}, o! g! {kernel}, o! -> b o! {out}"
    return fit_text(text, operands, results)  # type: ignore[arg-type]


TABLE: dict[OpOverload, OpRule] = {
    # matrix products
    aten.linear.default: OpRule(kind="matmul", text="b* k, n k, n -> b* n", sharded={"k": "linear"}),
    aten.addmm.default: OpRule(kind="matmul", fit=addmm),  # type: ignore[arg-type]
    aten.mm.default: OpRule(kind="matmul", text="m k, k n -> m n"),
    aten.bmm.default: OpRule(kind="matmul", text="b m k, b k n -> b m n"),
    aten.matmul.default: OpRule(kind="matmul", fit=fits.matmul),
    aten.scaled_dot_product_attention.default: OpRule(kind="attention", fit=sdpa),  # type: ignore[arg-type]
    aten.conv1d.default: OpRule(kind="matmul", fit=convolution),  # type: ignore[arg-type]
    aten.conv2d.default: OpRule(kind="matmul", fit=convolution),  # type: ignore[arg-type]
    # embeddings, norms, losses
    aten.embedding.default: OpRule(kind="embedding", fit=embedding),  # type: ignore[arg-type]
    aten.layer_norm.default: OpRule(kind="norm", fit=layer_norm, shape_argument=1),  # type: ignore[arg-type]
    aten.cross_entropy_loss.default: OpRule(kind="loss", fit=cross_entropy),  # type: ignore[arg-type]
    # softmax family and scans
    aten.softmax.int: OpRule(kind="norm", fit=fits.elementwise_whole("dim")),
    aten._softmax.default: OpRule(kind="norm", fit=fits.elementwise_whole("dim")),
    aten.log_softmax.int: OpRule(kind="norm", fit=fits.elementwise_whole("dim")),
    aten._log_softmax.default: OpRule(kind="norm", fit=fits.elementwise_whole("dim")),
    aten.cumsum.default: OpRule(kind="norm", fit=fits.elementwise_whole("dim")),
    aten.flip.default: OpRule(kind="pointwise", fit=fits.elementwise_whole("dims"), linear=True),
    # reductions
    aten.sum.default: OpRule(kind="reduction", fit=fits.reduction, linear=True),
    aten.sum.dim_IntList: OpRule(kind="reduction", fit=fits.reduction, linear=True),
    aten.mean.default: OpRule(kind="reduction", fit=fits.mean, linear=True),
    aten.mean.dim: OpRule(kind="reduction", fit=fits.mean, linear=True),
    aten.amax.default: OpRule(kind="reduction", fit=fits.reduction_whole),
    aten.argmax.default: OpRule(kind="reduction", fit=fits.reduction_whole),
    aten.var.correction: OpRule(kind="reduction", fit=fits.reduction_whole),
    # views
    aten.reshape.default: OpRule(kind="view", fit=fits.regrouped, linear=True, shape_argument=1),
    aten.view.default: OpRule(kind="view", fit=fits.regrouped, linear=True, shape_argument=1),
    aten.permute.default: OpRule(kind="view", fit=fits.permuted(fits.permute_order), linear=True),
    aten.transpose.int: OpRule(kind="view", fit=fits.permuted(fits.transpose_order), linear=True),
    aten.t.default: OpRule(kind="view", fit=fits.permuted(fits.transpose_order), linear=True),
    aten.unsqueeze.default: OpRule(kind="view", fit=fits.ones_moved, linear=True),
    aten.squeeze.default: OpRule(kind="view", fit=fits.ones_moved, linear=True),
    aten.squeeze.dim: OpRule(kind="view", fit=fits.ones_moved, linear=True),
    aten.squeeze.dims: OpRule(kind="view", fit=fits.ones_moved, linear=True),
    aten.contiguous.default: OpRule(kind="view", fit=fits.elementwise, linear=True),
    aten.alias.default: OpRule(kind="view", fit=fits.elementwise, linear=True),
    aten.clone.default: OpRule(kind="pointwise", fit=fits.elementwise, linear=True),
    aten.detach.default: OpRule(kind="pointwise", fit=fits.elementwise, linear=True),
    # data movement that is a view of some dims and leaves one whole
    aten.expand.default: OpRule(kind="pointwise", fit=fits.expanded, linear=True, shape_argument=1),
    aten.slice.Tensor: OpRule(kind="pointwise", fit=fits.along("dim"), linear=True),
    aten.select.int: OpRule(kind="pointwise", fit=fits.along("dim"), linear=True),
    aten.split_with_sizes.default: OpRule(kind="pointwise", fit=fits.along("dim"), linear=True),
    aten.split.Tensor: OpRule(kind="pointwise", fit=fits.along("dim"), linear=True),
    aten.chunk.default: OpRule(kind="pointwise", fit=fits.along("dim"), linear=True),
    aten.unbind.int: OpRule(kind="pointwise", fit=fits.along("dim"), linear=True),
    aten.cat.default: OpRule(kind="pointwise", fit=fits.along("dim"), linear=True),
    aten.index_select.default: OpRule(kind="whole", fit=fits.all_whole),
    aten.constant_pad_nd.default: OpRule(kind="pointwise", fit=fits.padded),
    # casts and scaling
    aten._to_copy.default: OpRule(kind="pointwise", fit=fits.elementwise, linear=float_to_float),
    aten.add.Tensor: OpRule(kind="pointwise", fit=fits.elementwise, linear=both_tensors),
    aten.sub.Tensor: OpRule(kind="pointwise", fit=fits.elementwise, linear=both_tensors),
    aten.neg.default: OpRule(kind="pointwise", fit=fits.elementwise, linear=True),
    aten.mul.Tensor: OpRule(kind="pointwise", fit=fits.elementwise, linear=by_number),
    aten.div.Tensor: OpRule(kind="pointwise", fit=fits.elementwise, linear=by_number),
    aten.dropout.default: OpRule(kind="pointwise", fit=fits.elementwise, random=True),
    # factories
    aten.arange.start_step: OpRule(kind="whole", fit=fits.all_whole),
    aten.arange.start: OpRule(kind="whole", fit=fits.all_whole),
    aten.arange.default: OpRule(kind="whole", fit=fits.all_whole),
    aten.full.default: OpRule(kind="pointwise", fit=fits.factory, shape_argument=0),
    aten.zeros.default: OpRule(kind="pointwise", fit=fits.factory, shape_argument=0),
    aten.ones.default: OpRule(kind="pointwise", fit=fits.factory, shape_argument=0),
    # kept whole, knowingly: position lookups of masks and token types, small and without gradient
    aten.index.Tensor: OpRule(kind="whole", fit=fits.all_whole),
    aten.gather.default: OpRule(kind="whole", fit=fits.all_whole),
}

POINTWISE = OpRule(kind="pointwise", fit=fits.elementwise)
KEPT_WHOLE = OpRule(kind="whole", fit=fits.all_whole)
USER_RULES: dict[OpOverload, OpRule] = {}


def op_rule(text: str, *, kind: str = "matmul", sharded: dict[str, str] | None = None) -> Callable[[object], object]:
    """Decorator: give a custom op (`torch.library.custom_op` or an OpOverload) a rule.

    >>> # @autopar.op_rule("t k, e k n -> t n")
    >>> # @torch.library.custom_op("mine::experts", mutates_args=())
    """
    rule = OpRule(kind=kind, text=text, sharded=sharded or {})
    parse(text)

    def register(op: object) -> object:
        overload = getattr(op, "_opoverload", op)
        USER_RULES[overload] = rule  # type: ignore[index]
        return op

    return register


def rule_for(target: object) -> OpRule | None:
    """The row of an op; None for an op that nobody wrote one for."""
    if target in USER_RULES:
        return USER_RULES[target]  # type: ignore[index]
    if target in TABLE:
        return TABLE[target]  # type: ignore[index]
    if isinstance(target, OpOverload) and torch.Tag.pointwise in target.tags:
        return POINTWISE
    return None


@cache
def warn_kept_whole(name: str) -> None:
    logger.warning("no rule for %s: kept whole on every device (add one with @autopar.op_rule)", name)
