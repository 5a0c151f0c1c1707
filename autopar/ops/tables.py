"""The table: one row per op. Pointwise ops need none: torch's own tag makes their rule.

Rows are ordered by family. See `autopar.ops.rule` for the notation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

import torch

from autopar.ir.experts import EXPERTS
from autopar.ops import fits
from autopar.ops.factors import Factor
from autopar.ops.fits import argument
from autopar.ops.rule import OpRule, Shape, Signature, fit_text, parse, tensor_operands
from autopar.torch_private import OpOverload

logger = logging.getLogger("autopar")
aten = torch.ops.aten

Target = Callable[..., Any] | str
"""What a node calls."""
Op = TypeVar("Op", bound=Callable[..., Any])


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


def given_shapes(operands: Sequence[Shape | None]) -> list[Shape]:
    """The shapes of the operands that are there."""
    return [shape for shape in operands if shape is not None]


def sdpa(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """Attention over [batch, heads, queries, dim]; each piece of the queries needs all keys, and under `is_causal` its place.

    With `enable_gqa` a head of the keys serves as many heads of the queries as there are more of them, one after the other.
    """
    query_shape, key_shape, _, *masks = given_shapes(operands)
    if len(query_shape) != 4:
        return fits.all_whole(node, operands, results)
    sharded = {"q": "causal_attention"} if argument(node, "is_causal", False) else {}
    mask_dims = {0: "", 2: ", q k!", 3: ", h q k!", 4: ", b h q k!"}
    mask = mask_dims[len(masks[0]) if masks else 0]
    if not argument(node, "enable_gqa", False) or query_shape[1] == key_shape[1]:
        return fit_text(f"b h q d!, b h k! d!, b h k! e!{mask} -> b h q e!", operands, results, sharded)
    if masks:
        return fits.all_whole(node, operands, results)
    shapes = [(s[0], key_shape[1], s[1] // key_shape[1], *s[2:]) for s in (query_shape, results[0])]
    base = fit_text("b g r q d!, b g k! d!, b g k! e! -> b g r q e!", [shapes[0], *operands[1:3]], [shapes[1]], sharded)
    joined = [(dims[0], dims[1] + dims[2], *dims[3:]) for dims in (base.operands[0] or (), base.results[0])]
    return Signature(operands=(joined[0], *base.operands[1:]), results=(joined[1],), sizes=base.sizes, marks=base.marks)


def cross_entropy(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """Class indices over [tokens, vocab] logits, summed or averaged, without class weights; anything else stays whole."""
    reduces = argument(node, "reduction", 1) in (1, 2)
    if [len(shape) for shape in given_shapes(operands)] != [2, 1] or len(operands) != 2 or not reduces:
        return fits.all_whole(node, operands, results)
    sharded = {"t": "cross_entropy", "v": "cross_entropy"}
    return fit_text("t v, t ->", operands, results, sharded, frozenset({"v"}))


def layer_norm(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    if len(argument(node, "normalized_shape")) != 1:
        return fits.last_whole(node, operands, results)
    return fit_text("b* h, h, h -> b* h", operands, results, {"h": "layer_norm"})


def rms_norm(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    if len(argument(node, "normalized_shape")) != 1:
        return fits.last_whole(node, operands, results)
    return fit_text("b* h, h -> b* h", operands, results, {"h": "rms_norm"})


def addmm(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    bias = "n" if len(operands[0] or ()) == 1 else "t n"
    return fit_text(f"{bias}, t k, k n -> t n", operands, results, {"k": "addmm"})


def embedding(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """Gradients that are divided by how often a row was read need all reads, and all rows, in one place."""
    if argument(node, "scale_grad_by_freq", False) or argument(node, "sparse", False):
        return fit_text("v! h, b*! -> b*! h", operands, results)
    return fit_text("v h, b* -> b* h", operands, results, {"v": "embedding"})


def convolution(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """Groups tie output channels to input channels: then both stay whole."""
    image, kernel, out = {3: ("x!", "i!", "y!"), 4: ("x! u!", "i! j!", "y! v!")}[len(results[0])]
    text = f"b c! {image}, o c! {kernel}, o -> b o {out}"
    if argument(node, "groups", 1) != 1:
        text = f"b c! {image}, o! g! {kernel}, o! -> b o! {out}"
    return fit_text(text, operands, results)


def experts(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """A mixture of experts: tokens are alike, experts and their hidden dim are summed over."""
    up = "e g! n i!" if len(operands[3] or ()) == 4 else "e n i!"
    return fit_text(f"b* i!, b* c!, b* c!, {up}, e o! n -> b* o!", operands, results, {"e": "experts"})


TABLE: dict[Target, OpRule] = {
    # matrix products
    aten.linear.default: OpRule(kind="matmul", text="b* k, n k, n -> b* n", sharded={"k": "linear"}),
    aten.addmm.default: OpRule(kind="matmul", fit=addmm),
    aten.mm.default: OpRule(kind="matmul", text="m k, k n -> m n"),
    aten.bmm.default: OpRule(kind="matmul", text="b m k, b k n -> b m n"),
    aten.matmul.default: OpRule(kind="matmul", fit=fits.matmul),
    aten.scaled_dot_product_attention.default: OpRule(kind="attention", fit=sdpa),
    aten.conv1d.default: OpRule(kind="matmul", fit=convolution),
    aten.conv2d.default: OpRule(kind="matmul", fit=convolution),
    EXPERTS: OpRule(kind="matmul", fit=experts),
    # embeddings, norms, losses
    aten.embedding.default: OpRule(kind="embedding", fit=embedding),
    aten.layer_norm.default: OpRule(kind="norm", fit=layer_norm, shape_argument=1),
    aten.rms_norm.default: OpRule(kind="norm", fit=rms_norm, shape_argument=1),
    aten.cross_entropy_loss.default: OpRule(kind="loss", fit=cross_entropy),
    # softmax family and scans
    aten.softmax.int: OpRule(kind="norm", fit=fits.elementwise_whole("dim")),
    aten._softmax.default: OpRule(kind="norm", fit=fits.elementwise_whole("dim")),
    aten.log_softmax.int: OpRule(kind="norm", fit=fits.elementwise_whole("dim")),
    aten._log_softmax.default: OpRule(kind="norm", fit=fits.elementwise_whole("dim")),
    aten.cumsum.default: OpRule(kind="norm", fit=fits.elementwise_whole("dim")),
    aten.topk.default: OpRule(kind="norm", fit=fits.along("dim")),
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
    aten.expand.default: OpRule(kind="pointwise", fit=fits.elementwise, linear=True, shape_argument=1),
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
    # random numbers: each element's is a function of its place, so dropout is linear in what it is applied to
    aten.dropout.default: OpRule(kind="pointwise", fit=fits.elementwise, linear=True, random=True),
    aten.bernoulli.p: OpRule(kind="pointwise", fit=fits.factory, random=True),
    aten.uniform.default: OpRule(kind="pointwise", fit=fits.factory, random=True),
    aten.normal_functional.default: OpRule(kind="pointwise", fit=fits.factory, random=True),
    aten.exponential.default: OpRule(kind="pointwise", fit=fits.factory, random=True),
    aten.rand_like.default: OpRule(kind="pointwise", fit=fits.factory, random=True),
    aten.randn_like.default: OpRule(kind="pointwise", fit=fits.factory, random=True),
    aten.randint_like.default: OpRule(kind="pointwise", fit=fits.factory, random=True),
    aten.randint_like.low_dtype: OpRule(kind="pointwise", fit=fits.factory, random=True),
    aten.rand.default: OpRule(kind="pointwise", fit=fits.factory, shape_argument=0, random=True),
    aten.randn.default: OpRule(kind="pointwise", fit=fits.factory, shape_argument=0, random=True),
    aten.normal.float_float: OpRule(kind="pointwise", fit=fits.factory, shape_argument=2, random=True),
    aten.randint.default: OpRule(kind="pointwise", fit=fits.factory, shape_argument=1, random=True),
    aten.randint.low: OpRule(kind="pointwise", fit=fits.factory, shape_argument=2, random=True),
    aten.randperm.default: OpRule(kind="whole", fit=fits.all_whole, random=True),
    # factories
    aten.arange.start_step: OpRule(kind="whole", fit=fits.all_whole),
    aten.arange.start: OpRule(kind="whole", fit=fits.all_whole),
    aten.arange.default: OpRule(kind="whole", fit=fits.all_whole),
    aten.full.default: OpRule(kind="pointwise", fit=fits.factory, shape_argument=0),
    aten.zeros.default: OpRule(kind="pointwise", fit=fits.factory, shape_argument=0),
    aten.ones.default: OpRule(kind="pointwise", fit=fits.factory, shape_argument=0),
    aten.scalar_tensor.default: OpRule(kind="pointwise", fit=fits.factory),
    aten.full_like.default: OpRule(kind="pointwise", fit=fits.elementwise),
    # writing into a part
    aten.slice_scatter.default: OpRule(kind="pointwise", fit=fits.along("dim")),
    # kept whole, knowingly: position lookups of masks and token types, small and without gradient
    aten.index.Tensor: OpRule(kind="whole", fit=fits.all_whole),
    aten.gather.default: OpRule(kind="whole", fit=fits.all_whole),
}

POINTWISE = OpRule(kind="pointwise", fit=fits.elementwise)
KEPT_WHOLE = OpRule(kind="whole", fit=fits.all_whole)
USER_RULES: dict[Target, OpRule] = {}


def op_rule(text: str, *, kind: str = "matmul", sharded: dict[Factor, str] | None = None) -> Callable[[Op], Op]:
    """Decorator: give a custom op (a `torch.library.custom_op`, or an OpOverload such as `torch.ops.mine.experts.default`)
    a row of the rule table, in the notation of `autopar.ops.rule`; it replaces the row that the op had, if any.

    `kind` groups the op with others for composing and for the known plans; `sharded` names, per factor, the implementation
    that runs where it is cut. Returns the op unchanged; raises ValueError if the row is malformed.

    >>> @torch.library.custom_op("docs::experts", mutates_args=())
    ... def experts(tokens: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    ...     return torch.einsum("tk,ekn->tn", tokens, weight)
    >>> _ = op_rule("t k, e k n -> t n")(experts)
    >>> rule_for(torch.ops.docs.experts.default).text
    't k, e k n -> t n'
    """
    parse(text)
    rule = OpRule(kind=kind, text=text, sharded=sharded or {})

    def register(op: Op) -> Op:
        USER_RULES[getattr(op, "_opoverload", op)] = rule
        return op

    return register


def rule_for(target: Target) -> OpRule | None:
    """The row of an op; None for an op that nobody wrote one for."""
    if target in USER_RULES:
        return USER_RULES[target]
    if target in TABLE:
        return TABLE[target]
    if isinstance(target, OpOverload) and torch.Tag.pointwise in target.tags:
        return POINTWISE
    return None


@cache
def warn_kept_whole(name: str) -> None:
    logger.warning("no rule for %s: kept whole on every device (add one with @autopar.op_rule)", name)
