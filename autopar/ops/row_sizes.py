"""What a row tells about the sizes of a call: of its factors, of the results, and how much is computed."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from autopar.ir.program import Size
from autopar.ops.factors import Factor
from autopar.ops.rule import malformed, name_dims, parse, sizes_of


def product_flops(text: str, shapes: Sequence[Sequence[Size] | None]) -> Any:
    """Of the operands multiplied one after the other, as in an einsum; a factor is summed over as soon as no later operand
    and no result has it. Costs are products of sizes: the products of most factors count, all like those that are most
    frequent, or first.

    >>> product_flops("b k, n k, m n -> b m", [(2, 3), (5, 3), (3, 5)]) == 2 * (2 * 3 * 5) + 2 * (2 * 5 * 3)
    True
    """
    operands, results, _ = parse(text)
    there = [set(words) - {"1"} for words, shape in zip(operands, shapes, strict=False) if shape is not None]
    left, products = there[0] if there else set(), []
    for i, operand in enumerate(there[1:], 1):
        products.append(left | operand)
        left = (left | operand) & set().union(*there[i + 1 :], *results)
    most = max(map(len, products), default=0)
    largest = Counter(frozenset(factors) for factors in products if len(factors) == most)
    if not largest:
        return 0
    sizes = factor_sizes(text, shapes)
    ((frequent, _),) = largest.most_common(1)
    bases = {word.rstrip("*") if word.endswith("*") else word for word in frequent}
    counted = [n for name, n in sizes.items() if name in bases or name.rstrip("0123456789") in bases]
    return 2 * largest.total() * math.prod(counted)


def factor_sizes(text: str, shapes: Sequence[Sequence[Size] | None]) -> dict[Factor, Size]:
    """Of all factors of the operands, those of size 1 too; raises RuleError if the shapes do not fit."""
    called = [f"operand {i}" for i in range(len(shapes))]
    given = [None if shape is None else tuple(shape) for shape in shapes]
    named = [
        None if shape is None else name_dims(words, shape, text, what)
        for words, shape, what in zip(parse(text)[0], given, called, strict=False)
    ]
    ones = {name: 1 for names in named for name in names or () if name is not None}
    return ones | sizes_of(text, named, given, called)


def empty_results(text: str, tensors: Sequence[int], shape: Callable[..., Any] | None, *given: Any) -> tuple[Tensor, ...]:
    """Results without data: of the shapes that the user's function says, or that follow from those of the operands."""
    operands = [given[i] for i in tensors]
    there = [x for x in operands if isinstance(x, Tensor)]
    like = next((x for x in there if x.is_floating_point()), there[0])
    if shape is None:
        sizes = factor_sizes(text, [None if x is None else x.shape for x in operands])
        return tuple(like.new_empty(result_shape(words, sizes)) for words in parse(text)[1])
    said = shape(*given)
    several = isinstance(said, tuple | list) and bool(said) and isinstance(said[0], Tensor | tuple | list)
    return tuple(x if isinstance(x, Tensor) else like.new_empty(tuple(x)) for x in (said if several else (said,)))


def result_shape(words: tuple[str, ...], sizes: Mapping[Factor, Size]) -> list[Any]:
    """The shape of a result, from the sizes of the factors."""
    found: list[Any] = []
    for word in words:
        if word.endswith("*"):
            numbered = [name for name in sizes if re.fullmatch(rf"{word[:-1]}\d+", name)]
            found += [sizes[name] for name in sorted(numbered, key=lambda name: int(name[len(word) - 1 :]))]
        else:
            found.append(1 if word == "1" else sizes[word])
    return found


def require_known_results(text: str) -> None:
    """Raise RuleError, with a mark, for a factor of a result that no operand has: its size is not known."""
    operands, results, _ = parse(text)
    known = {word for tensor in operands for word in tensor} | {"1"}
    for word in (word for tensor in results for word in tensor):
        if word not in known:
            at = text.index(word, text.index("->"))
            raise malformed(
                text, at, f"no operand has {word}: say the shapes of the results, op_rule(..., shape=lambda x, ...: [...])"
            )
