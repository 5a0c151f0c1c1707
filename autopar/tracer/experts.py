"""Mixtures of experts become one op: from tokens and their choice of experts to the weighted sum of what these return.

What is traced of them sorts rows by expert, multiplies group by group (`grouped_mm`), weights the rows, puts them back and
adds up a token's rows. `autopar.ir.experts` says why that is one op in a Program. The router before it works token by token,
on tokens that the model has flattened to [batch * seq, hidden]; it is written on [batch, seq, hidden] again, so that batch
and sequence can be cut each for itself. What does not look like this exactly stays as it is.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from autopar.ir.activations import CLAMPED
from autopar.ir.experts import EXPERTS
from autopar.torch_private import OpOverload
from autopar.tracer.clean import shape_of

aten = torch.ops.aten

GROUPED = ("aten._grouped_mm.default", "transformers.grouped_mm_fallback.default")
LAST_DIM = frozenset(
    {aten.softmax.int, aten.log_softmax.int, aten._softmax.default, aten.topk.default, aten.sum.dim_IntList, aten.amax.default}
)
"""Of the ops that work along a dim those that routers use along the experts."""


class Unlike(Exception):
    """The nodes are not those of a mixture of experts."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """The nodes that matter: x [tokens, k], index and scale [tokens, choices], the weights as they rest and whether they are
    transposed (the contracted dim first), biases as they rest; `last` is the weighted sum."""

    x: Node
    index: Node
    scale: Node
    up: Node
    up_transposed: bool
    up_bias: Node | None
    inner: Inner
    down: Node
    down_transposed: bool
    down_bias: Node | None
    last: Node


@dataclass(frozen=True, kw_only=True)
class Inner:
    """What stands between the products: an `activation` (`autopar.ir.activations`) of `wide`, the first product with its bias.
    A gate is the first half of this, or, interleaved, every other number of it."""

    activation: str
    wide: Node
    gated: bool = False
    interleaved: bool = False


def whole_experts(graph: Graph) -> None:
    """Replace every mixture of experts; in place."""
    for node in list(graph.nodes):
        if str(node.target) in GROUPED:
            try:
                found = find(node)
            except Unlike:
                continue
            replace(graph, found)


def find(second: Node) -> Found:
    """The mixture whose second product this is; raises Unlike."""
    middle, down, offsets = product(second)
    inner = activated(middle)
    first, up_bias = unbiased(inner.wide)
    rows, up, same = product(first)
    need(same is offsets)
    x, (chosen,) = indexed(rows)
    order, choices = call(chosen, aten.div.Tensor_mode, aten.floor_divide.default)[:2]
    need(chosen.kwargs.get("rounding_mode", "floor") == "floor")
    sort = one_of(order, 1, aten.sort.default)
    unsorted, *ascending = call(sort, aten.sort.default)
    need(ascending in ([], [-1], [0], [-1, False], [0, False]) and not sort.kwargs)
    index = flattened(unsorted)
    need(shape_of(index.meta["val"]) == (shape_of(x.meta["val"])[0], choices))
    ends(offsets, sort, experts=shape_of(down.meta["val"])[0])
    out = only_user(second) if only_user(second).target is aten.add.Tensor else second
    down_bias = unbiased(out)[1]
    weighted = only_user(out)
    per_row = next(a for a in call(weighted, aten.mul.Tensor) if a is not out)
    scale, (reordered,) = indexed(call(per_row, aten.unsqueeze.default)[0])
    need(reordered is order and call(per_row, aten.unsqueeze.default)[1] in (-1, 1))
    restored = only_user(weighted)
    source, (back,) = indexed(restored)
    need(source is weighted and inverse_of(back) is order)
    last = only_user(only_user(restored))
    need(call(last, aten.sum.dim_IntList)[1:] == ([1],))
    need(shape_of(only_user(restored).meta["val"])[:2] == shape_of(index.meta["val"]))
    (up, up_transposed), (down, down_transposed) = weight(up), weight(down)
    need(all(rows is None or one_of(rows[1], 0, aten.sort.default) is sort for rows in (up_bias, down_bias)))
    return Found(
        x=x,
        index=index,
        scale=flattened(scale),
        up=up,
        up_transposed=up_transposed,
        up_bias=up_bias and up_bias[0],
        inner=inner,
        down=down,
        down_transposed=down_transposed,
        down_bias=down_bias and down_bias[0],
        last=last,
    )


def need(condition: bool) -> None:
    if not condition:
        raise Unlike


def call(node: Any, *targets: Any) -> tuple[Any, ...]:
    """The arguments of a call of one of the targets."""
    need(isinstance(node, Node) and node.op == "call_function" and node.target in targets)
    return tuple(node.args)


def only_user(node: Node) -> Node:
    need(len(node.users) == 1)
    return next(iter(node.users))


def product(node: Node) -> tuple[Node, Node, Node]:
    """Rows, weight and ends of groups of a grouped product, without bias."""
    need(isinstance(node, Node) and str(node.target) in GROUPED)
    given: dict[str, Any] = dict(zip(("rows", "weight", "offs", "bias", "out_dtype"), node.args, strict=False))
    given |= node.kwargs
    need(given.get("bias") is None and given.get("out_dtype") is None)
    rows, other, offsets = given["rows"], given["weight"], given["offs"]
    need(len(shape_of(rows.meta["val"])) == 2 and len(shape_of(other.meta["val"])) == 3)
    return rows, other, offsets


def weight(node: Node) -> tuple[Node, bool]:
    """What the model keeps of a weight [experts, in, out]: itself (True), or one with the other order of dims."""
    if node.target is aten.permute.default and list(node.args[1]) == [0, 2, 1]:  # type: ignore[arg-type]
        return node.args[0], False  # type: ignore[return-value]
    if node.target is aten.transpose.int and {d % 3 for d in node.args[1:]} == {1, 2}:  # type: ignore[operator]
        return node.args[0], False  # type: ignore[return-value]
    return node, True


def unbiased(node: Node) -> tuple[Node, tuple[Node, Node] | None]:
    """A product, and, of a bias that was added to it, the biases of all experts and the experts of the rows."""
    if node.target is not aten.add.Tensor:
        return node, None
    rows = node.args[1]
    need(len(node.args) == 2 and not node.kwargs and isinstance(rows, Node) and isinstance(node.args[0], Node))
    bias, (experts,) = indexed(rows)  # type: ignore[arg-type]
    need(len(shape_of(bias.meta["val"])) == 2)
    return node.args[0], (bias, experts)  # type: ignore[return-value]


def activated(inner: Node) -> Inner:
    """Of act(wide), act(first half) * second half, or the gate of GPT-OSS."""
    if inner.target is not aten.mul.Tensor:
        return Inner(activation=activation(inner), wide=inner.args[0])  # type: ignore[arg-type]
    left, right = call(inner, aten.mul.Tensor)
    if aten.add.Tensor in (getattr(left, "target", None), getattr(right, "target", None)):
        return clamped(left, right)
    act, value = (left, right) if left.target is not operator.getitem else (right, left)
    halves = one_of(value, 1, aten.split_with_sizes.default, aten.split.Tensor)
    need(isinstance(act, Node) and bool(act.args) and one_of(act.args[0], 0, halves.target) is halves)
    given: list[Any] = list(halves.args)
    whole, sizes, *dim = given
    width = shape_of(whole.meta["val"])[1]
    need((*dim, 0)[0] in (-1, 1) and sizes in (width // 2, [width // 2] * 2))
    return Inner(activation=activation(act), wide=whole, gated=True)


def clamped(left: Any, right: Any) -> Inner:
    """(v + 1) * (g * sigmoid(g * A)) with g = clamp(even numbers, max=L) and v = clamp(odd numbers, -L, L)."""
    plus, glu = (left, right) if left.target is aten.add.Tensor else (right, left)
    value, one = call(plus, aten.add.Tensor)
    gate, sigmoid = call(glu, aten.mul.Tensor)
    low, alpha = call(call(sigmoid, aten.sigmoid.default)[0], aten.mul.Tensor)
    (evens, *bounds), (odds, *both) = call(gate, aten.clamp.default), call(value, aten.clamp.default)
    need(low is gate and one == 1 and isinstance(alpha, float) and len(bounds) == 2 and bounds[0] is None)
    limit = bounds[1]
    need(isinstance(limit, int | float) and both == [-limit, limit])
    (wide, *even), (same, *odd) = call(evens, aten.slice.Tensor), call(odds, aten.slice.Tensor)
    last_dim = shape_of(wide.meta["val"])[1]
    need(same is wide and [n if n < last_dim else None for n in even + odd] == [1, 0, None, 2, 1, 1, None, 2])
    return Inner(activation=f"{CLAMPED}{alpha}:{float(limit)}", wide=wide, gated=True, interleaved=True)


def activation(node: Node) -> str:
    """Its name in `autopar.ir.activations.ACTIVATIONS`."""
    options = {**dict(zip(("approximate",), node.args[1:], strict=False)), **node.kwargs}
    name = {aten.silu.default: "silu", aten.relu.default: "relu", aten.gelu.default: "gelu"}.get(node.target)  # type: ignore[call-overload]
    if name == "gelu":
        name = {"none": "gelu", "tanh": "gelu_tanh"}[str(options.pop("approximate", "none"))]
    need(name is not None and not options and isinstance(node.args[0], Node))
    return str(name)


def indexed(node: Node) -> tuple[Node, list[Node]]:
    """What is indexed along its first dim, and by what."""
    source, positions = call(node, aten.index.Tensor)
    need(len(positions) == 1 and positions[0] is not None)
    return source, list(positions)


def one_of(node: Any, position: int, *targets: Any) -> Node:
    """The op with several results of which this is the one at `position`."""
    source, at = call(node, operator.getitem)
    need(at == position and source.target in targets)
    return source  # type: ignore[no-any-return]


def flattened(node: Node) -> Node:
    """What a reshape to one dim reads."""
    source, _ = call(node, aten.reshape.default)
    need(len(shape_of(node.meta["val"])) == 1 and len(shape_of(source.meta["val"])) == 2)
    return source  # type: ignore[no-any-return]


def ends(offsets: Node, sort: Node, experts: Any) -> None:
    """Raise Unlike unless `offsets` are where each expert's rows end among the sorted."""
    counts, dim = call(offsets, aten.cumsum.default)[:2]
    ids, bins, low, high = call(counts, aten.histc.default)
    ids = ids.args[0] if ids.target is aten._to_copy.default else ids
    need(one_of(ids, 0, aten.sort.default) is sort)
    need(dim in (0, -1) and (bins, low, high) == (experts, 0, experts - 1))


def inverse_of(node: Node) -> Node:
    """The permutation whose inverse was written into a tensor that was empty (`clean` fills those with zeros)."""
    empty, positions, numbers = call(node, aten.index_put.default)[:3]
    need(str(empty.target).startswith(("aten.empty", "aten.zeros")) and len(positions) == 1 and not node.args[3:])
    bounds = call(numbers, aten.arange.start_step, aten.arange.default, aten.arange.start)
    need(len(bounds) == 1 or bounds[0] == 0)
    need(shape_of(numbers.meta["val"]) == shape_of(node.meta["val"]) == shape_of(positions[0].meta["val"]))
    return positions[0]  # type: ignore[no-any-return]


def replace(graph: Graph, found: Found) -> None:
    """Write the op in the place of the weighted sum; what it makes superfluous is dropped with all that is dead."""
    tokens = Unflattened(graph, found.x)
    try:
        x, index, scale = (tokens.of(node) for node in (found.x, found.index, found.scale))
    except Unlike:
        x, index, scale = found.x, found.index, found.scale
    else:
        tokens.settle()
    with graph.inserting_before(found.last):
        weights = weights_of(graph, found)
        biases = biases_of(graph, found)
        cast = only_cast(found.last)
        value = (cast or found.last).meta["val"]
        options: dict[str, Any] = {**biases} if cast is None else {**biases, "dtype": value.dtype}
        lead = list(x.meta["val"].shape[:-1])
        args = x, index, scale, *weights, found.inner.activation
        result = made(graph, EXPERTS, args, value.new_empty([*lead, value.shape[-1]]), found.last)
        result.kwargs = options
        flat = (
            result if len(lead) == 1 else made(graph, aten.reshape.default, (result, [-1, value.shape[-1]]), value, found.last)
        )
    (cast or found.last).replace_all_uses_with(flat)
    for user in list(flat.users):
        if user.target is aten.reshape.default and shape_of(user.meta["val"]) == shape_of(result.meta["val"]):
            user.replace_all_uses_with(result)


def weights_of(graph: Graph, found: Found) -> tuple[Node, Node]:
    """Up [experts, n, k], or with a gate [experts, 2, n, k], and down [experts, o, n]."""
    up, down = found.up, found.down
    if found.down_transposed:
        down = permuted(graph, down, [0, 2, 1])
    if found.inner.interleaved:
        if not found.up_transposed:
            return permuted(graph, split(graph, up, 1, found.last, last=2), [0, 2, 1, 3]), down
        return permuted(graph, split(graph, up, 2, found.last, last=2), [0, 3, 2, 1]), down
    if found.up_transposed:
        up = permuted(graph, up, [0, 2, 1])
    return split(graph, up, 1, found.last) if found.inner.gated else up, down


def biases_of(graph: Graph, found: Found) -> dict[str, Node]:
    """Those that there are, by the names of the op's arguments."""
    biases = {}
    if found.up_bias is not None:
        bias = found.up_bias
        if found.inner.interleaved:
            bias = permuted(graph, split(graph, bias, 1, found.last, last=2), [0, 2, 1])
        elif found.inner.gated:
            bias = split(graph, bias, 1, found.last)
        biases["up_bias"] = bias
    return biases if found.down_bias is None else {**biases, "down_bias": found.down_bias}


def split(graph: Graph, node: Node, dim: int, like: Node, *, last: int = 0) -> Node:
    """The dim as two: of 2 and the rest, or of the rest and `last`."""
    shape = list(node.meta["val"].shape)
    shape[dim : dim + 1] = [shape[dim] // last, last] if last else [2, shape[dim] // 2]
    return made(graph, aten.reshape.default, (node, shape), node.meta["val"].new_empty(shape), like)


def permuted(graph: Graph, node: Node, dims: list[int]) -> Node:
    value = node.meta["val"]
    return made(graph, aten.permute.default, (node, dims), value.new_empty([value.shape[d] for d in dims]))


def only_cast(node: Node) -> Node | None:
    """The cast between floating dtypes that alone reads the node."""
    users = list(node.users)
    if len(users) == 1 and users[0].target is aten._to_copy.default and users[0].meta["val"].is_floating_point():
        return users[0]
    return None


def made(graph: Graph, target: Callable[..., Any], args: tuple[Any, ...], value: Any, like: Node | None = None) -> Node:
    """A new node that stands where `like` stands in the model."""
    node = graph.call_function(target, args)
    meta = (like or next(a for a in args if isinstance(a, Node))).meta
    node.meta = {**meta, "val": value}
    return node


class Unflattened:
    """Nodes on flattened tokens [batch * seq, ...] written again on [batch, seq, ...], as far as they work token by token."""

    def __init__(self, graph: Graph, x: Node) -> None:
        self.graph = graph
        self.flat = shape_of(x.meta["val"])[0]
        self.again: dict[Node, Node] = {}
        if x.target is aten.reshape.default:
            source = x.args[0]
            assert isinstance(source, Node)
            lead, ours = shape_of(source.meta["val"]), shape_of(x.meta["val"])
            if len(lead) > 2 and lead[-1] == ours[-1]:
                self.lead = list(source.meta["val"].shape[:-1])
                self.again[x] = source

    def of(self, node: Node) -> Node:
        """The node on tokens that are not flattened; raises Unlike if it mixes tokens."""
        if node not in self.again:
            need(bool(self.again) and node.op == "call_function" and self.is_row_by_row(node))
            args: Any = torch.fx.node.map_arg(node.args, lambda n: self.of(n) if self.is_flat(n) else n)
            args = self.last_dim(node, list(args)) if node.target in LAST_DIM else args
            with self.graph.inserting_before(node):
                copy = self.graph.call_function(node.target, tuple(args), dict(node.kwargs))  # type: ignore[arg-type]
            copy.meta = {**node.meta, "val": self.value(node.meta["val"])}
            self.again[node] = copy
        return self.again[node]

    def is_flat(self, node: Node) -> bool:
        value = node.meta["val"]
        first = value[0] if isinstance(value, tuple | list) else value
        return isinstance(first, torch.Tensor) and first.dim() == 2 and shape_of(first)[0] == self.flat

    def is_row_by_row(self, node: Node) -> bool:
        if node.target is operator.getitem:
            return True
        read = list(node.all_input_nodes)
        if node.target is aten.linear.default:
            return [n for n in read if self.is_flat(n)] == [node.args[0]]
        if node.target in LAST_DIM:
            return len(read) == 1 and self.is_flat(node) and self.dims(node) in ([-1], [1])
        pointwise = isinstance(node.target, OpOverload) and torch.Tag.pointwise in node.target.tags
        cast = node.target is aten._to_copy.default
        small = all(self.is_flat(n) or n.meta["val"].dim() < 2 for n in read)
        return (pointwise or cast) and small and any(map(self.is_flat, read))

    def dims(self, node: Node) -> list[Any]:
        position = 2 if node.target is aten.topk.default else 1
        given = node.args[position] if len(node.args) > position else node.kwargs.get("dim", -1)
        return list(given) if isinstance(given, tuple | list) else [given]

    def last_dim(self, node: Node, args: list[Any]) -> list[Any]:
        """The arguments with the last dim counted from the end."""
        position = 2 if node.target is aten.topk.default else 1
        if len(args) > position:
            args[position] = [-1] if isinstance(args[position], tuple | list) else -1
        return args

    def value(self, value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(self.value(v) for v in value)
        return value.new_empty([*self.lead, *value.shape[1:]])

    def settle(self) -> None:
        """Whoever else reads the flattened nodes reads them flattened from the new ones."""
        for old, new in list(self.again.items()):
            if old.target is aten.reshape.default or isinstance(old.meta["val"], tuple | list):
                continue
            with self.graph.inserting_before(old):
                flat = made(self.graph, aten.reshape.default, (new, [-1, *old.meta["val"].shape[1:]]), old.meta["val"], old)
            old.replace_all_uses_with(flat)
