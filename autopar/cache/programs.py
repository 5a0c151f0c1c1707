"""A traced program as JSON, and back: regions as tables of nodes, the trees of inputs and outputs in torch's own notation."""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import Any

import torch

from autopar.cache.tables import NotStorable, graph_of, graph_table, named
from autopar.ir.precision import Precision
from autopar.ir.program import Call, Program, Region, State, TensorSpec
from autopar.torch_private import fake_mode, pytree

VERSION = 2
CONSTANTS = (type(None), bool, int, float, str)
"""Leaves of inputs and outputs that are no tensors."""


def program_text(program: Program) -> str:
    """As JSON; raises NotStorable, also for what would not read as it is."""
    if program.symbols:
        raise NotStorable("a program of symbolic sizes")
    content = {
        "version": VERSION,
        "name": program.name,
        "regions": [region_data(region) for region in program.regions.values()],
        "calls": [[c.region, c.path, c.inputs, c.state, c.outputs] for c in program.calls],
        "values": {name: spec_data(spec) for name, spec in program.values.items()},
        "state": [state_data(state) for state in program.state.values()],
        "inputs": program.inputs,
        "input_constants": list(map(constant, program.input_constants)),
        "in_spec": tree_text(program.in_spec),
        "outputs": program.outputs,
        "output_constants": list(map(constant, program.output_constants)),
        "out_spec": tree_text(program.out_spec),
        "loss": program.loss,
        "mutations": dict(program.mutations),
        "fingerprint": program.fingerprint,
        "precision": None if program.precision is None else dataclasses.asdict(program.precision),
        "assumptions": program.assumptions,
    }
    return json.dumps(content)


def program_of(text: str) -> Program:
    """From `program_text`."""
    content = json.loads(text)
    if content["version"] != VERSION:
        raise ValueError(f"version {content['version']}")
    mode = fake_mode()
    states = [state_of(data) for data in content["state"]]
    return Program(
        name=content["name"],
        regions={data[0]: region_of(data, mode) for data in content["regions"]},
        calls=tuple(
            Call(region=region, path=path, inputs=tuple(inputs), state=tuple(state), outputs=tuple(outputs))
            for region, path, inputs, state, outputs in content["calls"]
        ),
        values={name: spec_of(data) for name, data in content["values"].items()},
        state={state.name: state for state in states},
        inputs=tuple(content["inputs"]),
        input_constants=tuple(map(constant_of, content["input_constants"])),
        in_spec=pytree.treespec_loads(content["in_spec"]),
        outputs=tuple(content["outputs"]),
        output_constants=tuple(map(constant_of, content["output_constants"])),
        out_spec=pytree.treespec_loads(content["out_spec"]),
        loss=content["loss"],
        mutations=content["mutations"],
        fingerprint=content["fingerprint"],
        precision=None if content["precision"] is None else Precision(**content["precision"]),
        assumptions=tuple(content["assumptions"]),
    )


def region_data(region: Region) -> list[Any]:
    return [region.name, graph_table(region.graph), region.inputs, region.state]


def region_of(data: list[Any], mode: Any) -> Region:
    name, rows, inputs, state = data
    return Region(name=name, graph=graph_of(rows, mode), inputs=tuple(inputs), state=tuple(state))


def spec_data(spec: TensorSpec) -> list[Any]:
    if not all(type(n) is int for n in spec.shape):
        raise NotStorable("a tensor of symbolic sizes")
    return [list(spec.shape), str(spec.dtype).removeprefix("torch."), spec.needs_grad]


def spec_of(data: list[Any]) -> TensorSpec:
    shape, dtype, needs_grad = data
    return TensorSpec(shape=tuple(shape), dtype=named("dtype", dtype), needs_grad=needs_grad)


def state_data(state: State) -> list[Any]:
    value = None if state.value is None else tensor_data(state.value)
    gradient = None if state.gradient_dtype is None else str(state.gradient_dtype).removeprefix("torch.")
    return [state.name, state.kind, spec_data(state.spec), state.aliases, value, gradient]


def state_of(data: list[Any]) -> State:
    name, kind, spec, aliases, value, gradient = data
    return State(
        name=name,
        kind=kind,
        spec=spec_of(spec),
        aliases=tuple(aliases),
        value=None if value is None else tensor_of(value),
        gradient_dtype=None if gradient is None else named("dtype", gradient),
    )


def tensor_data(value: torch.Tensor) -> list[Any]:
    """A constant of the model's code, with its content."""
    if value.device.type != "cpu" or type(value) is not torch.Tensor or value.layout is not torch.strided:
        raise NotStorable(f"a constant that is a {type(value).__name__} on {value.device}")
    content = value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return [list(value.shape), str(value.dtype).removeprefix("torch."), base64.b64encode(content).decode()]


def tensor_of(data: list[Any]) -> torch.Tensor:
    shape, dtype, content = data
    flat = (
        torch.frombuffer(bytearray(base64.b64decode(content)), dtype=named("dtype", dtype))
        if content
        else torch.empty(0, dtype=named("dtype", dtype))
    )
    return flat.reshape(shape)


def constant(value: Any) -> Any:
    if type(value) not in CONSTANTS:
        raise NotStorable(f"a {type(value).__name__} among inputs or outputs")
    return ["float", value.hex()] if type(value) is float else value


def constant_of(data: Any) -> Any:
    return float.fromhex(data[1]) if isinstance(data, list) else data


def tree_text(spec: Any) -> str:
    """Torch's own notation, if it reads as what it was."""
    try:
        text = pytree.treespec_dumps(spec)
        same = pytree.treespec_loads(text) == spec
    except Exception as error:
        raise NotStorable(f"the structure of inputs or outputs: {error}") from error
    if not same:
        raise NotStorable("the structure of inputs or outputs")
    return text
