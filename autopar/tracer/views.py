"""What the code of a block sees at a call, and what it returns: comparable, so that equal calls can be told."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, namedtuple
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from autopar.torch_private import active_modes, is_plain_fake, pytree, size_of, storage_key, unwatched
from autopar.tracer.appearance import Look, Looks, Same, Unclear
from autopar.tracer.blocks import Block, Key, containers

TREES = (tuple, list, dict, OrderedDict, namedtuple, None)
"""Nodes of trees of arguments and results that hold nothing but what one sees; None is a leaf."""


@dataclass(frozen=True, kw_only=True)
class View:
    """All that the code of a block can see at a call. Two calls with equal views are traced alike."""

    attributes: dict[Key, Look]
    around: tuple[Look, ...]
    arguments: tuple[Look, ...]
    shared: tuple[int, ...]
    leaves: list[Any] = field(compare=False)
    spec: pytree.TreeSpec = field(compare=False)
    state: list[Tensor] = field(compare=False)
    names: tuple[str, ...]

    @classmethod
    def of(cls, block: Block, args: tuple[Any, ...], kwargs: dict[str, Any], owners: Mapping[int, int]) -> View:
        """Raises Unclear where something is seen that cannot be compared.

        `owners` maps the id of each fake parameter of this trace to that of the model's own.
        """
        leaves, spec = pytree.tree_flatten((args, kwargs))
        if not all(kind in TREES for kind in _kinds(spec)):
            raise Unclear(f"arguments {spec}")
        if any(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")):
            raise Unclear("autocast")
        state = [] if block.sealed else list(block.state().values())
        if not block.sealed and [owners.get(id(t)) for t in state] != [id(t) for t in block.originals.values()]:
            raise Unclear(f"other parameters in {block.path}")
        looks = Looks()
        globals_ = tuple(looks.of(space[name]) for space, name in block.surroundings if name in space)
        return cls(
            attributes=block.attributes(),
            around=(torch.is_grad_enabled(), torch.get_default_dtype(), *map(Same, active_modes()), *globals_),
            arguments=(str(spec), *(look_of(leaf) for leaf in leaves)),
            shared=_pattern(
                [
                    *(owners.get(id(leaf), id(leaf)) if isinstance(leaf, Tensor) else -i for i, leaf in enumerate(leaves, 1)),
                    *map(id, block.originals.values()),
                ]
            ),
            leaves=leaves,
            spec=spec,
            state=state,
            names=tuple(block.originals),
        )

    @property
    def tensors(self) -> list[Tensor]:
        return [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]

    def differing(self, other: View) -> set[Key] | None:
        """The attributes in which two views differ; None if they differ in anything else."""
        if (self.around, self.arguments, self.shared, self.names) != (other.around, other.arguments, other.shared, other.names):
            return None
        if self.attributes.keys() != other.attributes.keys():
            return None
        return {key for key, look in self.attributes.items() if look != other.attributes[key]}

    def unchanged(self, later: View) -> bool:
        """Whether running the block left everything as it was, but for what is known about sizes."""
        same = all(a is b for a, b in zip((*self.leaves, *self.state), (*later.leaves, *later.state), strict=False))
        known = replace(self, arguments=later.arguments)
        return same and len(self.leaves) == len(later.leaves) and self.spec == later.spec and known.differing(later) == set()


def look_of(leaf: Any) -> Look:
    """How an argument or a result looks; raises Unclear for what is neither a fake tensor nor a plain constant."""
    if isinstance(leaf, Tensor):
        if not is_plain_fake(leaf) or leaf.layout is not torch.strided or leaf.is_conj() or leaf.is_neg():
            raise Unclear(f"a {type(leaf).__name__}")
        sizes = (*map(size_of, leaf.shape), *map(size_of, leaf.stride()), size_of(leaf.storage_offset()))
        return leaf.dtype, leaf.device, leaf.requires_grad, isinstance(leaf, nn.Parameter), leaf.is_inference(), *sizes
    if isinstance(leaf, type(None) | bool | int | float | str | torch.SymInt | torch.dtype | torch.device):
        return Looks().of(leaf)
    raise Unclear(f"a {type(leaf).__name__}")


def looks_of(leaves: Iterable[Any]) -> tuple[Look, ...]:
    with unwatched():
        return tuple(map(look_of, leaves))


def _pattern(ids: list[int]) -> tuple[int, ...]:
    """For each the position at which the same one occurs first."""
    first: dict[int, int] = {}
    return tuple(first.setdefault(one, i) for i, one in enumerate(ids))


def _kinds(spec: pytree.TreeSpec) -> Iterator[Any]:
    yield spec.type
    for child in spec.children():
        yield from _kinds(child)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a block returns: per leaf ("new", which of `tensors`), ("input", which argument) or ("value", a constant).

    Of `tensors` those that are `stopped` require no gradient, though others or arguments do.
    """

    leaves: tuple[tuple[str, Any], ...]
    tensors: list[Tensor]
    looks: tuple[Look, ...]
    spec: pytree.TreeSpec
    stopped: frozenset[int]

    def rebuilt(self, new: list[Tensor], inputs: list[Any]) -> Any:
        """The same structure with other tensors, and with the arguments of another call."""
        sources: dict[str, Any] = {"new": new, "input": inputs}
        return pytree.tree_unflatten([w if kind == "value" else sources[kind][w] for kind, w in self.leaves], self.spec)


def result_of(output: Any, view: View, known: set[int]) -> Result | str:
    """Why a stand-in could not return the like: a strange type, shared memory, one of the `known` containers; else a Result."""
    leaves, spec = pytree.tree_flatten(output)
    positions = {id(leaf): i for i, leaf in enumerate(view.leaves) if isinstance(leaf, Tensor)}
    new = list({id(leaf): leaf for leaf in leaves if isinstance(leaf, Tensor) and id(leaf) not in positions}.values())
    numbers = {id(tensor): i for i, tensor in enumerate(new)}

    def place(leaf: Any) -> tuple[str, Any]:
        if id(leaf) in numbers:
            return "new", numbers[id(leaf)]
        return ("input", positions[id(leaf)]) if isinstance(leaf, Tensor) else ("value", leaf)

    try:
        looks = looks_of(new)
        looks_of(leaf for leaf in leaves if not isinstance(leaf, Tensor))
    except Unclear as what:
        return f"it returns {what}"
    plain = all(kind in TREES or dataclasses.is_dataclass(kind) for kind in _kinds(spec))
    if not new or not plain:
        return f"it returns {spec}"
    if containers([output]) & known:
        return "it returns a list or dict that it was given or holds"
    if not _fresh(new, view):
        return "what it returns shares memory"
    if any(isinstance(t, nn.Parameter) for t in new):
        return "it returns a parameter"
    stopped = _without_gradient(new, view)
    if any(t.requires_grad and not torch.is_grad_enabled() for t in new):
        return "what it returns requires a gradient where gradients are off"
    return Result(leaves=tuple(map(place, leaves)), tensors=new, looks=looks, spec=spec, stopped=stopped)


def _fresh(tensors: list[Tensor], view: View) -> bool:
    """Whether each has memory of its own, from its start on."""
    memory = {storage_key(t) for t in tensors}
    shared = memory & {storage_key(t) for t in (*view.state, *view.tensors)}
    return len(memory) == len(tensors) and not shared and all(t.storage_offset() == 0 for t in tensors)


def _without_gradient(tensors: list[Tensor], view: View) -> frozenset[int]:
    """Which of them require none, though results of an op on all these tensors would."""
    if not torch.is_grad_enabled() or not any(t.requires_grad for t in (*view.tensors, *tensors)):
        return frozenset()
    floating = (i for i, t in enumerate(tensors) if t.dtype.is_floating_point or t.dtype.is_complex)
    return frozenset(i for i in floating if not tensors[i].requires_grad)
