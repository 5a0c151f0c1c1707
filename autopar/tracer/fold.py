"""Equal segments become calls of one region.

Two segments are equal if their texts are: ops, arguments by relative number, constants, the dtype, shape and gradient of
every value, the kind of all state, and which nodes leave. The text is the proof; names and module paths are not part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.fx import Node

from autopar.ir.layout import drawn_order
from autopar.torch_private import size_of
from autopar.tracer.capture import Captured
from autopar.tracer.checkpoints import groups
from autopar.tracer.clean import shape_of
from autopar.tracer.segments import Segment, compute_nodes, is_size, segments

CHECKPOINTS = "checkpoints "
"""How the line of the text begins that says which nodes the model's code runs under a checkpoint."""
SMALL = 32
"""Up to so many nodes, neighbours that nothing equals are one region: fewer regions, fewer boundaries to plan."""


@dataclass(frozen=True)
class Part:
    """A segment with what enters and leaves it, each in order of first use."""

    segment: Segment
    inputs: tuple[Node, ...]
    state: tuple[str, ...]
    outputs: tuple[Node, ...]
    text: str

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        return self.segment.nodes


def fold(captured: Captured) -> list[Part]:
    """Cut the graph so that what repeats becomes parts of equal text; in execution order."""
    nodes = compute_nodes(captured.graph)
    parts = Parts(captured)
    cut = _merged(_deepened(_completed(segments(nodes), parts), parts), parts)
    return [parts[segment] for segment in cut]


class Parts(dict[Segment, Part]):
    """The part that each segment is, described once."""

    def __init__(self, captured: Captured) -> None:
        super().__init__()
        self.captured = captured
        self.texts: dict[tuple[int, Any], str] = {}

    def __missing__(self, segment: Segment) -> Part:
        part = self[segment] = describe(segment, self.captured, self.value)
        return part

    def value(self, node: Node) -> str:
        """As `_value`; nodes of copied blocks share their value."""
        key = id(node.meta["val"]), node.meta["needs_grad"]
        if key not in self.texts:
            self.texts[key] = _value(node)
        return self.texts[key]


def describe(segment: Segment, captured: Captured, value: Callable[[Node], str] | None = None) -> Part:
    """The boundary of a segment and its canonical text; linear in its size."""
    value = value or _value
    inside = {node: f"%{i}" for i, node in enumerate(segment.nodes)}
    inputs: dict[Node, str] = {}
    state: dict[str, str] = {}
    header: list[str] = []

    def name(node: Node) -> str:
        if node in inside:
            return inside[node]
        if is_size(node):
            return f"<{size_of(node.meta['val'])}>"
        if node.name in captured.state_of:
            fqn = captured.state_of[node.name]
            if fqn not in state:
                state[fqn] = f"s{len(state)}"
                rests = captured.state[fqn].spec.dtype
                cast = "" if rests == node.meta["val"].dtype else f" from {rests}"
                header.append(f"{state[fqn]} = {captured.state[fqn].kind} {value(node)}{cast}")
            return state[fqn]
        if node not in inputs:
            inputs[node] = f"i{len(inputs)}"
            header.append(f"{inputs[node]} = input {value(node)}")
        return inputs[node]

    lines = []
    for node in segment.nodes:
        args = [_text(arg, name) for arg in node.args]
        args += [f"{key}={_text(arg, name)}" for key, arg in sorted(node.kwargs.items()) if key not in ("device", "pin_memory")]
        order = drawn_order(node)
        drawn = f" drawn in the order {[*order]}" if order else ""
        lines.append(f"{inside[node]} = {node.target}({', '.join(args)}) {value(node)}{drawn}")
    outputs = tuple(n for n in segment.nodes if not _is_tuple(n) and any(u not in inside and not is_size(u) for u in n.users))
    lines.append("return " + ", ".join(inside[node] for node in outputs))
    if marked := groups(segment.nodes):
        lines.append(CHECKPOINTS + ", ".join(f"{inside[node]} in {group}" for node, group in marked.items()))
    return Part(segment, tuple(inputs), tuple(state), outputs, "\n".join(header + lines))


def _value(node: Node) -> str:
    val, needs_grad = node.meta["val"], node.meta["needs_grad"]
    vals, grads = (val, needs_grad) if isinstance(val, tuple | list) else ([val], [needs_grad])
    return ", ".join(
        f"{str(v.dtype).removeprefix('torch.')}{list(shape_of(v))}{'*' if g else ''}" if isinstance(v, torch.Tensor) else str(v)
        for v, g in zip(vals, grads, strict=True)
    )


def _text(arg: Any, name: Any) -> str:
    if isinstance(arg, Node):
        return str(name(arg))
    if isinstance(arg, tuple | list):
        return "[" + ", ".join(_text(a, name) for a in arg) + "]"
    return repr(arg)


def _is_tuple(node: Node) -> bool:
    return isinstance(node.meta["val"], tuple | list)


def _completed(cut: list[Segment], parts: Parts) -> list[Segment]:
    """Give the last block of a stack the nodes after it that complete it to the block before.

    The residual add of `x = x + block(x)` is traced outside the block: between blocks it was given to the first, after the
    last one it went to what follows.
    """
    done = list(cut)
    for i in range(1, len(done) - 1):
        before, last, after = done[i - 1 : i + 2]
        missing = len(before.nodes) - len(last.nodes)
        ends = last.stack is not None and last.stack == before.stack and after.stack != last.stack
        if not ends or not 0 < missing <= len(after.nodes) or after.stack is not None:
            continue
        grown = Segment(last.nodes + after.nodes[:missing], last.stack, last.index)
        if parts[grown].text == parts[before].text:
            done[i], done[i + 1] = grown, Segment(after.nodes[missing:])
    return [segment for segment in done if segment.nodes]


def _deepened(cut: list[Segment], parts: Parts) -> list[Segment]:
    """Cut blocks that nothing equals at the stacks inside them, where that shows repeats."""
    counts = _counts(parts[segment].text for segment in cut)
    out: list[Segment] = []
    for segment in cut:
        inner = [segment]
        if counts[parts[segment].text] == 1:
            inner = _completed(segments(segment.nodes), parts)
            if segment.stack is not None and len(inner) == 1:
                inner = _completed(segments(segment.nodes, 1), parts)
        repeats = _counts(parts[s].text for s in inner)
        out += _deepened(inner, parts) if len(inner) > 1 and len(repeats) < len(inner) else [segment]
    return out


def _merged(cut: list[Segment], parts: Parts) -> list[Segment]:
    """Join small neighbours that nothing equals."""
    texts = [parts[segment].text for segment in cut]
    counts = _counts(texts)
    out: list[Segment] = []
    single = False
    for segment, text in zip(cut, texts, strict=True):
        alone = counts[text] == 1
        if out and single and alone and len(out[-1].nodes) + len(segment.nodes) <= SMALL:
            out[-1] = Segment(out[-1].nodes + segment.nodes)
        else:
            out.append(segment)
        single = alone
    return out


def _counts(texts: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for text in texts:
        counts[text] = counts.get(text, 0) + 1
    return counts


def classes(parts: Sequence[Part]) -> dict[str, list[int]]:
    """Which parts are equal: text to their indices, in order of first appearance."""
    found: dict[str, list[int]] = {}
    for i, part in enumerate(parts):
        found.setdefault(part.text, []).append(i)
    return found
