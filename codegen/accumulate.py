"""Gradient accumulation without communication: local gradients are added up until a backward that reduces them all.

The names are those of torch: `no_sync()` of DDP, `set_requires_gradient_sync()` of FSDP2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from autopar.codegen.backend import Build, Runs
from autopar.codegen.emit import bind
from autopar.codegen.executor import Executor, Tape
from autopar.codegen.unreduced import Cut, cut

Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class Graphs:
    """The graphs of one pair of halves, made when they are first needed."""

    cut: Cut
    name: str
    groups: Mapping[str, str]
    build: Build

    @cached_property
    def local(self) -> Runs:
        return self.build(bind(self.cut.local, self.groups), f"{self.name}Local", 0)

    @cached_property
    def closing(self) -> Runs:
        return self.build(bind(self.cut.closing, self.groups), f"{self.name}Closing", 0)

    @cached_property
    def reduction(self) -> Runs:
        return self.build(bind(self.cut.reduction, self.groups), f"{self.name}Reduction", 0)


class Unreduced:
    """The sums of local gradients of one executor's calls, by call."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.sums: dict[int, list[Tensor]] = {}
        made: dict[int, Graphs] = {}
        self.graphs = []
        for (call, _, halves, _, _), name in zip(executor.steps, executor.names, strict=True):
            if id(halves) not in made:
                found = cut(halves, len(call.inputs), len(call.state))
                made[id(halves)] = Graphs(found, f"{name}Backward", executor.groups, executor.emitted.build)
            self.graphs.append(made[id(halves)])

    def local(self, i: int, boxed: list[Tensor]) -> list[Tensor | None]:
        """The results of a call's backward; None for those that wait, whose local parts are added to the sums."""
        graphs = self.graphs[i]
        results: list[Tensor] = list(self.executor.run_graph(i, "backward", graphs.local, boxed))
        count = len(results) - len(graphs.cut.sums)
        results, waiting = results[:count], results[count:]
        # not in place: what a graph returns may share memory with something else
        before = self.sums.get(i)
        self.sums[i] = waiting if before is None else [a + b for a, b in zip(before, waiting, strict=True)]
        kept = iter(results)
        total = count + len(graphs.cut.results)
        return [None if k in graphs.cut.results else next(kept) for k in range(total)]

    def closing(self, i: int, boxed: list[Tensor]) -> list[Tensor | None]:
        """The results of a call's backward, those of its sums included."""
        sums = self.sums.pop(i)
        boxed += sums
        del sums
        return list(self.executor.run_graph(i, "backward", self.graphs[i].closing, boxed))

    def reduced(self) -> Gradients:
        """The gradients at rest of all sums, which are gone then."""
        found: Gradients = {}
        for i in sorted(self.sums, reverse=True):
            (call, _, halves, _, _), graphs, sums = self.executor.steps[i], self.graphs[i], self.sums.pop(i)
            inputs = len(call.inputs) + len(call.state)
            places = dict(enumerate(self.executor.coordinates, inputs))
            coordinates = [places[k] for k in halves.backward_inputs if k in places]
            results = self.executor.run_graph(i, "backward", graphs.reduction, [*coordinates, *sums])
            names = [(*call.inputs, *call.state)[halves.gradients[k]] for k in graphs.cut.results]
            add_up(found, dict(zip(names, results, strict=True)))
        return found


class GradientSync:
    """Whether backward reduces gradients, and what waits for it: per executor, since sums fit the graphs that made them."""

    def __init__(self) -> None:
        self.enabled = True
        self.unreduced: dict[Executor, Unreduced] = {}

    def backward(
        self, executor: Executor, tape: Tape, tangents: dict[str, Tensor], state: Mapping[str, Tensor]
    ) -> tuple[Gradients, Gradients]:
        """As `Executor.backward`; of gradients that wait there is nothing, until a backward with `enabled` gives all.

        One that fails leaves sums of some calls and not of others: none is kept, so that no part of them is taken for all."""
        waits = any(u.sums for u in self.unreduced.values())
        if self.enabled and not waits:
            return executor.backward(tape, tangents, state)
        try:
            return self.summing(executor, tape, tangents, state)
        except BaseException:
            self.forget()
            raise

    def summing(
        self, executor: Executor, tape: Tape, tangents: dict[str, Tensor], state: Mapping[str, Tensor]
    ) -> tuple[Gradients, Gradients]:
        own = self.of(executor)
        if not self.enabled:
            return executor.backward(tape, tangents, state, own.local)
        inputs, gradients = executor.backward(tape, tangents, state, own.closing if own.sums else None)
        for other in self.unreduced.values():
            add_up(gradients, other.reduced())
        return inputs, gradients

    def of(self, executor: Executor) -> Unreduced:
        if executor not in self.unreduced:
            self.unreduced[executor] = Unreduced(executor)
        return self.unreduced[executor]

    def forget(self) -> None:
        for unreduced in self.unreduced.values():
            unreduced.sums.clear()


def add_up(into: Gradients, more: Mapping[str, Tensor]) -> None:
    for name, gradient in more.items():
        into[name] = into[name] + gradient if name in into else gradient


class Accumulates(nn.Module):
    """What users call to accumulate gradients."""

    @cached_property
    def _gradient_sync(self) -> GradientSync:
        return GradientSync()

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Inside it, `backward` sends nothing for gradients; the next one outside reduces what was added up, with its own.

        >>> # with parallel.no_sync():
        >>> #     for part in parts[:-1]: (parallel(**part).loss / len(parts)).backward()
        >>> # (parallel(**parts[-1]).loss / len(parts)).backward()

        What waits takes memory that the plan did not count: `accumulation_bytes`. `.grad` of these parameters does not have
        it yet; `parallel.zero_grad()` drops it, `optimizer.zero_grad()` cannot. What a backward needs apart from gradients
        (parameters that are gathered again, activations) is still sent.
        """
        before = self._gradient_sync.enabled
        self._gradient_sync.enabled = False
        try:
            yield
        finally:
            self._gradient_sync.enabled = before

    def set_requires_gradient_sync(self, requires_gradient_sync: bool, *, recurse: bool = True) -> None:
        """Whether `backward` reduces gradients from now on, as `no_sync` does for a block. The name is that of FSDP2."""
        assert recurse, "all parameters are reduced together"
        self._gradient_sync.enabled = requires_gradient_sync

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, also those that wait to be reduced."""
        self._gradient_sync.forget()
        super().zero_grad(set_to_none)


def accumulation_bytes(executor: Executor) -> int:
    """What waits per device between micro-batches under `no_sync`: every local gradient that is reduced later, in full size."""
    return sum(graphs.cut.bytes for graphs in Unreduced(executor).graphs)
