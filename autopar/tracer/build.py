"""From parts to a Program: a readable graph per region, calls, values, names."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch.fx import Graph, Node

from autopar.errors import TraceError
from autopar.ir.own_ops import NAMESPACE
from autopar.ir.program import Call, Program, Region, TensorSpec
from autopar.torch_private import size_of
from autopar.tracer.capture import Captured
from autopar.tracer.checkpoints import groups
from autopar.tracer.clean import shape_of
from autopar.tracer.failures import source_of
from autopar.tracer.fingerprint import fingerprint
from autopar.tracer.fold import Part, classes
from autopar.tracer.gradients import loss_of
from autopar.tracer.segments import is_size, module_path


def build(name: str, captured: Captured, parts: Sequence[Part], symbols: Mapping[str, sympy.Symbol]) -> Program:
    """Regions in order of first call; every value named after where it is made."""
    placeholders = {node.name: node for node in captured.graph.find_nodes(op="placeholder")}
    values = {placeholders[n]: n for n in captured.inputs if n is not None}
    state = {captured.state_of[n]: node for n, node in placeholders.items() if n in captured.state_of}
    taken = set(values.values())
    region_of: dict[str, Region] = {}
    regions: dict[str, Region] = {}
    names = region_names(parts)
    calls = []
    for i, part in enumerate(parts):
        if part.text not in region_of:
            region_of[part.text] = Writer(names[i], part, captured, values, state).region()
            regions[names[i]] = region_of[part.text]
        region = region_of[part.text]
        path = part.segment.path
        for node, inner in zip(part.outputs, region.outputs, strict=True):
            values[node] = _unique(f"{path}.{inner.name}".removeprefix("."), taken)
        calls.append(
            Call(
                region=region.name,
                path=path,
                inputs=tuple(values[node] for node in part.inputs),
                state=part.state,
                outputs=tuple(values[node] for node in part.outputs),
            )
        )
    mutations, results = captured.results
    outputs = tuple(values[r] if isinstance(r, Node) else None for r in results)
    specs = {value: _spec(node) for node, value in values.items()}
    program = Program(
        name=name,
        regions=regions,
        calls=tuple(calls),
        values=specs,
        state=captured.state,
        inputs=tuple(captured.inputs),
        input_constants=tuple(captured.input_constants),
        in_spec=captured.in_spec,
        outputs=outputs,
        output_constants=tuple(None if isinstance(r, Node) else r for r in results),
        out_spec=captured.out_spec,
        loss=loss_of(outputs, lambda v: specs[v].is_loss, captured.out_spec),
        mutations={fqn: values[r] for fqn, r in zip(captured.mutated, mutations, strict=True)},
        fingerprint=fingerprint(parts, captured),
        symbols=symbols,
        precision=captured.precision,
        assumptions=captured.assumptions,
    )
    return program


class Writer:
    """Writes the graph of one region from the first part that is one."""

    def __init__(
        self, name: str, part: Part, captured: Captured, values: Mapping[Node, str], state: Mapping[str, Node]
    ) -> None:
        self.name, self.part, self.captured = name, part, captured
        self.graph = Graph()
        self.copies: dict[Node, Node] = {}
        self.state: dict[str, Node] = {}
        self.sizes: dict[sympy.Expr, Node] = {}
        self.values, self.state_nodes = values, state

    def region(self) -> Region:
        for node in self.part.inputs:
            label = self.values[node].removeprefix(f"{self.part.segment.stack}.")
            self.copies[node] = self._placeholder(_identifier(re.sub(r"^\d+\.", "", label)), node)
        for fqn in self.part.state:
            label = fqn.removeprefix(f"{self.part.segment.path}.")
            self.state[fqn] = self._placeholder(_identifier(label), self.state_nodes[fqn])
        inputs = tuple(self.copies[node].name for node in self.part.inputs)
        for node in self.part.nodes:
            self._op(node)
        for node, checkpoint in groups(self.part.nodes).items():
            self.copies[node].meta["checkpoint"] = checkpoint
        self.graph.output(tuple(self.copies[node] for node in self.part.outputs))
        state = tuple(node.name for node in self.state.values())
        return Region(name=self.name, graph=self.graph, inputs=inputs, state=state)

    def _placeholder(self, label: str, node: Node) -> Node:
        copy = self.graph.create_node("placeholder", label, name=label)
        copy.target = copy.name
        copy.meta = {"val": node.meta["val"], "needs_grad": node.meta["needs_grad"], "path": "", "source": ""}
        return copy

    def _op(self, node: Node) -> None:
        path = module_path(node)
        block = self.part.segment.path
        if block:
            path = path.removeprefix(f"{block}.") if path.startswith(f"{block}.") else ""
        args, kwargs = (self._argument(a) for a in (node.args, node.kwargs))
        copy = self.graph.create_node("call_function", node.target, args, kwargs, name=self._label(node, path))
        copy.meta = {"val": node.meta["val"], "needs_grad": node.meta["needs_grad"], "path": path, "source": source_of(node)}
        if isinstance(copy.meta["val"], list):
            copy.meta["val"] = tuple(copy.meta["val"])
        self.copies[node] = copy

    def _label(self, node: Node, path: str) -> str:
        if node.target is operator.getitem:
            return f"{self.copies[node.args[0]].name}_{node.args[1]}"  # type: ignore[index]
        op = str(node.target).removeprefix("aten.").removeprefix(f"{NAMESPACE}.").split(".")[0].strip("_")
        return _identifier("_".join([*path.split(".")[-2:], op]))

    def _argument(self, arg: Any) -> Any:
        if isinstance(arg, Node):
            if is_size(arg):
                return self._size(size_of(arg.meta["val"]))
            return self.state[self.captured.state_of[arg.name]] if arg.name in self.captured.state_of else self.copies[arg]
        if isinstance(arg, dict):
            return {key: self._argument(a) for key, a in arg.items()}
        if isinstance(arg, tuple | list):
            return type(arg)(self._argument(a) for a in arg)
        return arg

    def _size(self, size: int | sympy.Expr) -> int | Node:
        """A symbolic size, read off a tensor of the region that has it, or computed from such."""
        if isinstance(size, int) or size.is_Integer:
            return int(size)
        if size not in self.sizes:
            self.sizes[size] = self._read(size) or self._compute(size)
        return self.sizes[size]

    def _read(self, size: sympy.Expr) -> Node | None:
        for copy in self.copies.values():
            val = copy.meta["val"]
            if isinstance(val, torch.Tensor) and size in shape_of(val):
                return self._size_node(torch.ops.aten.sym_size.int, (copy, shape_of(val).index(size)), size)
        return None

    def _compute(self, size: sympy.Expr) -> Node:
        operators = {sympy.Add: operator.add, sympy.Mul: operator.mul}
        if type(size) not in operators:
            raise TraceError(f"region {self.name!r} needs the size {size}, which none of its tensors has")
        first, *rest = size.args
        total, value = self._size(first), first
        for term in rest:
            value = type(size)(value, term)
            total = self._size_node(operators[type(size)], (total, self._size(term)), value)
        assert isinstance(total, Node)
        return total

    def _size_node(self, target: Any, args: tuple[Any, ...], size: sympy.Expr) -> Node:
        node = self.graph.call_function(target, args)
        node.meta = {"val": size, "needs_grad": False, "path": "", "source": ""}
        return node


def region_names(parts: Sequence[Part]) -> dict[int, str]:
    """A name for the region of each part that is the first of its kind: "transformer.h.*", a block's path, or "start"/"end"."""
    names: dict[int, str] = {}
    taken: set[str] = set()
    for members in classes(parts).values():
        first = members[0]
        segment = parts[first].segment
        if segment.stack is not None:
            name = f"{segment.stack}.*".removeprefix(".") if len(members) > 1 else segment.path
        elif len(parts) == 1:
            name = "model"
        else:
            name = "start" if first == 0 else "end" if first == len(parts) - 1 else "middle"
        names[first] = _unique(name, taken)
    return names


def _spec(node: Node) -> TensorSpec:
    val = node.meta["val"]
    return TensorSpec(shape=shape_of(val), dtype=val.dtype, needs_grad=node.meta["needs_grad"])


def _identifier(text: str) -> str:
    name = re.sub(r"\W+", "_", text).strip("_")
    return name if name[:1].isalpha() else f"n{name}"


def _unique(name: str, taken: set[str]) -> str:
    """The name, or the first of name_1, name_2, ... that is free; it is taken from then on."""
    candidates = (name if i == 0 else f"{name}_{i}" for i in range(len(taken) + 1))
    free = next(candidate for candidate in candidates if candidate not in taken)
    taken.add(free)
    return free
