"""One rule type for all ops: an einsum-like row says which dims of operands and results are the same loop.

    "b* k, n k, n -> b* n"      linear: b* any number of dims, k only in operands (reduced), n in the result (parallel)
    "b* h!, h -> b* h"          h! is whole: never sharded
    "v h, b* -> b* h"           embedding

A factor that is in a result is *parallel*; one that is only in operands is *reduced*: its shards hold partial sums.
`sharded` names factors for which the op on local shapes is not the op itself, and the implementation that is to run
instead (of `autopar.ops.sharded`); factors in `invariant` are reduced inside that implementation, so that the result is I.
`exchanged` names factors that one axis may cut together with such a factor: their pieces travel to its pieces and back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from autopar.errors import RuleError
from autopar.ir.program import Size
from autopar.ops.factors import Dims, Factor
from autopar.torch_private import OpOverload

WHOLE, REDUCED, INVARIANT, EVEN = "whole", "reduced", "invariant", "even"
"""Marks of factors. Even: some op that has the factor takes no padding, so it is cut into equal pieces only."""
BY_PLACE = frozenset(
    [
        *("embedding", "embedding_bag", "causal_attention", "experts", "index", "index_rows", "index_select", "gather"),
        *("scatter", "index_put"),
        *("max_at", "min_at", "argmax", "argmin"),
    ]
)
"""Sharded implementations that know a device's rows by which piece it has: pieces must lie one after another."""

Shape = tuple[Size, ...]


@dataclass(frozen=True, kw_only=True)
class Signature:
    """A rule fitted to the shapes of one node. `operands` aligns with `tensor_operands(node)`; None where none is given."""

    operands: tuple[Dims | None, ...]
    results: tuple[Dims, ...]
    sizes: Mapping[Factor, Size]
    marks: Mapping[Factor, frozenset[str]]


Fit = Callable[[torch.fx.Node, Sequence[Shape | None], Sequence[Shape]], Signature]
"""Fits a row to one node: from the node and the shapes of its operands and results."""


@dataclass(frozen=True, kw_only=True)
class OpRule:
    """A row of a table. Either `text`, or `fit` for rows whose dims depend on the op's attributes.

    `kind` groups rows for composing and for the baselines: matmul, attention, norm, embedding, loss, reduction, view,
    pointwise, whole. `linear`: partial sums pass through. `random`: two runs differ. `shape_argument`: position of the
    argument that spells out the result's shape (or its last dims), to be made local. `counts`: arguments that say how large
    factors are together ("groups": "g"), to be made local. `sharded`: factor -> implementation.
    `version` is another one when code behind a user's row is.
    `ragged`: factors whose last piece may be padded: what lies in the padding never reaches what does not, and gradients that
    come in with zeros there go out with zeros there.
    `exchanged`: factor (or "b*") -> that of `sharded` to whose pieces its own travel where an axis cuts both.
    """

    kind: str
    text: str = ""
    fit: Fit | None = None
    linear: Callable[[torch.fx.Node], bool] | bool = False
    random: bool = False
    shape_argument: int | None = None
    counts: Mapping[str, str] = field(default_factory=dict)
    sharded: Mapping[Factor, str] = field(default_factory=dict)
    invariant: frozenset[Factor] = frozenset()
    version: str = ""
    exchanged: Mapping[Factor, Factor] = field(default_factory=dict)
    ragged: frozenset[Factor] = frozenset()

    def tolerates(self, node: torch.fx.Node, factor: Factor, marks: Iterable[str]) -> bool:
        """Whether the factor, so marked, may be cut unevenly, as far as this node goes: it is in `ragged`, or the op is a view
        or pointwise and linear, and runs as it is."""
        if factor in self.ragged:
            return True
        plain = not any(mark.startswith("sharded:") for mark in marks)
        return plain and self.kind in ("view", "pointwise") and not self.random and self.is_linear(node)

    def is_linear(self, node: torch.fx.Node) -> bool:
        return self.linear(node) if callable(self.linear) else self.linear

    def signature(self, node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
        """Raises ValueError if the shapes do not fit the row."""
        if self.fit is not None:
            return self.fit(node, operands, results)
        return fit_text(self.text, operands, results, self.sharded, self.invariant, self.exchanged)


Target = Callable[..., Any] | str
"""What a node calls."""
Rows = dict[Target, OpRule]


NOTATION = "small letters, then * for any number of dims, then ! for whole; or 1 for a dim without a factor"


@cache
def parse(text: str) -> tuple[tuple[tuple[str, ...], ...], tuple[tuple[str, ...], ...], frozenset[str]]:
    """Operand tokens, result tokens, whole factors. Raises RuleError on a malformed row, with a mark under the character."""
    arrows = [m.start() for m in re.finditer("->", text)]
    if len(arrows) != 1:
        raise malformed(
            text, arrows[1] if arrows else len(text), "more than one '->'" if arrows else "no '->' before the results"
        )
    whole: set[str] = set()
    sides: list[tuple[tuple[str, ...], ...]] = []
    for position, side in ((0, text[: arrows[0]]), (arrows[0] + 2, text[arrows[0] + 2 :])):
        tensors = []
        for tensor in side.split(","):
            tensors.append(tokens(text, position, tensor, whole))
            position += len(tensor) + 1
        sides.append(tuple(tensors))
    return sides[0], sides[1], frozenset(whole)


def tokens(text: str, start: int, tensor: str, whole: set[str]) -> tuple[str, ...]:
    """The dims of one tensor, which is written in the row from `start` on; what is marked whole is added there."""
    found: list[str] = []
    for word in re.finditer(r"\S+", tensor):
        at = start + word.start()
        good = re.match(r"(?:[a-z]+[*]?!?|1)?", word.group())
        assert good is not None
        if good.end() < len(word.group()):
            raise malformed(text, at + good.end(), f"{word.group()!r} is no factor ({NOTATION})")
        if word.group().endswith("!"):
            whole.add(word.group()[:-1])
        name = word.group().rstrip("!")
        if name in found and name != "1":
            raise malformed(text, at, f"a tensor names each factor once, this one {name} twice")
        if name.endswith("*") and any(other.endswith("*") for other in found):
            raise malformed(text, at, "a tensor has one factor with * at most")
        found.append(name)
    return tuple(found)


def malformed(text: str, at: int, what: str) -> RuleError:
    """The error that shows the row with a caret under a character."""
    return RuleError(f"rule {text!r}: {what}\n    {text}\n    {' ' * at}^")


def fit_text(
    text: str,
    operands: Sequence[Shape | None],
    results: Sequence[Shape],
    sharded: Mapping[Factor, str] | None = None,
    invariant: frozenset[Factor] = frozenset(),
    exchanged: Mapping[Factor, Factor] | None = None,
) -> Signature:
    """Raises RuleError where the shapes do not fit the row: which tensor, or which factor of two sizes."""
    operand_words, result_words, whole = parse(text)
    if len(operands) > len(operand_words) or len(results) != len(result_words):
        raise RuleError(
            f"rule {text!r} is of {len(operand_words)} operands and {len(result_words)} results, and does not fit "
            f"{len(operands)} operands and {len(results)} results"
        )
    called = [f"operand {i}" for i in range(len(operand_words))] + [f"result {i}" for i in range(len(results))]
    pairs = [
        (w, s) for w, s in zip((*operand_words, *result_words), (*pad(operands, len(operand_words)), *results), strict=True)
    ]
    named = [
        None if shape is None else name_dims(words, shape, text, what)
        for (words, shape), what in zip(pairs, called, strict=True)
    ]
    sizes = sizes_of(text, named, [shape for _, shape in pairs], called)
    dims = [
        None if names is None else tuple((n,) if n and s != 1 else () for n, s in zip(names, shape or (), strict=True))
        for names, (_, shape) in zip(named, pairs, strict=True)
    ]
    split = len(operand_words)
    ins, outs = tuple(dims[:split])[: len(operands)], tuple(d for d in dims[split:] if d is not None)
    in_results = {factor for result in outs for dim in result for factor in dim}
    marks: dict[Factor, frozenset[str]] = {}
    for factor in sizes:
        base = re.sub(r"\d+$", "*", factor) if re.sub(r"\d+$", "", factor) != factor else factor
        found = {WHOLE} if {factor, base} & whole else set()
        if not found and factor not in in_results:
            found.add(INVARIANT if factor in invariant else REDUCED)
        if sharded and factor in sharded:
            found.add(f"sharded:{sharded[factor]}:{factor}")
        for goes, comes in (exchanged or {}).items():
            ways = {"goes": goes, "comes": comes}
            found |= {f"{way}:{(sharded or {})[comes]}:+{comes}" for way, f in ways.items() if f in (factor, base)}
        marks[factor] = frozenset(found)
    return Signature(operands=ins, results=outs, sizes=sizes, marks=marks)


def sizes_of(
    text: str, named: Sequence[list[str | None] | None], shapes: Sequence[Shape | None], called: Sequence[str]
) -> dict[Factor, Size]:
    """The size of each factor, of those that are not 1 everywhere; raises RuleError if two dims of one factor differ."""
    sizes: dict[Factor, Size] = {}
    first: dict[Factor, tuple[Size, int, int]] = {}

    def told(size: Size, dim: int, tensor: int) -> str:
        return f"{size} in dim {dim} of {called[tensor]} {shape_text(shapes[tensor] or ())}"

    for i, (names, shape) in enumerate(zip(named, shapes, strict=True)):
        for dim, (name, size) in enumerate(zip(names or (), shape or (), strict=True)):
            if name is not None and size != 1 and sizes.setdefault(name, size) != size:
                raise RuleError(f"rule {text!r}: factor {name} is {told(*first[name])}, but {told(size, dim, i)}")
            if name is not None and size != 1:
                first.setdefault(name, (size, dim, i))
    return sizes


def shape_text(shape: Shape) -> str:
    return f"[{', '.join(map(str, shape))}]"


def pad(operands: Sequence[Shape | None], count: int) -> list[Shape | None]:
    return [*operands, *[None] * (count - len(operands))]


def name_dims(words: tuple[str, ...], shape: Shape, text: str, what: str = "a tensor") -> list[str | None]:
    """Factor names of a tensor's dims; `b*` becomes b0, b1, ..., counted from the left."""
    fixed = sum(not word.endswith("*") for word in words)
    extra = len(shape) - fixed
    if extra < 0 or (extra and fixed == len(words)):
        wanted = " ".join(words) or "no dims"
        raise RuleError(f"rule {text!r} does not fit {what} of shape {shape_text(shape)}: it has {wanted} there")
    names: list[str | None] = []
    for word in words:
        if word.endswith("*"):
            names += [f"{word[:-1]}{i}" for i in range(extra)]
        else:
            names.append(None if word == "1" else word)
    return names


def tensor_operands(node: torch.fx.Node) -> list[torch.fx.Node | None]:
    """The tensors that a node reads, in schema order; None for an optional one left out, or a number in its place."""
    if not isinstance(node.target, OpOverload):
        return [a for a in node.args if isinstance(a, torch.fx.Node)]
    found: list[torch.fx.Node | None] = []
    for i, argument in enumerate(node.target._schema.arguments):
        given = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)
        if "Tensor" not in str(argument.type):
            continue
        if isinstance(given, list | tuple):
            found += [a if isinstance(a, torch.fx.Node) else None for a in given]
        else:
            found.append(given if isinstance(given, torch.fx.Node) else None)
    while found and found[-1] is None:
        found.pop()
    return found


def given_shapes(operands: Sequence[Shape | None]) -> list[Shape]:
    """The shapes of the operands that are there."""
    return [shape for shape in operands if shape is not None]
