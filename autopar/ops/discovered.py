"""Rows for ops that nobody wrote one for: what was found by trying, as a rule for one node and as a line for people.

What is found depends on the op's code and on the kind of call only, never on time, device or process. So a plan lists the
rows that it uses, and where it is carried out the same rows are found again, or it is refused.
"""

from __future__ import annotations

import itertools
import logging
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial

import torch

from autopar.ir.program import Size
from autopar.ops.discover import Finding, discover
from autopar.ops.factors import Dims, Factor, quotient
from autopar.ops.rule import REDUCED, WHOLE, OpRule, Shape, Signature
from autopar.ops.small import CallForm, Unsuited, form_of, small_calls
from autopar.ops.tables import KEPT_WHOLE
from autopar.ops.trial import Loop

logger = logging.getLogger("autopar")


def found_for(node: torch.fx.Node) -> Finding:
    """What was found for the call of a node, or why it was not tried."""
    try:
        return of_form(form_of(node))
    except Unsuited as error:
        return Finding(reason=str(error))


@cache
def of_form(form: CallForm) -> Finding:
    return discover(small_calls(form))


@cache
def rule_from(finding: Finding) -> OpRule:
    """The row that a finding makes: for all calls of its kind, whatever their sizes."""
    if not finding.found:
        return KEPT_WHOLE
    contracts = any(loop.reduced and sum(d is not None for d in loop.operands) > 1 for loop in finding.loops)
    return OpRule(
        kind="matmul" if contracts else "norm",
        fit=partial(fit, finding),
        linear=finding.linear,
        shape_argument=finding.spelled,
    )


def warn_kept_whole(node: torch.fx.Node, reason: str) -> None:
    source = node.meta.get("source", "")
    path = node.meta.get("path", "")
    place = f"{node.name}{f' in {path}' if path else ''}{f' ({source})' if source else ''}"
    warn_once(
        f"{node.target} at {place} is kept whole on every device: {reason}. If it can be cut, say along what with "
        "@autopar.op_rule (docs/rules.md)"
    )


@cache
def warn_once(message: str) -> None:
    logger.warning(message)


def letters() -> Iterator[Factor]:
    for length in itertools.count(1):
        yield from map("".join, itertools.product(string.ascii_lowercase, repeat=length))


@dataclass
class Naming:
    """Factors of one call, named by letters in order of appearance. A loop of which one tensor has more elements than another
    (flattened dims) is the outer factor of a dim whose inner one is whole."""

    operands: Sequence[Shape | None]
    results: Sequence[Shape]
    names: Iterator[Factor] = field(default_factory=letters)
    sizes: dict[Factor, Size] = field(default_factory=dict)
    whole: set[Factor] = field(default_factory=set)
    loops: dict[Loop, Factor | None] = field(default_factory=dict)

    def dims(self, shape: Shape, loops: Mapping[int, Loop]) -> Dims:
        """Of a tensor, some of whose dims have loops."""
        return tuple(self.dim(size, loops.get(d)) for d, size in enumerate(shape))

    def dim(self, size: Size, loop: Loop | None) -> tuple[Factor, ...]:
        outer = None if loop is None else self.factor(loop)
        rest = size if outer is None else quotient(size, self.sizes[outer])
        assert rest is not None, "size_of_loop divides all dims of the loop"
        found = () if outer is None else (outer,)
        return found if rest == 1 else (*found, self.inner(rest))

    def factor(self, loop: Loop) -> Factor | None:
        """None for a loop that these shapes do not have: its dims stay whole."""
        if loop not in self.loops:
            size = size_of_loop(loop, self.operands, self.results)
            self.loops[loop] = None if size is None else self.new(size)
        return self.loops[loop]

    def inner(self, size: Size) -> Factor:
        self.whole.add(name := self.new(size))
        return name

    def new(self, size: Size) -> Factor:
        name = next(self.names)
        self.sizes[name] = size
        return name


def fit(finding: Finding, node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """The loops of a finding as factors of these shapes; dims without a loop are whole."""
    naming = Naming(operands, results)

    def dims(shape: Shape, places: Callable[[Loop], int | None]) -> Dims:
        return naming.dims(shape, {d: loop for loop in finding.loops if (d := places(loop)) is not None})

    ins = [None if s is None else dims(s, lambda loop, i=i: loop.operands[i]) for i, s in enumerate(operands)]  # type: ignore[misc]
    outs = [dims(s, lambda loop, j=j: loop.results[j]) for j, s in enumerate(results)]  # type: ignore[misc]
    reduced = {factor for loop, factor in naming.loops.items() if factor is not None and loop.reduced}
    marks = {f: frozenset({WHOLE} if f in naming.whole else {REDUCED} if f in reduced else set()) for f in naming.sizes}
    return Signature(operands=tuple(ins), results=tuple(outs), sizes=naming.sizes, marks=marks)


def size_of_loop(loop: Loop, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Size | None:
    """The size that divides all its dims; None if there is none, or its dims in operands differ."""
    ins = [s[d] for s, d in zip(operands, loop.operands, strict=True) if s is not None and d is not None]
    outs = [s[d] for s, d in zip(results, loop.results, strict=True) if d is not None]
    if any(n != ins[0] for n in ins):
        return None
    fitting = [n for n in (*ins, *outs) if n != 1 and all(quotient(m, n) is not None for m in (*ins, *outs))]
    return fitting[0] if fitting else None


def row_text(finding: Finding, signature: Signature) -> str:
    """As "a b, c b -> a c", in the notation of `autopar.ops.rule`, with dims of several factors in brackets.

    >>> dims = Signature(operands=((("a",), ("b",)), None), results=((("a",),),), sizes={"a": 4, "b": 2},
    ...     marks={"a": frozenset(), "b": frozenset({REDUCED})})
    >>> row_text(Finding(linear=True), dims)
    'a b, - -> a; linear'
    """

    def tensor(dims: Dims | None) -> str:
        if dims is None:
            return "-"
        words = [[f"{f}{'!' if WHOLE in signature.marks[f] else ''}" for f in dim] for dim in dims]
        return " ".join(w[0] if len(w) == 1 else f"({' '.join(w)})" if w else "1" for w in words) or "()"

    sides = [", ".join(map(tensor, side)) for side in (signature.operands, signature.results)]
    in_results = {f for dims in signature.results for dim in dims for f in dim}
    summed = [f for f, marks in signature.marks.items() if REDUCED in marks and f in in_results]
    notes = [f"{f} also summed" for f in summed] + ["linear"] * finding.linear
    notes += [f"argument {finding.spelled} is a shape"] * (finding.spelled is not None)
    return "; ".join([" -> ".join(sides).strip(), *notes])
