"""The emitted graphs as text for people: the very nodes that run, with shapes, what of the model they are, and conversions.

One line per op, `name: dtype[shape] = op(arguments)`, on one device's shapes. Before the ops of each step stands what it is:
the module and source line of the model's code, or the conversion with its name from the table in docs/placements.md. Per region
type there is its forward program, which has conversions as calls, and a pair of graphs per set of calls that keep the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.fx import Graph, Node

from autopar.codegen.emit import Emitted, EmittedRegion
from autopar.codegen.readable import identifier
from autopar.codegen.split import Halves
from autopar.ir.conversion import Conversion
from autopar.ir.mesh import MeshSpec
from autopar.ops.flops import Collective
from autopar.torch_private import OpOverload

DTYPES = {"float": "f", "bfloat": "bf", "int": "i", "uint": "u", "complex": "c"}


def listing(emitted: Emitted) -> str:
    """All graphs of a program."""
    mesh = emitted.plan.mesh
    sizes = ", ".join(f"{name}={size}" for name, size in zip(mesh.names, mesh.sizes, strict=True))
    lines = [f"# {emitted.program.name} on one device of mesh {sizes}", ""]
    lines += calls(emitted)
    for name, region in emitted.regions.items():
        paths = [c.path or c.region for c in emitted.program.calls if c.region == name]
        lines += ["", "", f"# {name}: {', '.join(paths)}" if len(paths) > 1 else f"# {name}", ""]
        lines += graph_lines(region.local.graph, identifier(name), region, mesh)
        pairs = pairs_of_graphs(region, paths)
        for number, (halves, whose) in enumerate(pairs):
            suffix, those = (f"_{number}", f"  # {', '.join(whose)}") if len(pairs) > 1 else ("", "")
            for phase, graph in (("forward", halves.forward), ("backward", halves.backward)):
                lines += ["", *graph_lines(graph, f"{identifier(name)}_{phase}{suffix}", region, mesh, those)]
    return "\n".join(lines) + "\n"


def pairs_of_graphs(region: EmittedRegion, paths: Sequence[str]) -> list[tuple[Halves, list[str]]]:
    """The different pairs of graphs of a region, each with the calls that run it."""
    found: dict[int, tuple[Halves, list[str]]] = {}
    for index, path in enumerate(paths):
        halves = region.halves_of(index)
        found.setdefault(id(halves), (halves, []))[1].append(path)
    return list(found.values())


def calls(emitted: Emitted) -> Iterator[str]:
    """The program: which region is called with what."""
    program, plan = emitted.program, emitted.plan
    yield f"def {identifier(program.name)}({', '.join(identifier(n) for n in program.inputs if n)}):"
    for call in program.calls:
        results = ", ".join(f"{identifier(v)}: [{plan.boundaries[v]}]" for v in call.outputs)
        given = ", ".join(map(identifier, call.inputs))
        yield f"    {results} = {identifier(call.region)}({given})  # {call.path or call.region}"
    yield f"    return {', '.join(identifier(v) for v in program.outputs if v)}"


def graph_lines(graph: Graph, name: str, region: EmittedRegion, mesh: MeshSpec, those: str = "") -> Iterator[str]:
    yield f"def {name}({', '.join(n.name for n in graph.nodes if n.op == 'placeholder')}):{those}"
    said = ""
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if (now := step(node, region, mesh)) != said and now:
            yield f"    # {now}"
        said = now
        yield f"    {node.name}{typed(traced(node, region))} = {expression(node)}"
    yield f"    return {words(graph.output_node().args[0])}"


def traced(node: Node, region: EmittedRegion) -> Node:
    """The node that knows the value: of a forward program its twin in the joint graph."""
    found = region.joint.value.get(node.name) if node.graph is region.local.graph else node
    return found if isinstance(found, Node) else node


def step(node: Node, region: EmittedRegion, mesh: MeshSpec) -> str:
    """Which step of the region a node is part of, in words: an op of the model with its line, or a conversion."""
    local = local_of(node, region)
    if local is None:
        return "sum of gradients" if node.meta.get("step") is None and node.name.startswith("grad_") else ""
    again = "again: " if node.meta.get("again") else ""
    back = "gradient of " if node.name.startswith("grad_") else ""
    if (converted := local.meta.get("conversion")) is not None:
        tensor, before, after = converted
        return f"{again}{back}{conversion(tensor, before, after, mesh)}"
    if (parameter := local.meta.get("cast")) is not None:
        return f"{again}{back}{parameter} in the dtype that is computed in"
    origin = region.local.region.nodes[local.meta["origin"]]
    return again + back + " ".join(filter(None, (origin.meta.get("path") or origin.name, origin.meta.get("source"))))


def local_of(node: Node, region: EmittedRegion) -> Node | None:
    """The node of the region's forward program that a node is of; None for sums of gradients and the like."""
    if node.graph is region.local.graph:
        return node
    return next((n for n in region.local.graph.nodes if n.name == node.meta.get("step")), None)


def about(node: Node, region: EmittedRegion, sent: Collective | None = None) -> dict[str, Any]:
    """For people and tools: the op, what of the model it is, and what a collective sends (`sent`, with the mesh axis)."""
    found: dict[str, Any] = {"op": operation(node.target), "backward": node.name.startswith("grad_")}
    if node.meta.get("again"):
        found["again"] = True
    if (local := local_of(node, region)) is not None:
        if (converted := local.meta.get("conversion")) is not None:
            tensor, before, after = converted
            found |= {"conversion": Conversion(before, after).kind.name, "tensor": tensor}
            found["placements"] = f"[{before}] -> [{after}]"
        elif (parameter := local.meta.get("cast")) is not None:
            found["cast"] = parameter
        else:
            origin = region.local.region.nodes[local.meta["origin"]]
            found |= {"module": origin.meta.get("path") or origin.name, "source": origin.meta.get("source") or ""}
    return found if sent is None else found | {"collective": sent.kind, "axis": sent.axis, "bytes": sent.bytes}


def conversion(tensor: str, before: Any, after: Any, mesh: MeshSpec) -> str:
    """As in "gather mlp_fc_weight on gpu: [S(0), R] -> [R, R]"."""
    found = Conversion(before, after)
    return f"{found.kind.name} {tensor} on {mesh.names[found.axis]}: [{before}] -> [{after}]"


def expression(node: Node) -> str:
    if getattr(node.target, "__name__", "") == "getitem":
        return f"{node.args[0]}[{node.args[1]}]"
    given = [words(a) for a in node.args] + [f"{k}={words(v)}" for k, v in node.kwargs.items()]
    converts = Conversion(*node.meta["conversion"][1:]).kind.name if "conversion" in node.meta else None
    return f"{converts or operation(node.target)}({', '.join(given)})"


def operation(target: Any) -> str:
    """aten.mm, c10d.all_reduce, and our own functions by their names."""
    if isinstance(target, OpOverload):
        return str(target.overloadpacket).replace("_c10d_functional.", "c10d.")
    return str(getattr(target, "__name__", target))


def words(value: Any) -> str:
    if isinstance(value, tuple | list):
        inside = ", ".join(map(words, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' if len(value) == 1 else ''})"
    return (
        value.name if isinstance(value, Node) else str(value) if isinstance(value, torch.dtype | torch.device) else repr(value)
    )


def typed(node: Node) -> str:
    """ ": f32[4, 8]"; nothing for nodes whose values are not known, or several."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return ""
    kind, size = str(value.dtype).removeprefix("torch."), ""
    if (letters := kind.rstrip("0123456789")) in DTYPES:
        kind, size = DTYPES[letters], kind.removeprefix(letters)
    return f": {kind}{size}[{', '.join(map(str, value.shape))}]"
