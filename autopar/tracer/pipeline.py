"""The tracer from end to end: capture, gradients, clean, fold, build."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import sympy
import torch
from torch import nn
from torch.fx import Node

from autopar.errors import TraceError
from autopar.ir.autocast import no_autocast
from autopar.ir.precision import Precision, PrecisionLike
from autopar.ir.program import Program
from autopar.torch_private import OpOverload
from autopar.tracer.branches import drop_idle_choices
from autopar.tracer.build import build
from autopar.tracer.capture import Captured, capture
from autopar.tracer.casts import with_idle_casts
from autopar.tracer.chosen import choose_where_written
from autopar.tracer.clean import clean, drop_dead
from autopar.tracer.ctc import pad_chosen_targets
from autopar.tracer.dynamic import Dynamic, DynamicLike
from autopar.tracer.experts import whole_experts
from autopar.tracer.failures import check_no_data_dependent_sizes, is_cast
from autopar.tracer.fold import fold
from autopar.tracer.gradients import loss_of, propagate
from autopar.tracer.masks import fold_masks
from autopar.tracer.precision import in_precision, set_at_rest, with_autocast


@contextmanager
def uncollected() -> Iterator[None]:
    """Without looking for cyclic garbage: with all the objects that torch and sympy keep, that takes a tenth of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@uncollected()
def trace(
    model: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    *,
    dynamic: DynamicLike | None = None,
    name: str | None = None,
    precision: PrecisionLike | None = None,
    blocks_once: bool = True,
    progress: Callable[[str], None] = lambda stage: None,
    around: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Program:
    """The model as a Program; the model itself stays as it is, and may be on "meta".

    `args` and `kwargs` are examples of the global inputs: only their shapes and dtypes count, so meta tensors are fine.
    `dynamic` names dims that may change, as `{"batch": 0, "seq": 1}` for that dim of every input that has it, or
    `{"batch": {"input_ids": 0}}`; each becomes a symbol in `Program.symbols`.
    `precision`: what to compute in (see `Precision`); `torch.autocast`, if it is on, is honoured: its casts are in the program.

    Of blocks that are the same one is traced and the others are copies of it, unless `blocks_once` is False: the program is
    the same, the time grows with depth. `progress` is called with the block that is being traced; what `around` gives is
    entered each time the model's code runs.

    Raises TraceError if the model cannot be captured as one graph, InputError if `dynamic` names what does not exist.
    """
    kwargs = dict(kwargs or {})
    dims = Dynamic(dynamic or {})
    marks = dims.marks(model, args, kwargs) if dims.names else []
    mixed = with_autocast(Precision.of(precision), model)
    given = in_precision(model, mixed)
    options: dict[str, Any] = {"blocks_once": blocks_once, "progress": progress, "around": around}
    try:
        captured = capture(given, args, kwargs, dims, **options)
    except TraceError as error:
        if not is_cast(error.__cause__):
            raise
        captured = capture(with_idle_casts(given), args, kwargs, dims, **options)
    set_at_rest(captured, model, mixed)
    symbols = dims.apply(captured, marks) if dims.names else {}
    with no_autocast():
        return finished(captured, name or type(model).__name__, symbols)


def finished(captured: Captured, name: str, symbols: Mapping[str, sympy.Symbol]) -> Program:
    """The program of what was captured."""
    clean(captured.graph)
    whole_experts(captured.graph)
    fold_masks(captured.graph)
    pad_chosen_targets(captured.graph)
    choose_where_written(captured.graph)
    drop_dead(captured.graph)
    check_no_data_dependent_sizes(captured.graph, captured.made)
    propagate(captured.graph, captured.results[1], captured.out_spec)
    drop_idle_choices(captured.graph)
    drop_dead(captured.graph)
    own_results(captured)
    return build(name, captured, fold(captured), symbols)


def own_results(captured: Captured) -> None:
    """Results that are something else, too, become values of their own.

    An output or new buffer content that is itself a state tensor, or a view of one, is cloned. An output beside the loss, with
    which the loss was computed, is detached: no gradient comes back for it, so what converts it to where it is returned has no
    backward.
    """
    graph = captured.graph
    output = graph.output_node()
    _, outputs = captured.results
    loss = loss_of(outputs, is_differentiable_scalar, captured.out_spec)
    for node in output.all_input_nodes:
        if _viewed(node).name in captured.state_of:
            own, needs_grad = torch.ops.aten.clone.default, node.meta["needs_grad"]
        elif loss not in (None, node) and node.meta["needs_grad"]:
            own, needs_grad = torch.ops.aten.detach.default, False
        else:
            continue
        with graph.inserting_before(output):
            copy = graph.call_function(own, (node,))
        copy.meta = {"val": node.meta["val"], "needs_grad": needs_grad}
        output.replace_input_with(node, copy)


def _viewed(node: Node) -> Node:
    """What a view shows in the end; the node itself if it is none."""
    while isinstance(node.target, OpOverload) and (returns := node.target._schema.returns) and returns[0].alias_info:
        (node, *_) = node.all_input_nodes
    return node


def is_differentiable_scalar(result: object) -> bool:
    if not isinstance(result, Node) or not isinstance(val := result.meta["val"], torch.Tensor):
        return False
    return bool(result.meta["needs_grad"]) and tuple(val.shape) == () and val.dtype.is_floating_point


__all__ = ["trace"]
