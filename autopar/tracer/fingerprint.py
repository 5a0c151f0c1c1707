"""One hash of what a plan depends on: structure, shapes, state; no weights, no names of torch's making."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from torch.fx import Node

from autopar.ir.program import TensorSpec
from autopar.tracer.capture import Captured
from autopar.tracer.fold import CHECKPOINTS, Part, classes


def fingerprint(parts: Sequence[Part], captured: Captured) -> str:
    """sha256 over canonical text: the same in every process, and for the same model built on another device.

    Checkpoints of the model's code are no part of it, but for which layers are equal: a plan says itself what runs again.
    """
    return hashlib.sha256(canonical(parts, captured).encode()).hexdigest()


def canonical(parts: Sequence[Part], captured: Captured) -> str:
    """The program as text: values are numbered by (call, output), inputs by position, state goes by name."""
    lines = []
    numbers = {members[0]: i for i, members in enumerate(classes(parts).values())}
    region = {i: numbers[members[0]] for members in classes(parts).values() for i in members}
    texts = {i: parts[i].text.partition(f"\n{CHECKPOINTS}")[0] for i in numbers}
    lines += [f"region {numbers[i]}\n{text}" for i, text in texts.items()]
    placeholders = {node.name: node for node in captured.graph.find_nodes(op="placeholder")}
    values: dict[Node, str] = {placeholders[n]: f"in{i}" for i, n in enumerate(captured.inputs) if n is not None}
    for i, part in enumerate(parts):
        lines.append(f"call {region[i]} {[values[n] for n in part.inputs]} {list(part.state)}")
        values |= {node: f"v{i}.{j}" for j, node in enumerate(part.outputs)}
    for name, state in sorted(captured.state.items()):
        lines.append(f"state {name} {state.kind} {_spec(state.spec)} {list(state.aliases)}")
    mutations, outputs = captured.results
    constants = [c for n, c in zip(captured.inputs, captured.input_constants, strict=True) if n is None]
    lines.append(f"constants {constants!r}")
    lines += [f"precision {captured.precision}"] if captured.precision else []
    lines.append(f"mutations {[(f, values[r]) for f, r in zip(captured.mutated, mutations, strict=True)]}")
    lines.append(f"outputs {[values[r] if isinstance(r, Node) else repr(r) for r in outputs]}")
    return "\n".join(lines)


def _spec(spec: TensorSpec) -> str:
    return f"{spec.dtype}{list(spec.shape)}{'*' if spec.needs_grad else ''}"
