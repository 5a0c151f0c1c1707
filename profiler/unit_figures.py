"""What a unit of a program does, in closed form: traced once with its backward, sizes symbolic where the program's are.

The traced figures are torch's own: a kernel's shapes are expressions because its fake inputs have symbolic sizes, so that
nothing is fitted and attributes that spell out a size (a slice's end, an arange) are no special case. Units are traced in
execution order, each on the memory layout that the one before left, so a reshape copies here where it copies in the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch

from autopar.errors import TraceError
from autopar.ir.program import Region, Size
from autopar.ops.flops import node_flops
from autopar.ops.joint import Joint, TensorLike, alias_base, owner, trace_joint
from autopar.ops.units import Unit, is_size, needs_grad, units
from autopar.torch_private import as_symbolic, fixed_sizes, size_of, symbolic_mode

INPUT, STATE = "input", "state"


@dataclass(frozen=True)
class Storage:
    """Memory that one or more tensors of a region share: made by `owner`, a unit's name, or an input or state slot."""

    kind: str
    owner: str
    name: str
    bytes: Size


@dataclass(frozen=True)
class Kernel:
    """One op that runs: FLOPs, bytes read and written, dtype name. Views and arithmetic on sizes are none."""

    flops: Size
    bytes: Size
    dtype: str


@dataclass(frozen=True, kw_only=True)
class UnitFigures:
    """Of one execution. `saved`: what backward reads of what exists in forward, inputs and state included.

    `working`: bytes alive beside state, gradients of state and saved values, at each kernel of forward and backward.
    """

    unit: Unit
    forward: tuple[Kernel, ...]
    backward: tuple[Kernel, ...]
    saved: tuple[Storage, ...]
    working: tuple[Size, ...]


@dataclass(frozen=True, kw_only=True)
class RegionFigures:
    """`outputs` holds, per region output, whose memory it is."""

    region: Region
    units: tuple[UnitFigures, ...]
    outputs: tuple[Storage, ...]


class Tracing:
    """Figures of a region's units, in execution order; `live` are the nodes through which gradients flow."""

    def __init__(self, region: Region, live: Iterable[torch.fx.Node], symbols: Mapping[str, sympy.Symbol], device: str) -> None:
        self.region, self.live, self.symbols, self.device = region, set(live), symbols, device
        self.values: dict[torch.fx.Node, torch.Tensor] = {}
        self.storage: dict[torch.fx.Node, Storage] = {}
        for node in region.graph.find_nodes(op="placeholder"):
            self.values[node] = node.meta["val"]
            kind = INPUT if node.name in region.inputs else STATE
            self.storage[node] = Storage(kind, node.name, "", tensor_bytes(node.meta["val"]))
        self.mode = mode_of(region)

    def figures(self) -> RegionFigures:
        found = tuple(self.unit(unit) for unit in units(self.region))
        return RegionFigures(region=self.region, units=found, outputs=tuple(self.storage[n] for n in self.region.outputs))

    def unit(self, unit: Unit) -> UnitFigures:
        joint = self.trace(unit)
        if fixed := fixed_sizes(self.mode, self.symbols):
            name, size = next(iter(fixed.items()))
            raise TraceError(
                f"{unit.name} ({', '.join(dict.fromkeys(str(n.target) for n in unit.nodes))}) in {self.region.name} fixes the "
                f"dynamic dim {name!r} to {size}; leave it out of `dynamic`, or make the op's code work for any size"
            )
        owners: dict[torch.fx.Node, Storage] = {}
        for node in (*joint.inputs, *joint.forward):
            if tensors_of(node) and owner(node) is node:
                owners[node] = Storage("made", unit.name, node.name, node_bytes(node))
        owners |= {joint.inputs[i]: self.storage[n] for i, n in enumerate(unit.operands)}
        for result, node in zip(unit.results, joint.outputs, strict=True):
            self.values[result], self.storage[result] = node.meta["val"], owners[owner(node)]
        read = [owner(n) for k in joint.backward if tensors_of(k) for n in k.all_input_nodes]
        saved = tuple(dict.fromkeys(owners[n] for n in read if n in owners))
        return UnitFigures(
            unit=unit,
            forward=tuple(kernel(n) for n in joint.forward if runs(n)),
            backward=tuple(kernel(n) for n in joint.backward if runs(n)),
            saved=saved,
            working=(*self.working_forward(joint, owners, saved), *self.working_backward(joint, unit)),
        )

    def trace(self, unit: Unit) -> Joint:
        graph = torch.fx.Graph()
        env: dict[torch.fx.Node, torch.fx.Node] = {}
        inputs = []
        for i, node in enumerate(unit.operands):
            env[node] = graph.placeholder(f"operand_{i}")
            inputs.append(like(self.values[node], needs_grad(node)))
        for name, symbol in self.symbols.items():
            # no unit reads these; they tell the tracer of every symbol, which a unit without operands could not otherwise
            graph.placeholder(f"symbol_{name}")
            inputs.append(TensorLike(shape=(as_symbolic(symbol, self.mode),), dtype=torch.bool, needs_grad=False))
        for node in unit.nodes:
            for size in (n for n in node.all_input_nodes if is_size(n) and n not in env):
                env[size] = graph.call_function(SizeOf(as_symbolic(size.meta["val"], self.mode)), ())
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
            moved = {**kwargs, "device": torch.device(self.device)} if "device" in kwargs else kwargs
            env[node] = graph.call_function(node.target, args, moved)  # type: ignore[arg-type]
        graph.output(tuple(env[node] for node in unit.results))
        return trace_joint(graph, inputs, [n in self.live for n in unit.results], self.device, symbolic_mode(self.mode))

    def working_forward(self, joint: Joint, owners: Mapping[torch.fx.Node, Storage], saved: Iterable[Storage]) -> list[Size]:
        kept = set(saved)
        free = {n: s.bytes for n, s in owners.items() if s.kind != STATE and s not in kept}
        return alive_bytes([n for n in joint.inputs if n in free], joint.forward, joint.outputs, free)

    def working_backward(self, joint: Joint, unit: Unit) -> list[Size]:
        rests = {joint.gradients[i] for i, n in enumerate(unit.operands) if self.storage[n].kind == STATE}
        nodes = [n for n in joint.backward if tensors_of(n)]
        resting = {owner(n) for n in rests if n is not None}
        made = {n: node_bytes(n) for n in (*joint.tangents, *nodes) if owner(n) is n and n not in resting}
        return alive_bytes(joint.tangents, nodes, [g for g in joint.gradients if g is not None], made)


class SizeOf:
    """A call that gives a size: graphs hold nodes and numbers, and a symbolic size is neither."""

    def __init__(self, size: int | torch.SymInt) -> None:
        self.size, self.__name__, self.__module__ = size, "size_of", __name__

    def __call__(self) -> int | torch.SymInt:
        return self.size


def mode_of(region: Region) -> Any:
    """The fake mode of a region's values, with the program's symbols in it."""
    return next(v.fake_mode for node in region.graph.nodes for v in tensors_of(node))  # type: ignore[attr-defined]


def like(value: torch.Tensor, grad: bool) -> TensorLike:
    return TensorLike(shape=tuple(value.shape), dtype=value.dtype, needs_grad=grad, stride=tuple(value.stride()))


def tensors_of(node: torch.fx.Node) -> list[torch.Tensor]:
    value = node.meta.get("val")
    return [v for v in (value if isinstance(value, tuple | list) else (value,)) if isinstance(v, torch.Tensor)]


def tensor_bytes(value: torch.Tensor) -> Size:
    """Bytes of a dense tensor of that shape."""
    total: Size = value.dtype.itemsize
    for n in value.shape:
        total = total * size_of(n)
    return total


def node_bytes(node: torch.fx.Node) -> Size:
    return sum(map(tensor_bytes, tensors_of(node)))


def runs(node: torch.fx.Node) -> bool:
    """Whether a kernel runs: not for views, results picked from several, and sizes."""
    return bool(tensors_of(node)) and alias_base(node) is None and getattr(node.target, "__name__", "") != "getitem"


def kernel(node: torch.fx.Node) -> Kernel:
    moved = sum(node_bytes(n) for n in node.all_input_nodes) + node_bytes(node)
    return Kernel(node_flops(node), moved, str(tensors_of(node)[0].dtype).removeprefix("torch."))


def alive_bytes(
    given: Sequence[torch.fx.Node],
    nodes: Sequence[torch.fx.Node],
    ends: Iterable[torch.fx.Node],
    bytes: Mapping[torch.fx.Node, Size],
) -> list[Size]:
    """At each kernel, the sum of `bytes` of the values that exist: from when made, or given, to the last use or the end."""
    last: dict[torch.fx.Node, int] = {}
    for i, node in enumerate(nodes):
        for source in (node, *node.all_input_nodes):
            last[owner(source)] = i
    last |= {owner(n): len(nodes) for n in ends}
    born = dict.fromkeys(given, 0) | {n: i for i, n in enumerate(nodes)}
    spans = [(born[n], last.get(n, born[n]), b) for n, b in bytes.items() if n in born]
    return [sum(b for start, end, b in spans if start <= i <= end) for i, node in enumerate(nodes) if runs(node)]
