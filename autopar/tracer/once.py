"""Tracing each kind of block once.

While the model's code runs, the first call of a block is traced as it is, between two markers. A later call of a block that
its code cannot tell from the first (same class, same parameters and buffers by shape, same arguments by shape, equal values of
every attribute that was read) is not traced: one op stands for it, with results of the known shapes. Afterwards `expand` puts
copies of the traced nodes there, so nobody can see the difference. The rest of the model's code, between blocks, always runs.

Where anything is in doubt (hooks, caches, written buffers, closures over tensors, side effects) the block is traced in full.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import nn
from torch.fx import Graph

from autopar.torch_private import graph_if_traced, unwatched
from autopar.tracer.appearance import Unclear
from autopar.tracer.blocks import EVERYTHING, Block, Differences, become, find, own, record_reads
from autopar.tracer.dice import dice, thrown
from autopar.tracer.markers import markers, unrepeatable
from autopar.tracer.replica import replicate
from autopar.tracer.sealed import Seal, Sealed, seal_repetitions
from autopar.tracer.views import Result, View, looks_of, result_of

logger = logging.getLogger("autopar")
Progress = Callable[[str], None]


class Unrepeatable(Exception):
    """What stands in for a block turned out not to be like it: the model has to be traced in full."""


@dataclass(frozen=True, kw_only=True)
class Template:
    """A traced call of a block; `reads` are attributes that its code read, of those in which blocks of its kind differ."""

    index: int
    block: Block
    view: View
    result: Result
    reads: frozenset[tuple[str, str]]
    graph: Graph

    def fits(self, view: View) -> bool:
        differing = self.view.differing(view)
        return differing is not None and not any(key in self.reads or (key[0], EVERYTHING) in self.reads for key in differing)


@dataclass
class Once:
    """One trace of a model: `model` is to be exported in the place of the original, `expand` its graph afterwards.

    Raises Unsealed while it is traced if a block is needed that was taken for a repetition: make another with it `opened`,
    and with the kinds that were `refused`.
    """

    original: nn.Module
    progress: Progress = lambda stage: None
    opened: set[str] = field(default_factory=set)
    refused: set[Hashable] = field(default_factory=set)
    sealing: bool = True
    templates: dict[int, Template] = field(default_factory=dict)
    calls: list[tuple[Template, Block]] = field(default_factory=list)
    reading: list[set[tuple[int, str]]] = field(default_factory=list)
    always: set[tuple[int, str]] = field(default_factory=set)
    differences: dict[Hashable, Differences] = field(default_factory=dict)
    seal: Seal = field(default_factory=Seal)
    entered: int = 0

    def __post_init__(self) -> None:
        self.model = replicate(self.original)
        self.blocks = find(self.model)
        kinds: dict[Hashable, list[Block]] = {}
        for block in self.blocks:
            kinds.setdefault(block.kind, []).append(block)
        for kind, members in kinds.items():
            if kind in self.refused:
                continue
            try:
                self.differences[kind] = Differences.among(members)
            except Unclear:
                self.refused.add(kind)
        if self.sealing:
            alike = {kind: members for kind, members in kinds.items() if kind not in self.refused}
            groups = {key: group for found in self.differences.values() for key, group in found.groups.items()}
            sealed = seal_repetitions(self.model, alike, groups, self.opened, self.seal)
            for block in self.blocks:
                block.sealed = any(id(part) in sealed for part in block.parts.values())
        watched: dict[int, nn.Module] = {}
        for block in self.blocks:
            found = self.differences.get(block.kind)
            watched |= {id(part): part for path, part in block.parts.items() if found and path in found.parts}
        for part in watched.values():
            record_reads(part, self._note)
        for block in self.blocks:
            self._stand_in(block)

    @cached_property
    def owners(self) -> dict[int, int]:
        """In a trace: id of each fake parameter or buffer of the model to that of the original."""
        copies = dict(self.model.named_modules(remove_duplicate=False))
        found: dict[int, int] = {}
        for path, module in self.original.named_modules(remove_duplicate=False):
            for table in ("_parameters", "_buffers"):
                held, fakes = own(module)[table], own(copies[path])[table]
                if not isinstance(fakes, Sealed):
                    found |= {id(fakes[name]): id(tensor) for name, tensor in held.items() if tensor is not None}
        return found

    def _note(self, owner: int, name: str) -> None:
        for reads in self.reading:
            reads.add((owner, name))
        if name == EVERYTHING and not self.reading:
            self.always.add((owner, name))

    def _stand_in(self, block: Block) -> None:
        once, kind = self, type(block.module)

        @functools.wraps(kind.forward)
        def stand_in(this: Any, *args: Any, **kwargs: Any) -> Any:
            return once.call(block, functools.partial(kind.forward, this), args, kwargs)

        become(block.module, {"forward": stand_in})

    def call(self, block: Block, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the block returns for these arguments; a placeholder of it if an equal call has been traced."""
        graph = graph_if_traced()
        if graph is None or block.kind in self.refused:
            return forward(*args, **kwargs)
        view = self._view(block, args, kwargs)
        if view is None and block.sealed:
            self.seal.refuse()
        if view is None:
            return forward(*args, **kwargs)
        for template in self.templates.values():
            if template.block.kind == block.kind and template.graph is graph and template.fits(view) and _intact(template):
                return self._again(template, block, view)
        if block.sealed:
            self.seal.refuse(block.path)
        return self._first(block, view, graph, forward, args, kwargs)

    def _again(self, template: Template, block: Block, view: View) -> Any:
        for path, name in template.reads:
            self._note(id(own(block.parts[path])), name)
        self.calls.append((template, block))
        new = list(markers().again(view.tensors, template.result.tensors, len(self.calls) - 1))
        new = [t.detach() if i in template.result.stopped else t for i, t in enumerate(new)]
        if looks_of(new) != template.result.looks:
            raise Unrepeatable(f"{block.path} is not like {template.block.path}")
        return template.result.rebuilt(new, view.leaves)

    def _first(
        self, block: Block, view: View, graph: Graph, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self.progress(f"tracing {block.path}")
        index = self.entered
        self.entered += 1
        before = dice()
        markers().enter(view.tensors, view.state, index)
        enter = next(iter(reversed(graph.nodes)))
        self.reading.append(set())
        try:
            output = forward(*args, **kwargs)
        finally:
            reads = self.reading.pop()
        result = result_of(output, view, block.containers(args, kwargs))
        if isinstance(result, Result):
            markers().leave(result.tensors, index)
            leave = next(iter(reversed(graph.nodes)))
            doubt = "an entry out of place" if enter.target is not markers().enter else unrepeatable(enter, leave)
            if thrown(before):
                doubt = "random numbers of Python"
        else:
            doubt = result
        after = self._view(block, args, kwargs)
        if doubt or not isinstance(result, Result) or after is None or not view.unchanged(after):
            self._refuse(block, doubt or "a side effect")
        elif after.arguments == view.arguments:  # otherwise the code has found two sizes to be equal: wait for the next call
            self.templates[index] = Template(
                index=index, block=block, view=view, result=result, reads=self._named(reads, block), graph=graph
            )
        return output

    def _refuse(self, block: Block, doubt: str) -> None:
        """From now on trace every block of this kind."""
        logger.debug("%s is traced in full wherever it occurs: %s", block.path, doubt)
        self.refused.add(block.kind)
        if any(other.sealed for other in self.blocks if other.kind == block.kind):
            self.seal.refuse(block.path)

    def _named(self, reads: set[tuple[int, str]], block: Block) -> frozenset[tuple[str, str]]:
        """What was read, by paths within the block; everything of modules where reading leaves no trace."""
        owners = {id(own(part)): path for path, part in block.parts.items()}
        seen = {(owners[owner], name) for owner, name in reads | self.always if owner in owners}
        return frozenset(seen | {(path, EVERYTHING) for path in block.parts.keys() - self.differences[block.kind].parts})

    def _view(self, block: Block, args: tuple[Any, ...], kwargs: dict[str, Any]) -> View | None:
        try:
            with unwatched():
                return View.of(block, args, kwargs, self.owners)
        except Unclear:
            return None


def _intact(template: Template) -> bool:
    """Whether the traced outputs still have their shapes: later code may have changed them in place."""
    return looks_of(template.result.tensors) == template.result.looks
