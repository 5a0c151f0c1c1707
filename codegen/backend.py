"""What runs emitted graphs: PyTorch op by op ("eager"), or kernels that Inductor makes of each graph ("inductor").

Inductor gets emitted graphs, one after the other, collectives and all; each once, however many layers run it. Nothing is
traced, split or scheduled again, so what is sent and computed stays what the plan says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from autopar.codegen.boxed import boxed_module
from autopar.codegen.liveness import overwrite
from autopar.codegen.schedule import ALL_REDUCE, TOGETHER, WAIT, held_until_waited, started
from autopar.codegen.split import results_of
from autopar.errors import BackendError, InputError
from autopar.ops.collectives import all_gather_into, all_reduce_together
from autopar.ops.flops import communicates
from autopar.torch_private import compile_by_inductor, cpp_compiler, fake_mode

ALL_GATHER = torch.ops._c10d_functional.all_gather_into_tensor.default
Backend = Literal["eager", "inductor"]


class Runs(Protocol):
    """One graph, ready to run."""

    def forward(self, boxed: list[Tensor]) -> Sequence[Tensor]:
        """The results for a list of inputs, which is emptied."""


Build = Callable[[Graph, str, int], Runs]
"""(graph with the names of real process groups, a name, how many results come first that other graphs read)."""


def eager(graph: Graph, name: str, read: int = 0) -> Runs:
    """Takes the graph over."""
    overwrite(graph)
    for node in graph.nodes:
        if node.target is ALL_GATHER and node.meta["val"].device.type == "cpu":
            node.target = all_gather_into
        if node.target is torch.ops.aten.view.default:  # results of some kernels lie otherwise than torch's fake ones say
            node.target = torch.ops.aten.reshape.default
        if node.target is TOGETHER[ALL_REDUCE]:
            node.target = all_reduce_together
    module: Runs = boxed_module(graph, name)
    return module


def require_backend(backend: str) -> None:
    """Raises InputError for a name that is none."""
    if backend not in get_args(Backend):
        raise InputError(f'backend is "eager" or "inductor", not {backend!r}')


def require_compiler() -> None:
    """Raises BackendError if Inductor has nothing to compile with."""
    if cpp_compiler() is None:
        raise BackendError(
            'backend="inductor" found no C++ compiler, which it writes code for: install g++ (Debian, Ubuntu: apt install g++; '
            'conda: conda install gxx), or name one in the environment variable CXX, or take backend="eager"'
        )


@dataclass(frozen=True)
class Compiled:
    """`strides` of the inputs are what the code was made for; results beyond the first `count` are for nobody."""

    run: Callable[[list[Tensor]], Sequence[Tensor]]
    strides: tuple[tuple[int, ...], ...]
    count: int

    def forward(self, boxed: list[Tensor]) -> Sequence[Tensor]:
        for k, stride in enumerate(self.strides):
            if boxed[k].stride() != stride:
                boxed[k] = laid_out(boxed[k], stride)
        return self.run(boxed)[: self.count]


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """One graph as it was `emitted`, as ATen graph that Inductor `got`, and the `code` that it wrote."""

    name: str
    emitted: Graph
    got: GraphModule
    code: str


@dataclass
class Inductor:
    """Builds by Inductor. Two graphs that are equal, as text and in the shapes of their inputs, are one compilation."""

    made: dict[tuple[Any, ...], Compiled] = field(default_factory=dict)
    compilations: list[Compilation] = field(default_factory=list)

    def __call__(self, graph: Graph, name: str, read: int = 0) -> Runs:
        inputs = [like(n.meta["val"]) for n in graph.nodes if n.op == "placeholder"]
        key = (boxed_module(graph, "Same").code, tuple(inputs), read)
        if key not in self.made:
            self.made[key] = self.compiled(graph, name, inputs, read)
        return self.made[key]

    def compiled(self, graph: Graph, name: str, inputs: Sequence[Like], read: int) -> Compiled:
        """Raises BackendError if Inductor fails.

        What a collective sends that nobody waits for in this graph is a result as well, so that its memory is not used for
        anything else: afterwards the collective itself holds it. Results that other graphs read are contiguous, as those take
        them to be.
        """
        results = results_of(graph)
        sent = [n for result in results if is_on_its_way(result) for n in held_until_waited(result)]
        env: dict[Node, Node] = {}
        longer = Graph()
        longer.graph_copy(graph, env)
        longer.output((*(env[n] for n in results), *(env[n] for n in sent)))
        module = boxed_module(longer, name)

        def run(*given: Tensor) -> tuple[Tensor, ...]:
            found = module.forward(list(given))
            return (*(t.contiguous() for t in found[:read]), *found[read:])

        # where collectives are, the order of nodes is the plan's: their starts and waits stay where the schedule put them
        options = {"reorder_for_peak_memory": False} if any(map(communicates, graph.nodes)) else {}
        try:
            with torch.no_grad(), fake_mode():
                fakes = [i.empty() for i in inputs]
                got, kernels, code = compile_by_inductor(run, fakes, is_backward="Forward" not in name, options=options)
        except Exception as error:
            first = str(error).strip().partition("\n")[0]
            raise BackendError(
                f'Inductor failed on {name} ({len(graph.nodes)} nodes): {first}. backend="eager" runs these graphs without it'
            ) from error
        self.compilations.append(Compilation(name=name, emitted=graph, got=got, code=code))
        return Compiled(kernels, tuple(i.stride for i in inputs), len(results))


@dataclass(frozen=True)
class Like:
    """What code is compiled for, of an input."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def empty(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)


def like(value: Tensor) -> Like:
    return Like(tuple(value.shape), value.stride(), value.dtype, value.device)


def is_on_its_way(node: Node) -> bool:
    """Whether it is the result of a collective that the graph does not wait for."""
    return started(node) is not None and not any(user.target is WAIT for user in node.users)


def laid_out(tensor: Tensor, stride: tuple[int, ...]) -> Tensor:
    """The tensor, or a copy of it where elements lie otherwise; where a dim has one element its stride says nothing."""
    if all(a == b or n == 1 for a, b, n in zip(tensor.stride(), stride, tensor.shape, strict=True)):
        return tensor
    assert math.prod(tensor.shape), "without elements all strides are right"
    return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
