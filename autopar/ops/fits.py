"""Rules whose dims depend on an op's attributes: broadcasting, dim arguments, reshapes.

Each function fits one node and returns its Signature. Factors of a result are named d0, d1, ... by its dims.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from autopar.ir.program import Size
from autopar.ops.factors import CannotUnify, Dims, Factor, Space
from autopar.ops.rule import INVARIANT, REDUCED, WHOLE, Fit, Shape, Signature
from autopar.torch_private import OpOverload


def signature(
    operands: Sequence[Dims | None],
    results: Sequence[Dims],
    sizes: Mapping[Factor, Size],
    whole: Iterable[Factor] = (),
    sharded: Mapping[Factor, str] | None = None,
) -> Signature:
    produced = {factor for result in results for dim in result for factor in dim}
    uncut, own = set(whole), {f: f"sharded:{name}:{f}" for f, name in (sharded or {}).items()}
    first = {f: WHOLE if f in uncut else "" if f in produced else REDUCED for f in sizes}
    marks = {f: frozenset(filter(None, (mark, own.get(f)))) for f, mark in first.items()}
    return Signature(operands=tuple(operands), results=tuple(results), sizes=sizes, marks=marks)


def argument(node: torch.fx.Node, name: str, default: Any = None) -> Any:
    """The value of an argument of an ATen op by its schema name: as the node gives it, or the schema's own default."""
    assert isinstance(node.target, OpOverload), f"{node.target} has no schema"
    for i, declared in enumerate(node.target._schema.arguments):
        if declared.name == name:
            if i < len(node.args):
                return node.args[i]
            return node.kwargs.get(name, declared.default_value if declared.has_default_value() else default)
    return default


def dim_list(value: int | Sequence[int] | None, rank: int) -> list[int]:
    """A dim, a list of dims or None (all) as non-negative ints."""
    if value is None or value == []:
        return list(range(rank))
    dims = [value] if isinstance(value, int) else value
    return [d % rank for d in dims] if rank else []


def named(shape: Shape, letter: str = "d") -> tuple[Dims, dict[Factor, Size]]:
    dims = tuple((f"{letter}{i}",) if n != 1 else () for i, n in enumerate(shape))
    return dims, {f"{letter}{i}": n for i, n in enumerate(shape) if n != 1}


def elementwise(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """Operands broadcast against the result, dims aligned from the right."""
    out, sizes = named(results[0])

    def aligned(shape: Shape | None) -> Dims | None:
        if shape is None:
            return None
        offset = len(results[0]) - len(shape)
        return tuple(out[offset + i] if n == results[0][offset + i] else () for i, n in enumerate(shape))

    return signature([aligned(s) for s in operands], [out] * len(results), sizes)


def elementwise_whole(*names: str) -> Fit:
    """Elementwise but for the dims that the named arguments give: those stay whole (softmax, cumsum, sort, flip)."""

    def fit(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
        base = elementwise(node, operands, results)
        rank = len(results[0])
        dims = [d for name in names for d in dim_list(argument(node, name), rank)]
        return signature(base.operands, base.results, dict(base.sizes), whole=[f"d{d}" for d in dims])

    return fit


def last_whole(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """Norms over several trailing dims: these stay whole."""
    base = elementwise(node, operands, results)
    rank, count = len(results[0]), len(argument(node, "normalized_shape"))
    return signature(base.operands, base.results, dict(base.sizes), whole=[f"d{d}" for d in range(rank - count, rank)])


def along(name: str, default: int = 0) -> Fit:
    """Results differ from operands in one dim only, which stays whole (slice, select, split, cat, gather, index_select)."""

    def fit(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
        first = next(s for s in operands if s is not None)
        drops = len(results[0]) < len(first)
        rank = max(len(first), len(results[0]))
        dim = dim_list(argument(node, name, default), rank)[0]
        sizes: dict[Factor, Size] = {}

        def dims_of(shape: Shape, tag: str, dropped: bool) -> Dims:
            found: list[tuple[Factor, ...]] = []
            for i, n in enumerate(shape):
                position = i + 1 if dropped and i >= dim else i
                factor = f"{tag}{position}" if position == dim else f"d{position}"
                if n != 1:
                    sizes[factor] = n
                found.append((factor,) if n != 1 else ())
            return tuple(found)

        ins = [None if s is None else dims_of(s, f"i{j}_", False) for j, s in enumerate(operands)]
        outs = [dims_of(s, f"o{j}_", drops) for j, s in enumerate(results)]
        return signature(ins, outs, sizes, whole=[f for f in sizes if not f.startswith("d")])

    return fit


def padded(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """constant_pad_nd: dims that are padded stay whole, also where [1, -1] shifts them and leaves their size."""
    base = changed_whole(node, operands, results)
    pads: Sequence[int] = argument(node, "pad")
    rank = len(results[0])
    shifted = {f"d{rank - 1 - i // 2}" for i, n in enumerate(pads) if n != 0}
    whole = shifted | {f for f, marks in base.marks.items() if WHOLE in marks}
    return signature(base.operands, base.results, dict(base.sizes), whole=whole)


def changed_whole(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """Same rank; dims whose size changes stay whole, the others correspond."""
    out, sizes = named(results[0])
    first = operands[0] or ()
    whole = {f"d{i}" for i, (a, b) in enumerate(zip(first, results[0], strict=True)) if a != b}
    ins: list[Dims | None] = []
    dims: list[tuple[Factor, ...]] = []
    for i, (a, b) in enumerate(zip(first, results[0], strict=True)):
        if a == b:
            dims.append(out[i])
        else:
            sizes[f"i{i}"] = a
            whole.add(f"i{i}")
            dims.append((f"i{i}",) if a != 1 else ())
    ins.append(tuple(dims))
    return signature(ins, [out], {f: n for f, n in sizes.items() if n != 1}, whole=whole)


def reduction(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """sum, mean over `dim` (default: all)."""
    shape = operands[0] or ()
    dims = dim_list(argument(node, "dim"), len(shape))
    keep = bool(argument(node, "keepdim", False))
    ins, sizes = named(shape)
    out = tuple(() if i in dims else ins[i] for i in range(len(shape)) if keep or i not in dims)
    return signature([ins], [out], sizes)


def mean(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    return averaged(reduction(node, operands, results))


def averaged(base: Signature) -> Signature:
    """Of a mean in place of a sum: a device's own mean is divided by the number of devices."""
    marks = {f: m | {f"sharded:mean:{f}"} if REDUCED in m else m for f, m in base.marks.items()}
    return replace(base, marks=marks)


def reduced_inside(name: str) -> Fit:
    """Reductions whose parts are no sums, by an implementation that reduces them itself (maxima, variances, norms)."""

    def fit(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
        base = reduction(node, operands, [results[0]])
        inside = {f: frozenset({INVARIANT, f"sharded:{name}:{f}"}) if REDUCED in m else m for f, m in base.marks.items()}
        return replace(base, results=base.results * len(results), marks=inside)

    return fit


def reduction_whole(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """Reductions whose partial results are no sums (amax, var, norm, argmax): the reduced dims stay whole."""
    base = reduction(node, operands, [results[0]])
    whole = [f for f, m in base.marks.items() if REDUCED in m]
    return signature(base.operands, list(base.results) * len(results), dict(base.sizes), whole=whole)


def regrouped(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """reshape: the same loops in the same order, cut into other dims; whole where they do not match."""
    space = Space()
    ins = tuple((space.new(f"i{i}", n),) if n != 1 else () for i, n in enumerate(operands[0] or ()))
    outs = tuple((space.new(f"d{i}", n),) if n != 1 else () for i, n in enumerate(results[0]))
    try:
        space.unify([f for d in ins for f in d], [f for d in outs for f in d])
    except CannotUnify:
        return all_whole(node, operands, results)
    return signature([space.resolve(ins)], [space.resolve(outs)], dict(space.sizes))


def permuted(order: Callable[[torch.fx.Node, int], Sequence[int]]) -> Fit:
    def fit(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
        ins, sizes = named(operands[0] or ())
        return signature([ins], [tuple(ins[d] for d in order(node, len(ins)))], sizes)

    return fit


def permute_order(node: torch.fx.Node, rank: int) -> Sequence[int]:
    return [d % rank for d in argument(node, "dims")]


def transpose_order(node: torch.fx.Node, rank: int) -> Sequence[int]:
    order = list(range(rank))
    a, b = (argument(node, "dim0"), argument(node, "dim1")) if node.target is torch.ops.aten.transpose.int else (0, rank - 1)
    a, b = a % max(rank, 1), b % max(rank, 1)
    if rank > 1:
        order[a], order[b] = order[b], order[a]
    return order


def ones_moved(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """squeeze, unsqueeze: dims of size one come and go."""
    ins, sizes = named(operands[0] or ())
    kept = [d for d in ins if d]
    outs, rest = [], iter(kept)
    for n in results[0]:
        outs.append(next(rest) if n != 1 else ())
    return signature([ins], [tuple(outs)], sizes)


def factory(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """full, zeros, ones: every element alike, so any dim may be cut. Random numbers too, also those in the shape of a tensor,
    which nobody reads."""
    out, sizes = named(results[0])
    return signature([None] * len(operands), [out], sizes)


def matmul(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """aten.matmul with broadcast batch dims; a vector has the summed dim alone."""
    a, b = operands[0] or (), operands[1] or ()
    rows, columns = len(a) > 1, len(b) > 1
    out, sizes = named(results[0])
    batch_rank = len(out) - rows - columns

    def batch(shape: Shape) -> list[tuple[Factor, ...]]:
        return [out[batch_rank - len(shape[:-2]) + i] if n != 1 else () for i, n in enumerate(shape[:-2])]

    k = ("k",) if a[-1] != 1 else ()
    left = (*batch(a), out[batch_rank], k) if rows else (k,)
    right = (*batch(b), k, out[-1]) if columns else (k,)
    return signature([left, right], [out], sizes | ({"k": a[-1]} if k else {}))


def all_whole(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """Nothing may be cut: what an op without a row gets."""
    sizes: dict[Factor, Size] = {}

    def fresh(shape: Shape | None, tag: str) -> Dims | None:
        if shape is None:
            return None
        dims, found = named(shape, tag)
        sizes.update(found)
        return dims

    ins = [fresh(s, f"i{j}_") for j, s in enumerate(operands)]
    outs = [fresh(s, f"o{j}_") or () for j, s in enumerate(results)]
    return signature(ins, outs, sizes, whole=list(sizes))
