"""Run a Program serially on whole tensors: the meaning of the IR, for tests and as the reference of every plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from autopar.errors import InputError
from autopar.ir.autocast import no_autocast
from autopar.ir.layout import drawn_order, draws, laid
from autopar.ir.program import Program, Region
from autopar.torch_private import pytree


def run_program(
    program: Program, model_state: Mapping[str, Tensor], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
) -> Any:
    """The outputs in the model's own structure, differentiable in `model_state` and inputs.

    `model_state` maps canonical names of parameters and buffers to tensors (constants of the code may be left out). Buffers
    are not written: `run_values` gives what `Program.mutations` names.
    """
    values = run_values(program, model_state, args, kwargs)
    return unflatten_outputs(program, values)


@no_autocast()
def run_values(
    program: Program,
    model_state: Mapping[str, Tensor],
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    values: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Every value of the program by name; inputs are given as to the model, or by name in `values`."""
    values = dict(zip_inputs(program, args, kwargs or {})) if values is None else values
    state = {name: _state(program, name, model_state) for call in program.calls for name in call.state}
    device = next((t.device for t in (*state.values(), *values.values())), torch.device("cpu"))
    for call in program.calls:
        region = program.regions[call.region]
        operands = [values[v] for v in call.inputs]
        operands += [state[s].to(device, program.cast_to(s)) for s in call.state]
        values.update(zip(call.outputs, run_region(region, operands, device), strict=True))
    return values


def run_region(region: Region, operands: list[Tensor], device: torch.device) -> tuple[Tensor, ...]:
    """One call: inputs, then state, in; outputs out. Factory ops make their tensors on `device`."""
    named = dict(zip((*region.inputs, *region.state), operands, strict=True))
    done: dict[torch.fx.Node, Any] = {}
    for node in region.graph.nodes:
        if node.op == "placeholder":
            done[node] = named[node.name]
        elif node.op == "call_function":
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: done[n])
            if draws(node) and args and isinstance(args[0], Tensor):  # values may lie otherwise here than in the model's code
                args = (laid(args[0], drawn_order(node)), *args[1:])
            done[node] = node.target(*args, **({**kwargs, "device": device} if "device" in kwargs else kwargs))
    return tuple(done[node] for node in region.outputs)


def zip_inputs(program: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    """(value name, tensor) of each tensor among the inputs; raises InputError if they are not built as when tracing."""
    _, traced = pytree.tree_unflatten(list(range(len(program.inputs))), program.in_spec)
    ordered = {k: kwargs[k] for k in traced if k in kwargs} | {k: v for k, v in kwargs.items() if k not in traced}
    leaves, spec = pytree.tree_flatten((tuple(args), ordered))
    if spec != program.in_spec:
        raise InputError(
            f"{program.name} was traced with other inputs: {len(args)} positional and {sorted(kwargs)} here, "
            f"{program.in_spec} when traced; pass the same arguments in the same way, or trace it again"
        )
    pairs = []
    for name, leaf, constant in zip(program.inputs, leaves, program.input_constants, strict=True):
        if name is not None:
            if not isinstance(leaf, Tensor):
                raise InputError(f"input {name!r} of {program.name} was a tensor when traced, now it is {leaf!r}")
            pairs.append((name, leaf))
        elif isinstance(leaf, Tensor) or leaf != constant:
            raise InputError(f"an input of {program.name} was {constant!r} when traced, now it is {leaf!r}; trace it again")
    return pairs


def unflatten_outputs(program: Program, values: Mapping[str, Any]) -> Any:
    """The outputs in the model's own structure, from values by name."""
    leaves = [c if v is None else values[v] for v, c in zip(program.outputs, program.output_constants, strict=True)]
    return pytree.tree_unflatten(leaves, program.out_spec)


def _state(program: Program, name: str, given: Mapping[str, Tensor]) -> Tensor:
    state = program.state[name]
    for known in (name, *state.aliases):
        if known in given:
            return given[known]
    if state.value is None:
        raise InputError(f"{program.name} needs {state.kind} {name!r}, which is not among the given state")
    return state.value
