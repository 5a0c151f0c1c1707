"""A short batch made full: samples are repeated, and their labels say that the loss shall ignore them.

Loss and gradients are then those of the short batch, if the loss is a mean (or sum) over the labels that count and nothing else
mixes rows of the batch. The loss, its targets, batch norm and routing of experts are read off the traced program before any
data is, and refused if they do not allow it; a model that mixes rows by ops of its own is not noticed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.fx import Node

from autopar.errors import InputError
from autopar.ir.program import Program

LOSSES = {"aten.cross_entropy_loss.default": 4, "aten.nll_loss_nd.default": 4, "aten.nll_loss.default": 4}
"""Position of `ignore_index` among the arguments; that of `reduction` is one less, the target is the second argument."""

IGNORED_BY_DEFAULT = -100
MEAN_OR_SUM = (1, 2)
MOVES = frozenset(
    ["view", "reshape", "_unsafe_view", "flatten", "squeeze", "unsqueeze", "transpose", "permute", "slice", "select"]
)
MOVES |= {"constant_pad_nd", "contiguous", "clone", "alias", "detach", "_to_copy", "to"}
"""Ops that move labels about and compute nothing."""

SCALES = frozenset(["_to_copy", "to", "alias", "clone", "detach", "view", "squeeze"])
MIXES = ("batch_norm", "experts")
"""In the names of ops whose rows look at other rows of the batch."""

CHOICES = 'choose last="drop" to leave it out, or last="replan" for a program of its own'

Place = tuple[int, Node]
"""Index of a call, and a node of its region."""


def require_ignored(program: Program, labels: Sequence[str], ignore: int) -> None:
    """Raise InputError unless the loss ignores rows whose `labels` (names of inputs) are `ignore`."""
    if program.loss is None:
        return
    for name, region in program.regions.items():
        for node in region.graph.nodes:
            if node.op == "call_function" and any(word in str(node.target) for word in MIXES):
                raise InputError(f"cannot pad: {node.name} of {name} ({node.target}) mixes the rows of a batch: {CHOICES}")
    *_, (_, loss) = back(program, _producer(program, program.loss), SCALES)
    position = LOSSES.get(str(loss.target))
    if position is None:
        what = f"{loss.name} ({loss.target})"
        raise InputError(f"cannot pad: the loss ends in {what}, which cannot ignore the rows that are added: {CHOICES}")
    ignored, reduction = _argument(loss, position, IGNORED_BY_DEFAULT), _argument(loss, position - 1, 1)
    if ignored != ignore or reduction not in MEAN_OR_SUM:
        raise InputError(
            f"cannot pad: the loss ignores labels of {ignored}, and padding gets {ignore}: pass ignore={ignored}, or {CHOICES}"
        )
    call = next(i for i, c in enumerate(program.calls) if loss.graph is program.regions[c.region].graph)
    *_, (index, source) = back(program, (call, loss.args[1]), MOVES)  # type: ignore[arg-type]
    value = _value(program, (index, source))
    if value not in labels:
        named = f"input {value}" if value is not None else f"{source.name} ({source.target})"
        raise InputError(
            f"cannot pad: the targets of the loss come from {named}, not from {' or '.join(labels) or 'no labels'}: "
            f"name the inputs that hold labels with labels=(...), or {CHOICES}"
        )


def back(program: Program, place: Place, through: Iterable[str]) -> Iterator[Place]:
    """From a value towards what made it, over ops that only move or scale it, and from call to call."""
    words = set(through)
    while True:
        yield place
        index, node = place
        if node.op == "placeholder":
            value = _value(program, place)
            if value is None or program.producer(value) is None:
                return
            place = _producer(program, value)
        elif str(node.target).split(".")[1:2] and str(node.target).split(".")[1] in words and isinstance(node.args[0], Node):
            place = index, node.args[0]
        else:
            return


def _producer(program: Program, value: str) -> Place:
    found = program.producer(value)
    assert found is not None, f"{value} is an input"
    index, position = found
    return index, program.regions[program.calls[index].region].outputs[position]


def _value(program: Program, place: Place) -> str | None:
    """The value that a placeholder of a call is; None for any other node, and for state."""
    index, node = place
    call = program.calls[index]
    slots = program.regions[call.region].inputs
    return call.inputs[slots.index(node.name)] if node.op == "placeholder" and node.name in slots else None


def _argument(node: Node, position: int, default: Any) -> Any:
    names = {3: "reduction", 4: "ignore_index"}
    return node.args[position] if len(node.args) > position else node.kwargs.get(names[position], default)


def padded(count: int, rows: int) -> torch.Tensor:
    """Which sample each row of a full batch is, of a batch that has `count` of them: again and again from the first.

    >>> padded(3, 8).tolist()
    [0, 1, 2, 0, 1, 2, 0, 1]
    """
    return torch.arange(rows) % count
