"""From one joint graph to a forward and a backward graph: the plan says what is kept, the rest is made again.

Backward may read a forward value only if the plan keeps it, or keeps what it takes to redo it. Views are free: the owner of
the memory is what is kept. A plan that does not provide what backward needs is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from autopar.codegen.accept import refused
from autopar.codegen.bucket import bucket
from autopar.codegen.local import LocalRegion
from autopar.codegen.schedule import schedule
from autopar.ir.placement import Placement
from autopar.ir.plan import PlannedClass
from autopar.ops.joint import Joint, alias_base, owner

NO_BUCKETS: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Halves:
    """`forward`: the joint graph's inputs -> outputs, then saved values. `backward`: `backward_inputs` (positions among
    the joint graph's inputs that it takes again: state and coordinates), saved values, tangents -> gradients.

    `redone` units and `reconverted` conversions really run again: less than the plan asks for where values share memory.
    `gradients` are the positions of the inputs that the backward graph's results belong to.
    """

    forward: torch.fx.Graph
    backward: torch.fx.Graph
    redone: frozenset[str]
    reconverted: frozenset[tuple[str, Placement, Placement]]
    saved: tuple[str, ...]
    backward_inputs: tuple[int, ...]
    gradients: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Provided:
    """What a plan gives the backward of one class of calls to read.

    `state`: parameters, buffers and coordinates, which are there anyway; `kept`: owners of the values that are saved;
    `redone`: forward nodes that may run again; casts of parameters always may, next to where these rest. `viewed`: owners of
    what kept insides of units are views of: a copy that the profile saw inside may be none at these sizes (a dim of one), and
    then what is read there is saved, if it is not there otherwise.
    """

    state: frozenset[torch.fx.Node]
    kept: frozenset[torch.fx.Node]
    redone: frozenset[torch.fx.Node]
    viewed: frozenset[torch.fx.Node]


def provided(local: LocalRegion, joint: Joint, keep: PlannedClass) -> Provided:
    step = {n.name: n.meta for n in local.graph.nodes}
    conversions = {(c.tensor, c.before, c.after) for c in keep.reconverted}
    return Provided(
        state=frozenset(joint.inputs[len(local.region.inputs) :]),
        kept=frozenset(kept_tensors(local, joint, keep) | kept_insides(local, joint, keep)),
        redone=frozenset(
            n
            for n, o in joint.origin.items()
            if step[o].get("unit") in keep.redone or step[o].get("conversion") in conversions or "cast" in step[o]
        ),
        viewed=frozenset(owner(n) for n, o in joint.origin.items() if step[o].get("unit") in keep.kept_internals),
    )


def kept_tensors(local: LocalRegion, joint: Joint, keep: PlannedClass) -> set[torch.fx.Node]:
    """Owners of the tensors at placements that the plan keeps, and of the user's batch."""
    inputs = {n.name: given for n, given in zip(placeholders(local.graph), joint.inputs, strict=True)}
    names = [*local.resident, *(local.values[kept.tensor, kept.placement] for kept in keep.kept)]
    return {inputs[name] if name in inputs else owner(joint.value[name]) for name in names}


def kept_insides(local: LocalRegion, joint: Joint, keep: PlannedClass) -> set[torch.fx.Node]:
    """Owners of what the plan keeps of the insides of units: their values that are no tensors at placements."""
    step = {n.name: n.meta for n in local.graph.nodes}
    found = [joint.value.get(name) for name in local.values.values()]
    tensors = {owner(node) for node in found if isinstance(node, torch.fx.Node)}
    inside = {n for n, o in joint.origin.items() if step[o].get("unit") in keep.kept_internals}
    return {n for n in inside if owner(n) is n and n not in tensors}


class NotProvided(Exception):
    """Backward reads the value of a forward node that is neither kept nor may be made again."""

    def __init__(self, node: torch.fx.Node) -> None:
        super().__init__(node.name)
        self.node = node


class Backward:
    """The backward graph of one class of calls while it is built, with what it turned out to take.

    `saved` and `taken`: values of forward, and inputs among the state, that it reads.
    """

    def __init__(self, joint: Joint, given: Provided) -> None:
        self.joint, self.given = joint, given
        self.graph = torch.fx.Graph()
        self.env = {tangent: copy_placeholder(self.graph, tangent) for tangent in joint.tangents}
        self.saved: list[torch.fx.Node] = []
        self.taken: list[torch.fx.Node] = []
        for node in joint.backward:
            self.need(node)
        self.gradients = {i: self.need(g) for i, g in enumerate(joint.gradients) if g is not None}
        self.finish()

    def need(self, node: torch.fx.Node) -> torch.fx.Node:
        """The node's copy in this graph: it is read from the state or what is kept, or else made (again)."""
        if node not in self.env:
            if node in self.given.state:
                self.taken.append(node)
                self.env[node] = copy_placeholder(self.graph, node)
            elif self.is_saved(node):
                self.saved.append(node)
                self.env[node] = copy_placeholder(self.graph, node)
            else:
                self.env[node] = self.make(node)
        return self.env[node]

    def is_saved(self, node: torch.fx.Node) -> bool:
        if node in self.given.kept or (node in self.joint.origin and is_empty(node)):
            return True
        return node in self.given.viewed and not self.may_be_made(node)

    def may_be_made(self, node: torch.fx.Node) -> bool:
        """A gradient, or a forward node that may run again."""
        again = node in self.joint.origin
        return node.op != "placeholder" and (not again or node in self.given.redone or self.is_incidental(node))

    def make(self, node: torch.fx.Node) -> torch.fx.Node:
        if not self.may_be_made(node):
            raise NotProvided(node)
        again = node in self.joint.origin
        for source in node.all_input_nodes:
            self.need(source)
        new = copy_node(self.graph, node, self.env, "_again" if again else "")
        new.meta["again"] = again
        return new

    def made_again(self) -> list[torch.fx.Node]:
        """Forward nodes that run again here and cost something."""
        alive = set(self.graph.nodes)
        return [
            n
            for n, new in self.env.items()
            if n in self.joint.origin and new.op != "placeholder" and new in alive and not self.is_incidental(n)
        ]

    def is_incidental(self, node: torch.fx.Node) -> bool:
        """Whether no plan speaks of it: a view, one of several results, or a copy that an op made of what it reads, to have it
        contiguous (profiles know contiguous operands only)."""
        if is_free(node):
            return True
        made = self.joint.value.get(self.joint.origin[node])
        return node.target is torch.ops.aten.clone.default and not (isinstance(made, torch.fx.Node) and owner(made) is node)

    def finish(self) -> None:
        """Results, and the placeholders in their order: state, saved values, tangents."""
        self.graph.output(tuple(self.gradients.values()))
        prune(self.graph)
        first = next(n for n in self.graph.nodes if n.op != "placeholder")
        for node in (*self.taken, *self.saved, *self.joint.tangents):
            first.prepend(self.env[node])


def is_free(node: torch.fx.Node) -> bool:
    """Whether making it again costs nothing: a view, or one of several results."""
    return alias_base(node) is not None or getattr(node.target, "__name__", "") == "getitem"


def is_empty(node: torch.fx.Node) -> bool:
    """Whether it has no elements, as what batch norm in eval mode saves for its backward: keeping it takes nothing."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.numel() == 0


def forward_half(joint: Joint, saved: Iterable[torch.fx.Node]) -> torch.fx.Graph:
    """The joint graph's forward nodes; returns its outputs, then what is saved."""
    graph = torch.fx.Graph()
    env = {n: copy_placeholder(graph, n) for n in joint.inputs}
    for node in joint.forward:
        env[node] = copy_node(graph, node, env)
    graph.output((*(env[n] for n in joint.outputs), *(env[n] for n in saved)))
    prune(graph)
    return graph


def split(
    local: LocalRegion, joint: Joint, keep: PlannedClass, field: str, bucket_bytes: Mapping[str, int] = NO_BUCKETS
) -> Halves:
    """Forward and backward of the calls that keep this; raises PlanError, naming the plan's `field`, if it is too little."""
    steps = {n.name: n.meta for n in local.graph.nodes}
    try:
        backward = Backward(joint, provided(local, joint, keep))
    except NotProvided as lacking:
        made_by = steps.get(joint.origin.get(lacking.node, ""), {})
        what = made_by.get("unit") or made_by.get("conversion", ("its inputs",))[0]
        raise refused(field, f"backward reads {what}, which is neither kept nor made again") from lacking
    again = [steps[joint.origin[n]] for n in backward.made_again()]
    forward = forward_half(joint, backward.saved)
    inputs = len(local.region.inputs)
    passed_on = {n for n, k in zip(results_of(backward.graph), backward.gradients, strict=True) if k < inputs}
    bucket(backward.graph, bucket_bytes, passed_on)
    schedule(forward, placeholders(forward)[inputs:])
    schedule(backward.graph, placeholders(backward.graph)[: len(backward.taken)])
    return Halves(
        forward=forward,
        backward=backward.graph,
        redone=frozenset(step["unit"] for step in again if "unit" in step),
        reconverted=frozenset(step["conversion"] for step in again if "conversion" in step),
        saved=tuple(n.name for n in backward.saved),
        backward_inputs=tuple(joint.inputs.index(n) for n in backward.taken),
        gradients=tuple(backward.gradients),
    )


def placeholders(graph: torch.fx.Graph) -> list[torch.fx.Node]:
    return [n for n in graph.nodes if n.op == "placeholder"]


def results_of(graph: torch.fx.Graph) -> tuple[torch.fx.Node, ...]:
    (results,) = graph.output_node().args
    assert isinstance(results, tuple | list)
    return tuple(node for node in results if isinstance(node, torch.fx.Node))


def copy_placeholder(graph: torch.fx.Graph, node: torch.fx.Node, prefix: str = "") -> torch.fx.Node:
    name = prefix + node.name
    new = graph.create_node("placeholder", name, name=name)
    new.meta = dict(node.meta)
    return new


def copy_node(
    graph: torch.fx.Graph, node: torch.fx.Node, env: Mapping[torch.fx.Node, torch.fx.Node], suffix: str = ""
) -> torch.fx.Node:
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
    new = graph.create_node(node.op, node.target, args, kwargs, name=node.name + suffix)
    new.meta = dict(node.meta)
    return new


def prune(graph: torch.fx.Graph) -> None:
    """Remove what nothing reads; collectives included (their results are what they are run for)."""
    graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output"))
