"""Two programs, or a module before and after, held against each other in everything that can be seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from autopar.ir.program import Program
from autopar.tracer.clean import shape_of


def differences(one: Program, other: Program) -> list[tuple[str, str]]:
    """Pairs of lines that differ; empty for programs that are equal, names, paths and source lines included."""
    lines = [list(described(program)) for program in (one, other)]
    length = max(map(len, lines))
    padded = [[*found, *[""] * (length - len(found))] for found in lines]
    return [(a, b) for a, b in zip(*padded, strict=True) if a != b]


def described(program: Program) -> Iterator[str]:
    for region in program.regions.values():
        yield f"{region.name} {region.inputs} {region.state}"
        for node in region.graph.nodes:
            meta = {key: node.meta.get(key) for key in ("needs_grad", "path", "source")}
            yield f"{node.op} {node.name} {node.target} {node.args} {node.kwargs} {_value(node.meta.get('val'))} {meta}"
    yield from map(str, program.calls)
    yield from map(str, program.values.items())
    for state in program.state.values():
        value = None if state.value is None else state.value.tolist()
        yield f"{state.name} {state.kind} {state.spec} {state.aliases} {value}"
    yield f"{program.inputs} {program.input_constants} {program.in_spec}"
    yield f"{program.outputs} {program.output_constants} {program.out_spec} {program.loss}"
    yield f"{program.mutations} {program.symbols} {program.name}"
    yield program.fingerprint


def _value(val: Any) -> str:
    if isinstance(val, tuple | list):
        return ", ".join(map(_value, val))
    return f"{val.dtype}{shape_of(val)}" if isinstance(val, torch.Tensor) else str(val)


def snapshot(model: nn.Module) -> list[Any]:
    """Classes, tables and attributes of every module; by identity, but for containers, which torch.export makes anew."""
    return [(name, type(module), [(k, _seen(v)) for k, v in vars(module).items()]) for name, module in model.named_modules()]


def _seen(value: Any) -> Any:
    if isinstance(value, dict):
        return type(value), [(key, id(held)) for key, held in value.items()]
    if isinstance(value, list | tuple | set):
        return type(value), [id(held) for held in value]
    return value if isinstance(value, bool | int | float | str | None) else id(value)
