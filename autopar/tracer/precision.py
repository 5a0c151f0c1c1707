"""Tracing a model in another precision than it has, as FSDP2 would run it, and what then rests in which dtype.

A twin of the module tree is traced, whose parameters have the dtype that is computed with and whose forward casts what goes in
and out. In the program parameters enter regions in that dtype; their `State` says how they rest, and the cast is codegen's.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from autopar.errors import InputError, TraceError
from autopar.ir.autocast import autocast_dtypes
from autopar.ir.precision import Precision, name_of
from autopar.torch_private import pytree
from autopar.tracer.blocks import become, own
from autopar.tracer.capture import Captured
from autopar.tracer.replica import NotReplicable, replicate


def with_autocast(precision: Precision | None, model: nn.Module) -> Precision | None:
    """The precision, and the autocast that is on now for the model's device."""
    active = autocast_dtypes()
    if not active:
        return precision
    device = next((t.device.type for t in (*model.parameters(), *model.buffers())), "cpu")
    if device not in active:
        kinds = " and ".join(active)
        raise InputError(
            f"torch.autocast is on for {kinds}, the model is on {device}, where it does nothing: move the model there first, "
            'or ask for precision="compute=bfloat16", which needs no device'
        )
    return replace(precision or Precision(), autocast=name_of(active[device]))


def in_precision(model: nn.Module, precision: Precision | None) -> nn.Module:
    """The model itself, or a twin of it to trace: parameters and inputs in the dtype that is computed with, outputs cast."""
    compute, output = (precision.dtype("compute"), precision.dtype("output")) if precision else (None, None)
    if precision is None or compute is output is None:
        return model
    try:
        twin: nn.Module = replicate(model)
    except NotReplicable as error:
        raise TraceError(
            f"{type(model).__name__} cannot be traced in {precision}: {error}. Convert the model itself (model.to(dtype)), or "
            "use torch.autocast around compile"
        ) from error
    if compute is not None:
        cast_parameters(twin, compute)
    cast_around(twin, compute if precision.cast_inputs else None, output)
    return twin


def cast_parameters(twin: nn.Module, dtype: torch.dtype) -> None:
    """Put parameters of the dtype, without content, in the places of all floating ones; tied ones stay tied."""
    made: dict[int, nn.Parameter] = {}
    for module in twin.modules():
        for name, old in own(module)["_parameters"].items():
            if old is not None and old.is_floating_point() and old.dtype != dtype:
                if id(old) not in made:
                    empty = torch.empty_like(old, dtype=dtype, requires_grad=False)
                    if not empty.is_meta:
                        empty.untyped_storage().resize_(0)
                    made[id(old)] = nn.Parameter(empty, requires_grad=old.requires_grad)
                setattr(module, name, made[id(old)])


def cast_around(twin: nn.Module, inputs: torch.dtype | None, outputs: torch.dtype | None) -> None:
    """Make its forward cast the floating tensors that go in and out."""
    forward = own(twin).get("forward") or type(twin).forward
    bound = "forward" in own(twin)

    @functools.wraps(forward)
    def around(*args: Any, **kwargs: Any) -> Any:
        this, given = ((), args) if bound else (args[:1], args[1:])
        given, kwargs = floats_to((given, kwargs), inputs)
        return floats_to(forward(*this, *given, **kwargs), outputs)

    if bound:
        own(twin)["forward"] = around
    else:
        become(twin, {"forward": around})


def floats_to(tree: Any, dtype: torch.dtype | None) -> Any:
    """All floating tensors in there in this dtype."""
    if dtype is None:
        return tree
    return pytree.tree_map_only(torch.Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, tree)


def set_at_rest(captured: Captured, model: nn.Module, precision: Precision | None) -> None:
    """Note how parameters rest, and in which dtype gradients are added up, where these are not what is computed with."""
    captured.precision = precision
    if precision is None:
        return
    rest, reduce = precision.dtype("parameters"), precision.dtype("reduce")
    given = dict(model.named_parameters(remove_duplicate=False))
    for name, state in captured.state.items():
        if state.kind != "parameter" or not state.spec.dtype.is_floating_point:
            continue
        other = reduce if reduce != state.spec.dtype and state.spec.needs_grad else None
        spec = replace(state.spec, dtype=rest or given[name].dtype)
        captured.state[name] = replace(state, spec=spec, gradient_dtype=other)
