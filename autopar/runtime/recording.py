"""What a parallel module really does when: its graphs run node by node under torch's profiler, each node with a mark.

The profiler knows what nobody else does: when a collective ran that was only started (gloo's threads and nccl's streams report
to it). Marks say which node of which graph, of which call, was at work; so measured events have the names of predicted ones.
The same ops run in the same order, and let go of their arguments at the same places, so results are the same bit for bit.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.profiler import record_function

from autopar.codegen.backend import Runs
from autopar.codegen.emit import Emitted
from autopar.codegen.executor import Pass, run_graph
from autopar.codegen.listing import about
from autopar.codegen.liveness import OVERWRITING
from autopar.codegen.schedule import WAIT, started
from autopar.codegen.split import results_of
from autopar.codegen.variant import Variant
from autopar.ir.timeline import COMPUTE, WAITS
from autopar.ops.flops import collective_of
from autopar.ops.joint import alias_base

MARK = "autopar:"
"""Before the number of a mark, in what the profiler writes."""
KNOWN = ""
"""The track of a wait for what an earlier graph waited for: it is over at once, and no event."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A node of a graph that ran, or a whole graph that cannot be run node by node. `track`: COMPUTE, WAITS, KNOWN, or the mesh
    axis of a collective that starts."""

    call: str
    name: str
    track: str
    about: Mapping[str, Any]


@dataclass
class Step:
    """A forward, and its backward if there was one. Its first mark, and the first of its backward; `landing`: the collectives
    that backward graphs left to the executor to wait for, in this order."""

    emitted: Emitted
    forward: int
    backward: int | None = None
    landing: list[Mark] = field(default_factory=list)


class Nodes(Interpreter):
    """Runs a graph's nodes, those that compute, send or wait inside marks. `mark`: of a node its mark's text."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.mark: Any = None

    def boxed(self, boxed: list[Tensor]) -> Sequence[Tensor]:
        """The graph's results; empties the list of its arguments."""
        given: dict[Node, Any] = dict(zip(self.graph.find_nodes(op="placeholder"), boxed, strict=True))
        boxed.clear()
        results: Sequence[Tensor] = self.run(initial_env=given, enable_io_processing=False)
        return results

    def run_node(self, n: Node) -> Any:
        if n.op != "call_function" or (n.target is not WAIT and is_free(n)):
            return super().run_node(n)
        with record_function(self.mark(n)):
            return super().run_node(n)


def is_free(node: Node) -> bool:
    """Views, and parts of results: as predictions do, measurements leave them out."""
    if node.target in OVERWRITING:
        return False
    return alias_base(node) is not None or getattr(node.target, "__name__", "") == "getitem"


class Recorder:
    """Watches the executors of a module's programs, and makes a timeline of what the profiler saw."""

    def __init__(self, variants: Sequence[Variant]) -> None:
        self.variants = variants
        self.marks: list[Mark] = []
        self.steps: list[Step] = []
        self.nodes: dict[GraphModule, Nodes] = {}
        self.known: dict[Node, Mapping[str, Any]] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        for variant in self.variants:
            variant.executor.run_graph = functools.partial(self.run, variant)
        try:
            yield
        finally:
            for variant in self.variants:
                variant.executor.run_graph = run_graph

    def run(self, variant: Variant, i: int, phase: Pass, module: Runs, boxed: list[Tensor]) -> Sequence[Tensor]:
        """A graph of a call, as `codegen.executor.run_graph` does."""
        executor, name = variant.executor, name_of(variant, i, phase)
        lead = executor.legs_of(phase)[i].lead
        if (phase, i) == ("forward", 0) and (lead is None or module is executor.leads[lead]):
            self.steps.append(Step(variant.emitted, len(self.marks)))
        step = self.steps[-1]
        if phase == "backward" and step.backward is None:
            step.backward = len(self.marks)
        if not isinstance(module, GraphModule):
            with record_function(self.mark(name, name, COMPUTE, {})):
                return run_graph(i, phase, module, boxed)
        if module not in self.nodes:
            self.nodes[module] = Nodes(module)
        self.nodes[module].mark = functools.partial(self.mark_of, variant, i, phase)
        results = self.nodes[module].boxed(boxed)
        flying = executor.flights[i].flying
        if flying is not None and module is executor.steps[i][4]:
            step.landing += left_flying([results_of(module.graph)[k] for k in flying.bytes], name)
        return results

    def mark(self, call: str, name: str, track: str, about: Mapping[str, Any]) -> str:
        self.marks.append(Mark(call=call, name=name, track=track, about=about))
        return f"{MARK}{len(self.marks) - 1}"

    def mark_of(self, variant: Variant, i: int, phase: Pass, node: Node) -> str:
        if node.target is WAIT:
            return self.mark(name_of(variant, i, phase), *awaited(node.all_input_nodes[0]), {})
        if "of_next" in node.meta:
            i += variant.executor.towards(phase)
        sent = collective_of(node)
        if sent is not None:
            axes = {group: axis for axis, group in variant.executor.groups.items()}
            sent = replace(sent, axis=axes[sent.axis])
        if node not in self.known:
            self.known[node] = about(node, variant.executor.steps[i][1], sent)
        name = node.meta.get("of_next", node.name)
        return self.mark(name_of(variant, i, phase), name, COMPUTE if sent is None else sent.axis, self.known[node])


def name_of(variant: Variant, i: int, phase: Pass) -> str:
    """Of a call in a pass, for people."""
    call = variant.program.calls[i]
    return f"{call.path or call.region} {phase}"


def left_flying(results: Sequence[Node], call: str) -> list[Mark]:
    """The collectives that results of a backward graph come from."""
    return [Mark(call=call, name=name, track=track, about={}) for name, track in map(awaited, results)]


def awaited(result: Node) -> tuple[str, str]:
    """The name of the collective that is waited for with this result, and the track: those that travel together arrive
    together, and the wait for the first stands for all."""
    start = started(result)
    if start is None:
        return result.name, KNOWN
    return start.name, WAITS if start is result or result.args[1] == 0 else KNOWN
