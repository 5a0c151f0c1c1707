"""What the model's code runs under `torch.utils.checkpoint`, as marks on the traced nodes.

Neither kind of checkpoint shows in a traced graph. The non-reentrant one hides in hooks on saved tensors, so while they are
active, nodes get the mark of the call that set them. The reentrant one runs its function without gradients in an autograd
function: traced as it stands, nothing before it would be trained. So its switches of gradients are undone, and what lies
between them is marked. Selective checkpoints (`context_fn`) decide per op: they are left unmarked.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointFunction

from autopar.torch_private import checkpoint_hook, graph_if_traced, is_grad_switch, is_selective_checkpoint

MARK = "autopar_checkpoint"
Mark = tuple[int, ...]
SWITCHES = (torch.no_grad.__enter__.__code__, torch.no_grad.__exit__.__code__)


class CheckpointMarks(TorchFunctionMode):
    """Active while a model is exported: marks the nodes of each checkpointed call with a number of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.hooks: dict[Any, Mark | None] = {}
        self.reentrant: list[tuple[FrameType, Mark]] = []
        self.calls = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_dynamo_compiling():  # a branch of torch.cond
            return func(*args, **kwargs)
        graph = graph_if_traced()
        if graph is None:
            return func(*args, **kwargs)
        if is_grad_switch(func) and (frame := _of_reentrant(sys._getframe(1))):
            return self.switch(func, frame, graph)
        mark = self.mark()
        if mark is None:
            return func(*args, **kwargs)
        last = _last(graph)
        result = func(*args, **kwargs)
        node = last.next
        while node.op != "root":
            node.meta["custom"] = {**node.meta.get("custom", {}), MARK: mark}
            node = node.next
        return result

    def switch(self, func: Callable[..., Any], frame: FrameType, graph: Graph) -> None:
        """Into a reentrant checkpoint: gradients stay on; out of it: as its autograd function wants them."""
        if (node := _last(graph)).target is func:
            graph.erase_node(node)
        entering = not (self.reentrant and self.reentrant[-1][0] is frame)
        if entering:
            self.reentrant.append((frame, self.new()))
        else:
            self.reentrant.pop()
        func(entering)

    def mark(self) -> Mark | None:
        """That of the innermost checkpoint that is running."""
        hook = checkpoint_hook()
        if hook is None:
            return self.reentrant[-1][1] if self.reentrant else None
        if hook not in self.hooks:
            self.hooks[hook] = None if is_selective_checkpoint() else self.new()
        return self.hooks[hook]

    def new(self) -> Mark:
        self.calls += 1
        return (self.calls,)


def _last(graph: Graph) -> Node:
    last: Node = next(iter(reversed(graph.nodes)))
    return last


def _of_reentrant(frame: FrameType | None) -> FrameType | None:
    """The frame of the reentrant checkpoint that switches gradients off, or back; None if it is anything else."""
    while frame is not None and frame.f_code not in SWITCHES:
        frame = frame.f_back
    caller = frame.f_back if frame is not None else None
    return caller if caller is not None and caller.f_code is CheckpointFunction.forward.__code__ else None


def mark_of(node_meta: dict[str, Any]) -> Mark | None:
    """The mark of a node, by its meta."""
    return (node_meta.get("custom") or {}).get(MARK)


def moved_mark(meta: dict[str, Any], block: dict[str, Any], call: dict[str, Any], number: int) -> dict[str, Any]:
    """`meta` of a node copied from the block to a call of the same: what was under the block's checkpoint is under the call's.

    A checkpoint inside of the block becomes one of its own for each call, told apart by `number`.
    """
    mark = mark_of(meta)
    new = mark_of(call) if mark == mark_of(block) else mark and (number, *mark)
    if new == mark:
        return meta
    custom = {key: value for key, value in (meta.get("custom") or {}).items() if key != MARK}
    return {**meta, "custom": custom | ({MARK: new} if new is not None else {})}


def groups(nodes: Sequence[Node]) -> dict[Node, int]:
    """Marked nodes and which checkpoint they are in, numbered from 0 in order of first appearance."""
    numbers: dict[Mark, int] = {}
    marked = ((node, mark_of(node.meta)) for node in nodes)
    return {node: numbers.setdefault(mark, len(numbers)) for node, mark in marked if mark is not None}
