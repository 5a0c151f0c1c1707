"""Backwards that the model's code writes itself: a trace of forward does not see them.

`torch.export` goes through an `autograd.Function` as if its forward were all there is, and the gradient would be that of its
ops. So it is an error, wherever a gradient flows through one. Inside, gradients are off without anybody having called
`torch.set_grad_enabled`: that is how it is noticed.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointFunction

from autopar.errors import TraceError
from autopar.ir.assumed import Place
from autopar.torch_private import graph_if_traced, is_grad_switch, pytree

APPLY = Function.apply.__func__.__code__  # type: ignore[attr-defined]


class NoOwnBackwards(TorchFunctionMode):
    """Active while a model is exported: raises TraceError in the first op of a differentiated `autograd.Function`."""

    def __init__(self) -> None:
        super().__init__()
        self.expected = torch.is_grad_enabled()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.compiler.is_dynamo_compiling():  # a branch of torch.cond
            return func(*args, **(kwargs or {}))
        if is_grad_switch(func):
            result = func(*args, **(kwargs or {}))
            self.expected = torch.is_grad_enabled()
            return result
        if self.expected and not torch.is_grad_enabled() and graph_if_traced() is not None:
            refuse(sys._getframe(1))
        return func(*args, **(kwargs or {}))


def refuse(frame: FrameType | None) -> None:
    """Raise TraceError if the code runs in a function of its own that gradients pass through."""
    while frame is not None and frame.f_code is not APPLY:
        frame = frame.f_back
    if frame is None or (kind := frame.f_locals["cls"]) is CheckpointFunction:
        return
    given = pytree.tree_leaves((frame.f_locals["args"], frame.f_locals["kwargs"]))
    if frame.f_back is None or not any(isinstance(value, Tensor) and value.requires_grad for value in given):
        return
    file, line = frame.f_back.f_code.co_filename, frame.f_back.f_lineno
    place = Place(file=file, line=line, code=linecache.getline(file, line).strip())
    raise TraceError(
        f"{kind.__name__} at {place.quoted} is an autograd.Function, whose backward is not seen in a trace of forward: the "
        "gradient would be that of the ops in it. Write it with ops that have the right gradient (x + (f(x) - x).detach() if "
        "it is straight through), or as a torch.library.custom_op with register_autograd and a rule (docs/rules.md)"
    )
