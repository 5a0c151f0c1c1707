"""What integer and boolean tensors are, for all sizes at once: positions, comparisons of them, and what is alike everywhere.

Positions are affine in the index, comparisons of them are half-planes of indices, and `&` intersects these. What is not of
this kind (an input, say) is unknown, and so is what is made from it, except where it does not matter. Nothing is run.
Of floating tensors only zeros are known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node

from autopar.tracer.affine import Affine, Known, Unknown, Where, is_zero, simplified, truth_of
from autopar.tracer.clean import shape_of

aten = torch.ops.aten


class Knowledge:
    """What is known of nodes, worked out once each."""

    def __init__(self) -> None:
        self.done: dict[Node, Known | None] = {}

    def of(self, node: Node) -> Known | None:
        """None where nothing is known."""
        todo = [node]
        while todo:
            last = todo[-1]
            missing = [n for n in last.all_input_nodes if n not in self.done and isinstance(n.meta.get("val"), torch.Tensor)]
            if last in self.done or not missing:
                todo.pop()
                if last not in self.done:
                    self.done[last] = self.computed(last)
            else:
                todo += missing
        return self.done[node]

    def computed(self, node: Node) -> Known | None:
        rule = RULES.get(node.target)
        if rule is None or node.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor):
            return None
        dtype = node.meta["val"].dtype
        if dtype not in (torch.bool, torch.int32, torch.int64) and not dtype.is_floating_point:
            return None
        try:
            found = simplified(rule(self, node), shape_of(node.meta["val"]))
        except Unknown:
            return None
        return found if not dtype.is_floating_point or is_zero(found) else None

    def integers(self, value: Any) -> Affine:
        found = number(value) if not isinstance(value, Node) else self.of(value)
        if not isinstance(found, Affine):
            raise Unknown
        return found

    def flags(self, value: Any) -> Where:
        found = self.of(value) if isinstance(value, Node) else None
        if not isinstance(found, Where):
            raise Unknown
        return found


def number(value: Any) -> Affine:
    if isinstance(value, bool) or not isinstance(value, int):
        raise Unknown
    return Affine(value, ())


def always(node: Node, truth: bool) -> Where:
    rank = len(shape_of(node.meta["val"]))
    return Where(rank, frozenset() if truth else frozenset({Affine(-1, (0,) * rank)}))


def filled(node: Node, value: Any) -> Known:
    """A tensor of one number or flag."""
    rank = len(shape_of(node.meta["val"]))
    if node.meta["val"].dtype is torch.bool:
        if not isinstance(value, bool | int):
            raise Unknown
        return always(node, bool(value))
    if not isinstance(value, bool | int) and value != 0.0:
        raise Unknown
    return Affine(int(value), (0,) * rank)


def arange(_: Knowledge, node: Node) -> Known:
    start, step = {aten.arange.default: (0, 1)}.get(node.target, (node.args[0], *node.args[2:3], 1)[:2])  # type: ignore[call-overload]
    return Affine(number(start).constant, (number(step).constant,))


def sum_of(known: Knowledge, node: Node) -> Known:
    left, right = node.args
    return known.integers(left) + known.integers(right) * alpha(node)


def difference(known: Knowledge, node: Node) -> Known:
    left, right = node.args
    return known.integers(left) + known.integers(right) * -alpha(node)


def alpha(node: Node) -> int:
    return number(node.kwargs.get("alpha", 1)).constant


def product(known: Knowledge, node: Node) -> Known:
    left, right = (known.integers(a) for a in node.args)
    if right.is_constant:
        return (left + Affine(0, right.slopes)) * right.constant
    if left.is_constant:
        return (right + Affine(0, left.slopes)) * left.constant
    raise Unknown


def compared(make: Callable[[Affine, Affine], Sequence[Affine]]) -> Callable[[Knowledge, Node], Known]:
    """Of two integer tensors, or one and a number: the forms that are at least 0 where the comparison holds."""

    def rule(known: Knowledge, node: Node) -> Known:
        left, right = (known.integers(a) for a in node.args)
        forms = make(left, right)
        return Where(max(len(form.slopes) for form in forms), frozenset(forms))

    return rule


def less(left: Affine, right: Affine) -> Sequence[Affine]:
    return [right + left * -1 + Affine(-1, ())]


def at_most(left: Affine, right: Affine) -> Sequence[Affine]:
    return [right + left * -1]


def equal(known: Knowledge, node: Node) -> Known:
    left, right = (known.integers(a) for a in node.args)
    apart = left + right * -1
    low, high = apart.bounds(shape_of(node.meta["val"]))
    if low == high == 0 or low > 0 or high < 0:
        return always(node, low == high == 0)
    raise Unknown


def unequal(known: Knowledge, node: Node) -> Known:
    found = equal(known, node)
    assert isinstance(found, Where)
    return always(node, not truth_of(found))


def both(known: Knowledge, node: Node) -> Known:
    """`a & b`; where one is false everywhere, the other does not matter."""
    sides = [known.of(a) if isinstance(a, Node) else None for a in node.args]
    if any(
        isinstance(side, Where) and side.forms and not any(any(f.slopes) or f.constant >= 0 for f in side.forms)
        for side in sides
    ):
        return always(node, False)
    left, right = (known.flags(a) for a in node.args)
    return Where(max(left.rank, right.rank), left.forms | right.forms)


def either(known: Knowledge, node: Node) -> Known:
    """`a | b` where one is the same everywhere."""
    for one, other in (node.args, node.args[::-1]):
        side = known.of(one) if isinstance(one, Node) else None
        if isinstance(side, Where) and all(form.is_constant for form in side.forms):
            return always(node, True) if truth_of(side) else known.flags(other)
    raise Unknown


def opposite(known: Knowledge, node: Node) -> Known:
    found = known.flags(node.args[0])
    if not found.forms:
        return always(node, False)
    if len(found.forms) > 1:
        raise Unknown
    (form,) = found.forms
    return Where(found.rank, frozenset({form * -1 + Affine(-1, ())}))


def cast(known: Knowledge, node: Node) -> Known:
    """Among integers, and between flags and integers where all are alike."""
    source = node.args[0]
    found = known.of(source) if isinstance(source, Node) else None
    if found is None:
        raise Unknown
    to_flags = node.meta["val"].dtype is torch.bool
    if isinstance(found, Where):
        return found if to_flags else filled(node, int(truth_of(found)))
    if to_flags and not found.is_constant:
        raise Unknown
    return always(node, found.constant != 0) if to_flags else found


def moved(known: Knowledge, node: Node, change: Callable[[tuple[int, ...]], tuple[int, ...]], shift: Any = None) -> Known:
    """Dims come and go, or the index is shifted: `shift` gives what a form's constant grows by."""
    source = node.args[0]
    found = known.of(source) if isinstance(source, Node) else None
    if found is None:
        raise Unknown

    def one(form: Affine) -> Affine:
        return Affine(form.constant + (shift(form.slopes) if shift else 0), change(form.slopes))

    if isinstance(found, Affine):
        return one(found)
    return Where(len(change((0,) * found.rank)), frozenset(map(one, found.forms)))


def unsqueeze(known: Knowledge, node: Node) -> Known:
    rank = len(shape_of(node.meta["val"]))
    dim = number(node.args[1]).constant % rank
    return moved(known, node, lambda slopes: (*slopes[:dim], 0, *slopes[dim:]))


def ones_moved(known: Knowledge, node: Node) -> Known:
    """A reshape in which only dims of size one come and go."""
    before, after = shape_of(node.args[0].meta["val"]), shape_of(node.meta["val"])  # type: ignore[union-attr]
    if [n for n in before if n != 1] != [n for n in after if n != 1]:
        raise Unknown

    def change(slopes: tuple[int, ...]) -> tuple[int, ...]:
        rest = iter([s for s, n in zip(slopes, before, strict=True) if n != 1])
        return tuple(0 if n == 1 else next(rest) for n in after)

    return moved(known, node, change)


def expand(known: Knowledge, node: Node) -> Known:
    rank = len(shape_of(node.meta["val"]))
    return moved(known, node, lambda slopes: (0,) * (rank - len(slopes)) + slopes)


def slice_(known: Knowledge, node: Node) -> Known:
    source = shape_of(node.args[0].meta["val"])  # type: ignore[union-attr]
    given: list[Any] = [*node.args[1:], *(0, 0, None, 1)[len(node.args) - 1 :]]
    dim, start, _, step = given
    dim, start, step = (number(0 if value is None else value).constant for value in (dim, start, step))
    dim %= len(source)
    if start < 0:
        if not isinstance(source[dim], int):
            raise Unknown
        start = max(start + source[dim], 0)
    return moved(known, node, lambda s: (*s[:dim], s[dim] * step, *s[dim + 1 :]), shift=lambda s: s[dim] * start)


def select(known: Knowledge, node: Node) -> Known:
    source = shape_of(node.args[0].meta["val"])  # type: ignore[union-attr]
    dim, at = (number(a).constant for a in node.args[1:])
    dim %= len(source)
    if at < 0 and not isinstance(source[dim], int):
        raise Unknown
    at = at + source[dim] if at < 0 else at
    return moved(known, node, lambda s: (*s[:dim], *s[dim + 1 :]), shift=lambda s: s[dim] * at)


def joined(known: Knowledge, node: Node) -> Known:
    """`cat` of pieces of one affine tensor."""
    pieces: Any = node.args[0]
    dim = number((*node.args[1:], 0)[0]).constant
    shapes = [shape_of(p.meta["val"]) for p in pieces]
    if len({len(shape) for shape in shapes}) > 1:
        raise Unknown
    dim %= len(shapes[0])
    forms = [known.integers(p) for p in pieces]
    offsets = [0]
    for shape in shapes[:-1]:
        if not isinstance(shape[dim], int):
            raise Unknown
        offsets.append(offsets[-1] + shape[dim])
    slopes = {form.slopes[dim] for form, shape in zip(forms, shapes, strict=True) if shape[dim] != 1}
    if not slopes and len(forms) > 1:
        slopes = {forms[1].constant - forms[0].constant}
    if len(slopes) > 1:
        raise Unknown
    slope = next(iter(slopes), 0)
    along = (*forms[0].slopes[:dim], slope, *forms[0].slopes[dim + 1 :])
    whole = Affine(forms[0].constant, along)
    for form, shape, offset in zip(forms, shapes, offsets, strict=True):
        expected = tuple(0 if d == dim and shape[d] == 1 else s for d, s in enumerate(along))
        if form != Affine(whole.constant + slope * offset, expected):
            raise Unknown
    return whole


def cumsum(known: Knowledge, node: Node) -> Known:
    source = node.args[0]
    found = known.of(source) if isinstance(source, Node) else None
    if isinstance(found, Where):
        found = Affine(int(truth_of(found)), (0,) * found.rank)
    if found is None or not found.is_constant:
        raise Unknown
    dim = number(node.args[1]).constant % len(found.slopes)
    return Affine(found.constant, tuple(found.constant if d == dim else 0 for d in range(len(found.slopes))))


def looked_up(known: Knowledge, node: Node) -> Known:
    """`source[i, j]` where all of the source is alike, or where it and all its indices are affine."""
    source, positions = node.args
    found = known.of(source) if isinstance(source, Node) else None
    if isinstance(found, Where):
        return always(node, truth_of(found))
    if found is None:
        raise Unknown
    if found.is_constant:
        return filled(node, found.constant)
    if not isinstance(positions, list | tuple) or len(positions) != len(found.slopes) or None in positions:
        raise Unknown
    total = Affine(found.constant, ())
    for slope, position in zip(found.slopes, positions, strict=True):
        if slope:
            at = known.integers(position)
            if at.bounds(shape_of(position.meta["val"]))[0] < 0:
                raise Unknown
            total = total + at * slope
    return total


def where(known: Knowledge, node: Node) -> Known:
    """One of both where the condition is the same everywhere."""
    condition, *branches = node.args
    chosen = branches[0] if truth_of(known.flags(condition)) else branches[1]
    found = known.of(chosen) if isinstance(chosen, Node) else None
    if found is None:
        raise Unknown
    return found


def fixed(position: int) -> Callable[[Knowledge, Node], Known]:
    """Filled with the argument at the position."""
    return lambda _, node: filled(node, node.args[position])


def constant(value: int) -> Callable[[Knowledge, Node], Known]:
    return lambda _, node: filled(node, value)


def same(known: Knowledge, node: Node) -> Known:
    return moved(known, node, lambda slopes: slopes)


RULES: Mapping[Any, Callable[[Knowledge, Node], Known]] = {
    aten.arange.default: arange,
    aten.arange.start: arange,
    aten.arange.start_step: arange,
    aten.full.default: fixed(1),
    aten.full_like.default: fixed(1),
    aten.scalar_tensor.default: fixed(0),
    aten.ones.default: constant(1),
    aten.zeros.default: constant(0),
    aten.ones_like.default: constant(1),
    aten.zeros_like.default: constant(0),
    aten.add.Tensor: sum_of,
    aten.sub.Tensor: difference,
    aten.mul.Tensor: product,
    aten.le.Tensor: compared(at_most),
    aten.le.Scalar: compared(at_most),
    aten.lt.Tensor: compared(less),
    aten.lt.Scalar: compared(less),
    aten.ge.Tensor: compared(lambda a, b: at_most(b, a)),
    aten.ge.Scalar: compared(lambda a, b: at_most(b, a)),
    aten.gt.Tensor: compared(lambda a, b: less(b, a)),
    aten.gt.Scalar: compared(lambda a, b: less(b, a)),
    aten.eq.Tensor: equal,
    aten.eq.Scalar: equal,
    aten.ne.Tensor: unequal,
    aten.ne.Scalar: unequal,
    aten.bitwise_and.Tensor: both,
    aten.logical_and.default: both,
    aten.bitwise_or.Tensor: either,
    aten.logical_or.default: either,
    aten.bitwise_not.default: opposite,
    aten.logical_not.default: opposite,
    aten._to_copy.default: cast,
    aten.unsqueeze.default: unsqueeze,
    aten.reshape.default: ones_moved,
    aten.squeeze.dim: ones_moved,
    aten.squeeze.dims: ones_moved,
    aten.expand.default: expand,
    aten.slice.Tensor: slice_,
    aten.select.int: select,
    aten.cat.default: joined,
    aten.where.self: where,
    aten.cumsum.default: cumsum,
    aten.index.Tensor: looked_up,
    aten.clone.default: same,
    aten.contiguous.default: same,
    aten.detach.default: same,
    aten.alias.default: same,
}
"""Op -> what its result is, from what its operands are; raises Unknown."""
