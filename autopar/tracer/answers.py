"""What a model's code asks of a tensor's data while it is traced, answered where that can be said for all data.

"if mask.any()" needs a value that a trace has not. In this order: what the user said of that line (`autopar.assume`); what
follows without any data, as of a mask of ones; that numbers are finite, where the code checks for it; and that checks
which only raise an error pass. All but the second are assumptions, which are kept for the log and the plan. What has no answer
goes on to torch, which refuses it.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.overrides import TorchFunctionMode

from autopar.ir.assumed import Place, Value, assumed_at
from autopar.torch_private import graph_if_traced, unwatched
from autopar.tracer.checks import passing
from autopar.tracer.constants import Constants
from autopar.tracer.stand_ins import STAND_INS
from autopar.tracer.traced import node_if_traced

TORCH = str(Path(torch.__file__).parent)
OURS = tuple(str(Path(__file__).parents[1] / part) for part in ("tracer", "cache", "ops", "ir"))
ASKED = "autopar_asked"

KINDS: dict[Any, Callable[[Any], Any]] = {
    Tensor.__bool__: bool,
    Tensor.__int__: int,
    Tensor.__index__: int,
    Tensor.__float__: float,
    Tensor.item: lambda value: value,
}
"""How code asks for data, and what of a Python value it gets."""


class Answers(TorchFunctionMode):
    """Active while a model is exported. `assumptions`: what was taken for granted, a sentence for each line of code.
    `reads`: symbols of numbers that were read from tensors without an answer, and where; `sizes`: of sizes that only data
    could tell. `failed`: the function of torch that could not be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.assumptions: dict[str, None] = {}
        self.reads: dict[str, Place] = {}
        self.sizes: dict[str, Place] = {}
        self.failed = ""
        self.constants: dict[int, Constants] = {}
        self.graphs: list[Graph] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.compiler.is_dynamo_compiling():  # a branch of torch.cond
            return func(*args, **(kwargs or {}))
        func = STAND_INS.get(func, func)
        if func not in KINDS or (graph := graph_if_traced()) is None:
            try:
                result = func(*args, **(kwargs or {}))
            except Exception:
                self.failed = name_of(func)
                raise
            return self.sized(func, result, sys._getframe(1))
        asking = _asking(sys._getframe(1))
        place = _place_of(asking)
        found = self.answer(func, args[0], graph, asking, place)
        if found is not None:
            return KINDS[func](found)
        result = func(*args, **(kwargs or {}))
        if place is not None and isinstance(result, torch.SymInt | torch.SymFloat | torch.SymBool):
            self.reads |= {str(symbol): place for symbol in result.node.expr.free_symbols}
        return result

    def sized(self, func: Any, result: Any, frame: FrameType) -> Any:
        """The result, of which the sizes are noted that only data could tell."""
        for leaf in result if isinstance(result, tuple | list) else (result,):
            unknown = unbacked_sizes(leaf) - self.sizes.keys() - self.reads.keys() if isinstance(leaf, Tensor) else None
            if unknown and (place := _place_of(frame)):
                self.sizes |= dict.fromkeys(unknown, replace(place, call=name_of(func)))
        return result

    def answer(self, func: Any, tensor: Tensor, graph: Graph, asking: FrameType | None, place: Place | None) -> Value | None:
        """The value of the tensor, as a Python value; None if only data could tell."""
        if place is not None and (said := assumed_at(place)):
            self.assumptions[f"{place.quoted} gets {said.value} of a tensor, as autopar.assume says"] = None
            return said.value
        node = node_if_traced(tensor) if tensor.numel() == 1 else None
        if node is not None and (found := self._constants_of(graph).of(graph, node)) is not None:
            value, finite = found
            if finite and place is not None:
                self.assumptions[f"{place.quoted} finds only finite numbers"] = None
            elif not finite:
                _note(node)
            return value.item()  # type: ignore[no-any-return]
        if asking is not None and place is not None and (func is Tensor.__bool__ or tensor.dtype is torch.bool):
            truth = passing(asking)
            if truth is not None:
                self.assumptions[f"{place.quoted} raises no error"] = None
            return truth
        return None

    def _constants_of(self, graph: Graph) -> Constants:
        if id(graph) not in self.constants:
            self.graphs.append(graph)
            self.constants[id(graph)] = Constants()
        return self.constants[id(graph)]


def name_of(func: Any) -> str:
    return getattr(func, "__name__", "")


def unbacked_sizes(tensor: Tensor) -> set[str]:
    """Symbols of those of its sizes that are known only when the model runs."""
    with unwatched():
        shape = tensor.shape
    if all(type(size) is int for size in shape):
        return set()
    return {str(symbol) for symbol in free_unbacked_symbols(shape)}


def _note(node: Node) -> None:
    """What code does with the value holds for this tensor only, not for an equal one in another call of the same block."""
    node.meta["custom"] = {**node.meta.get("custom", {}), ASKED: True}


def was_asked(node: Node) -> bool:
    """Whether the code that was traced depends on this node's value."""
    return bool((node.meta.get("custom") or {}).get(ASKED))


def _asking(frame: FrameType | None) -> FrameType | None:
    """The innermost frame that is neither ours nor a mode's; it may be torch's own."""
    while frame is not None and (frame.f_code.co_name == "__torch_function__" or frame.f_code.co_filename.startswith(OURS)):
        frame = frame.f_back
    return frame


def _place_of(frame: FrameType | None) -> Place | None:
    """The line of the innermost frame that is neither torch's nor ours."""
    while frame is not None and frame.f_code.co_filename.startswith((TORCH, *OURS, "<")):
        frame = frame.f_back
    if frame is None:
        return None
    file, line = frame.f_code.co_filename, frame.f_lineno
    return Place(file=file, line=line, code=linecache.getline(file, line).strip())
