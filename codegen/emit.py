"""Emission: program and plan in, the graphs that run out.

Per region type one local forward graph and one joint graph; per class of its calls one pair of forward and backward graphs.
Group names in the graphs are mesh axis names: `bind` puts the process groups of a real mesh in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from autopar.codegen.accept import accept
from autopar.codegen.backend import Build, eager
from autopar.codegen.local import Emitter, LocalRegion
from autopar.codegen.split import Halves, split
from autopar.ir.plan import Plan, PlannedClass
from autopar.ir.program import Program
from autopar.ops.flops import bound_arguments
from autopar.ops.joint import Joint, trace_joint

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class EmittedRegion:
    """A region type: its local forward graph, its joint graph, and the halves of each class of calls."""

    local: LocalRegion
    joint: Joint
    classes: tuple[Halves, ...]
    calls_per_class: tuple[int, ...]

    def halves_of(self, index: int) -> Halves:
        """The halves for the call with this index among the region's calls."""
        for halves, calls in zip(self.classes, self.calls_per_class, strict=True):
            if index < calls:
                return halves
            index -= calls
        raise IndexError(index)


@dataclass(frozen=True, kw_only=True)
class Emitted:
    """Everything that runs for one program under one plan; `build` makes what runs of a graph (`autopar.codegen.backend`)."""

    program: Program
    plan: Plan
    regions: Mapping[str, EmittedRegion]
    build: Build = eager

    def halves(self) -> list[tuple[EmittedRegion, Halves]]:
        """One entry per call of the program, in order."""
        seen: dict[str, int] = {}
        found = []
        for call in self.program.calls:
            region = self.regions[call.region]
            index = seen.get(call.region, 0)
            seen[call.region] = index + 1
            found.append((region, region.halves_of(index)))
        return found


def emit(program: Program, plan: Plan, device: str = "cpu", joint_graph: Callable[..., Joint] = trace_joint) -> Emitted:
    """Raises PlanError, naming the field, if the plan asks for the impossible. `joint_graph` does what `trace_joint` does."""
    regions = {}
    for name, accepted in accept(program, plan).items():
        local = Emitter(program, accepted, plan, device).local_region()
        joint = passing_on(joint_graph(local.graph, local.inputs, local.differentiated, device), len(local.region.inputs))
        classes = plan.regions[name].classes
        halves: dict[PlannedClass, Halves] = {}
        for i, keep in enumerate(classes):
            if (same := alike(keep)) not in halves:
                halves[same] = split(local, joint, keep, f"regions.{name}.classes.{i}", plan.bucket_bytes)
        regions[name] = EmittedRegion(
            local=local,
            joint=joint,
            classes=tuple(halves[alike(keep)] for keep in classes),
            calls_per_class=tuple(c.calls for c in classes),
        )
    return Emitted(program=program, plan=plan, regions=regions)


def alike(keep: PlannedClass) -> PlannedClass:
    """Equal for classes of calls that keep and redo the same: they share their graphs."""
    return keep.model_copy(update={"calls": 1})


def bind(graph: torch.fx.Graph, groups: Mapping[str, str]) -> torch.fx.Graph:
    """A copy of the graph with mesh axis names replaced by the names of process groups."""
    bound = torch.fx.Graph()
    copied: dict[torch.fx.Node, torch.fx.Node] = {}
    bound.output(bound.graph_copy(graph, copied))
    for node in bound.nodes:
        node.args = bound_arguments(node, groups)
    return bound


def passing_on(joint: Joint, inputs: int) -> Joint:
    """With contiguous gradients of the first `inputs` of its inputs: the graph that takes them was traced with such."""
    gradients = list(joint.gradients)
    output = joint.graph.output_node()
    for i, gradient in enumerate(gradients[:inputs]):
        if gradient is not None and not gradient.meta["val"].is_contiguous():
            with joint.graph.inserting_before(output):
                options: dict[str, Any] = {"memory_format": torch.contiguous_format}
                name = f"{gradient.name}_contiguous"
                copy = joint.graph.create_node("call_function", aten.clone.default, (gradient,), options, name=name)
            copy.meta = {**gradient.meta, "val": gradient.meta["val"].contiguous()}
            gradients[i] = copy
    output.args = ((joint.outputs, tuple(gradients)),)
    return replace(joint, gradients=tuple(gradients))
