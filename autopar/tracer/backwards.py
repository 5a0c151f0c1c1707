"""Backwards that the model's code writes itself: a trace of forward does not see them.

`torch.export` goes through an `autograd.Function` as if its forward were all there is, and the gradient is that of its ops.
Where the function's own backward gives the same (it only saves time or memory), that is fine: both are tried on random numbers.
Where it does not, the function is an op of its own: its forward is traced, and what it returns is then taken to come from the
op (nothing uses what was traced). Inside, gradients are off without anybody having called `torch.set_grad_enabled`: that is how
a function is noticed; when it is through, the interpreter tells, as it would a profiler.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.fx import Node
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointFunction

from autopar.errors import TraceError
from autopar.ir.assumed import Place
from autopar.ir.opaque import Unclear
from autopar.ir.own_functions import tensors_of, use_of
from autopar.torch_private import example_of, graph_if_traced, is_grad_switch, pytree, unwatched, without_modes
from autopar.tracer.traced import take_the_place

APPLY = Function.apply.__func__.__code__  # type: ignore[attr-defined]
SMALL = 8
LARGEST = 1 << 22
"""Dims are cut to the one, if the function works so, to try it; otherwise a tensor may have so many elements."""


class OwnBackwards(TorchFunctionMode):
    """Active while a model is exported: each `autograd.Function` with gradients of its own becomes one op."""

    def __init__(self) -> None:
        super().__init__()
        self.expected = torch.is_grad_enabled()
        self.fine: set[type] = {CheckpointFunction}
        self.own: set[type] = set()
        self.under_way: FrameType | None = None

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
            self.notice(sys._getframe(1))
        return func(*args, **(kwargs or {}))

    def notice(self, frame: FrameType | None) -> None:
        """If the code runs in a function with gradients of its own that are needed: see to it that it becomes an op."""
        while frame is not None and frame.f_code is not APPLY:
            frame = frame.f_back
        if frame is None or frame is self.under_way or (kind := frame.f_locals["cls"]) in self.fine:
            return
        given = frame.f_locals["args"]
        if not any(isinstance(value, Tensor) and value.requires_grad for value in pytree.tree_leaves(given)):
            return
        if kind not in self.own and has_plain_gradients(kind, given):
            self.fine.add(kind)
            return
        self.own.add(kind)
        self.follow(frame, Passage(kind, given, place_of(frame.f_back)))

    def follow(self, frame: FrameType, passage: Passage) -> None:
        """Put the op in the place of what a call of `Function.apply` returns, when it does."""
        before, self.under_way = sys.getprofile(), frame

        def told(current: FrameType, event: str, returned: Any) -> None:
            if current is not frame or event != "return":
                return
            self.under_way = None
            sys.setprofile(None)
            watch_again(before)
            if returned is not None:  # else it failed
                passage.end(returned)

        sys.setprofile(told)


def watch_again(profiler: Any) -> None:
    """What `sys.getprofile` returned is in charge again: a function, or a `cProfile.Profile`."""
    if hasattr(profiler, "enable"):
        profiler.enable()
    else:
        sys.setprofile(profiler)


class Passage:
    """A call of an `autograd.Function` while it is traced."""

    def __init__(self, kind: type[Function], given: Sequence[Any], place: Place) -> None:
        self.kind, self.place, graph = kind, place, graph_if_traced()
        assert graph is not None, "nothing is being traced"
        try:
            self.use = use_of(kind, given)
        except Unclear:
            kinds = ", ".join(type(value).__name__ for value in given)
            raise self.refusal(f"it is called with ({kinds}), and an op takes tensors, numbers and plain constants") from None
        self.graph, self.before = graph, next(iter(reversed(graph.nodes)))
        self.given = [(value, value._version) for value in given if isinstance(value, Tensor)]

    def end(self, returned: Any) -> None:
        """From here on, what was returned comes from the op. Raises TraceError if the function does what no op does."""
        results = tensors_of(returned)
        if not results:
            raise self.refusal("it returns no tensor")
        if any(tensor._version != version for tensor, version in self.given):
            raise self.refusal("it writes into a tensor that it is given")
        if draws := [node for node in self.traced() if node.op == "call_function" and is_random(node.target)]:
            raise self.refusal(f"it draws random numbers ({draws[0].target}), others each time that its op runs")
        made = self.use.op(len(results))(*self.use.taken)
        for result, tensor in zip(results, tensors_of(made), strict=True):
            take_the_place(result, tensor)

    def traced(self) -> Iterator[Node]:
        """The nodes of its forward."""
        node = self.before.next
        while node.op != "root":
            yield node
            node = node.next

    def refusal(self, reason: str) -> TraceError:
        return TraceError(
            f"{self.kind.__name__} at {self.place.quoted} is an autograd.Function with a backward that is not that of the ops "
            f"in its forward, and cannot be one op of a plan: {reason}. Write it with ops that have the right gradient "
            "(x + (f(x) - x).detach() if it is straight through), or as a torch.library.custom_op with register_autograd and a "
            "rule (docs/rules.md)"
        )


def place_of(frame: FrameType | None) -> Place:
    """Where the code of a frame is at."""
    assert frame is not None, "a call of apply has a caller"
    file, line = frame.f_code.co_filename, frame.f_lineno
    return Place(file=file, line=line, code=linecache.getline(file, line).strip())


def is_random(op: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(op, "tags", ())


class Context:
    """Stands for what `forward` is given to keep things in."""

    needs_input_grad = (True,) * 64

    def save_for_backward(self, *tensors: Tensor) -> None:
        self.saved_tensors = tensors

    def _nothing(self, *args: Any) -> None:
        pass

    mark_dirty = mark_non_differentiable = set_materialize_grads = save_for_forward = _nothing


def has_plain_gradients(kind: type[Function], given: tuple[Any, ...]) -> bool:
    """Whether its backward gives what autograd gives for the ops of its forward, on random numbers; False if neither runs."""
    with without_modes(), unwatched(), torch.inference_mode(False), torch.enable_grad():
        for limit in (SMALL, None):
            try:
                ours, theirs = (gradients(run, random(given, limit)) for run in (kind.apply, plain(kind)))
            except Exception:  # sizes that do not fit, or code that needs the real thing
                continue
            return all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(ours, theirs, strict=True))
    return False


def plain(kind: type[Function]) -> Callable[..., Any]:
    """Its forward, as autograd sees it."""
    has_setup = kind.setup_context is not Function.setup_context
    return kind.forward if has_setup else lambda *args: kind.forward(Context(), *args)


def random(given: tuple[Any, ...], limit: int | None) -> list[Any]:
    """Arguments like these with content, the same each time; dims of at most `limit`, if there is one."""
    generator = torch.Generator().manual_seed(0)

    def one(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        sizes = [int(example_of(n)) for n in value.shape]
        shape = torch.Size(sizes if limit is None else [min(n, limit) for n in sizes])
        if shape.numel() > LARGEST:
            raise ValueError("too large to try")
        if not value.is_floating_point():
            return torch.ones(shape, dtype=value.dtype)
        made = torch.randn(shape, generator=generator, dtype=torch.float64)
        return made.requires_grad_(value.requires_grad)

    return [pytree.tree_map(one, value) for value in given]


def gradients(run: Callable[..., Any], args: list[Any]) -> list[Tensor]:
    """Of its floating results, weighted at random, with respect to the tensors that want one; zeros where none comes."""
    generator = torch.Generator().manual_seed(1)
    results = [r for r in pytree.tree_leaves(run(*args)) if isinstance(r, Tensor) and r.is_floating_point()]
    wanted = [a for a in pytree.tree_leaves(args) if isinstance(a, Tensor) and a.requires_grad]
    total = torch.stack([(r * torch.randn(r.shape, generator=generator, dtype=r.dtype)).sum() for r in results]).sum()
    found = torch.autograd.grad(total, wanted, allow_unused=True) if total.requires_grad else [None] * len(wanted)
    return [torch.zeros_like(a) if g is None else g for a, g in zip(wanted, found, strict=True)]
