"""Conditions that only guard a `raise`: what a tensor in one has to be for the code to go on.

"if labels.max() >= vocab_size: raise" and "assert (lengths > 0).all()" say what the model is for. A trace is of what it does
then, so such checks are taken to pass.
"""

from __future__ import annotations

import ast
import linecache
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import islice
from types import FrameType

Span = tuple[int | None, int | None, int | None, int | None]
"""First and last line of an expression, its first column and the one behind it (bytes, as Python counts them)."""


def passing(frame: FrameType) -> bool | None:
    """The truth of what the frame is asking for its truth, if that is part of such a check; None if it is anything else."""
    at = frame.f_lasti // 2
    spans = list(islice(frame.f_code.co_positions(), max(at - 1, 0), at + 1))  # what was computed, and the jump that asks
    found = checks(frame.f_code.co_filename)
    return next((found[span] for span in reversed(spans) if span in found), None)


@cache
def checks(file: str) -> Mapping[Span, bool]:
    """Where a file asks for a truth in order to raise, and the truth with which it goes on."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return {}
    return {span: truth for node in ast.walk(tree) for test, passes in guarded(node) for span, truth in parts(test, passes)}


def guarded(node: ast.AST) -> Iterator[tuple[ast.expr, bool]]:
    """The condition of an `assert`, or of an `if` that does nothing but raise; and the truth with which it passes."""
    if isinstance(node, ast.Assert):
        yield node.test, True
    elif isinstance(node, ast.If) and isinstance(node.body[-1], ast.Raise) and all(map(_is_message, node.body[:-1])):
        yield node.test, False


def _is_message(statement: ast.stmt) -> bool:
    """Whether it may well put together what the error says, and changes nothing else."""
    return isinstance(statement, ast.Assign)


def parts(test: ast.expr, truth: bool) -> Iterator[tuple[Span, bool]]:
    """Through `not`, `and` and `or` to what is asked for its truth. If each of them is as it should be, so is the whole."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        yield from parts(test.operand, not truth)
    elif isinstance(test, ast.BoolOp):
        for part in test.values:
            yield from parts(part, truth)
    else:
        yield (test.lineno, test.end_lineno, test.col_offset, test.end_col_offset), truth
