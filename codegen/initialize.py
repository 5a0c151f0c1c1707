"""A model's own initialization, run for the mesh: each tensor is whole for a moment, and only this device's piece of it stays.

The model's code runs, unchanged, on a copy of the model whose tensors have no data. (On the meta device torch would skip some
of its initializations, so they are fake tensors, which do not look different.) A dispatch mode stands below: an op that writes
into one of them, or reads one, runs on a whole tensor in its place. At most one is whole at a time (or those one op needs),
so the extra memory is that of the largest. Every device draws all numbers, in the serial order: the result is the serial
model's for the same seed, bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from autopar.codegen.shards import local_part, piece
from autopar.codegen.state import named_tensors
from autopar.errors import InputError
from autopar.ir.placement import Placement
from autopar.torch_private import TorchDispatchMode, fake_mode, is_fake, pytree, storage_key

OVERWRITES = {"normal_", "uniform_", "zero_", "fill_", "copy_", "random_", "exponential_", "bernoulli_", "eye", "ones", "zeros"}
"""Ops that need nothing of what they write into."""


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A tensor of the model without data, and where it rests on the mesh; what is written is dropped if it is not `wanted`."""

    name: str
    fake: Tensor
    resting: Tensor
    placement: Placement
    wanted: bool


class WholeForAMoment(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While on, ops on the fake tensors of `slots` run on whole ones; leaving it keeps this device's pieces. Collective."""

    def __init__(self, slots: Sequence[Slot], place: Sequence[int], sizes: Sequence[int], device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.slots = {storage_key(slot.fake): slot for slot in slots}
        self.place, self.sizes, self.device = tuple(place), tuple(sizes), device
        self.whole: dict[int, Tensor] = {}
        self.met: set[int] = set()
        self.limit_bytes = max((slot.fake.nbytes for slot in slots), default=0)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self.settle(())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if any(t.is_meta and not is_fake(t) for t in tensors):
            raise InputError(
                f"the model's initialization calls {func} on a tensor on the meta device that is no parameter or buffer of it: "
                "build it in the initialization, or register it as a buffer"
            )
        fakes = [t for t in tensors if is_fake(t)]
        if not fakes or func.namespace == "prim" or is_view(func):
            return func(*args, **kwargs)
        written = written_by(func, args, kwargs)
        targets = [t for t in written if is_fake(t)]
        if targets and not any(self.slots[storage_key(t)].wanted for t in targets):
            return returned(func, written)
        self.settle([storage_key(t) for t in fakes])
        replaces = func.overloadpacket.__name__ in OVERWRITES
        real = {id(t): self.materialized(t, fresh=replaces and any(t is w for w in targets)) for t in fakes}
        real_args, real_kwargs = pytree.tree_map_only(Tensor, lambda t: real.get(id(t), t), (args, kwargs))
        result = func(*real_args, **real_kwargs)
        return returned(func, written) if targets else result

    def materialized(self, view: Tensor, *, fresh: bool) -> Tensor:
        """A real tensor for a view of a slot; `fresh` if all of the view is written and nothing read."""
        key = storage_key(view)
        if key not in self.whole:
            slot = self.slots[key]
            if key in self.met and not (fresh and view.numel() == slot.fake.numel()):
                resting = slot.resting.detach()
                self.whole[key] = resting.full_tensor() if isinstance(resting, DTensor) else resting.clone()
            else:
                whole = torch.empty_strided(slot.fake.shape, slot.fake.stride(), dtype=slot.fake.dtype, device=self.device)
                self.whole[key] = whole.fill_(torch.nan) if whole.dtype.is_floating_point and not fresh else whole
            self.met.add(key)
        return self.whole[key].as_strided(view.size(), view.stride(), view.storage_offset())

    def settle(self, needed: Sequence[int]) -> None:
        """Keep this device's pieces of whole tensors, oldest first, until those that an op needs have room."""
        new = sum(self.slots[key].fake.nbytes for key in set(needed) - set(self.whole))
        for key in [key for key in self.whole if key not in needed]:
            if needed and new + sum(t.nbytes for t in self.whole.values()) <= self.limit_bytes:
                return
            slot, whole = self.slots[key], self.whole.pop(key)
            if slot.wanted:
                with torch.no_grad():
                    local_part(slot.resting.detach()).copy_(piece(whole, slot.placement, self.place, self.sizes))


def is_view(func: Any) -> bool:
    """Whether results are views of arguments, and nothing is written."""
    kinds = [value.alias_info for value in func._schema.returns if value.alias_info is not None]
    return bool(kinds) and not any(kind.is_write for kind in kinds)


def written_by(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The arguments that an op writes into, in the order of its schema."""
    found: list[Tensor] = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            found += [t for t in pytree.tree_leaves(value) if isinstance(t, Tensor)]
    return found


def returned(func: Any, written: Sequence[Tensor]) -> Any:
    """What an op that writes gives back: the tensors that it was given."""
    count = len(func._schema.returns)
    return None if count == 0 else written[0] if count == 1 else tuple(written)


class Initializer:
    """What gives values to those tensors of a model, `names`, that were on the meta device."""

    def __init__(self, model: nn.Module, names: Collection[str], mesh: DeviceMesh) -> None:
        self.names, self.mesh = frozenset(names), mesh
        self.model = own_copy(model, mesh.device_type)

    def run(
        self, resting: Mapping[str, Tensor], placements: Mapping[str, Placement], wanted: Collection[str], seed: int | None
    ) -> None:
        """Give the `wanted` of the resting tensors, all by first name, the values of the model's own initialization.

        Collective. With a seed the process's generators stay as they were; without, numbers are those of rank 0's.
        """
        fakes, place = named_tensors(self.model), self.mesh.get_coordinate()
        assert place is not None, "this process is no part of the mesh"
        slots = [
            Slot(name=name, fake=fakes[name], resting=tensor, placement=placements[name], wanted=name in wanted)
            for name, tensor in resting.items()
        ]
        whole = WholeForAMoment(slots, place, tuple(self.mesh.shape), self.mesh.device_type)
        with random_numbers(seed), torch.no_grad(), whole:
            run_initialization(self.model)


def own_copy(model: nn.Module, device: str) -> nn.Module:
    """The model with tensors without data, and without the notes of transformers that it has been initialized."""
    with fake_mode():
        tensors: dict[int, Any] = {id(t): like(t, device) for t in (*model.parameters(), *model.buffers())}
    copied = copy.deepcopy(model, tensors)
    for module in copied.modules():
        vars(module).pop("_is_hf_initialized", None)
    return copied


def like(tensor: Tensor, device: str) -> Tensor:
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def run_initialization(model: nn.Module) -> None:
    """`init_weights()` of the model, `_init_weights(module)` of the model for every module, or `reset_parameters()` of every
    module that has it; inner modules first, as constructors run."""
    if callable(whole := getattr(model, "init_weights", None)):
        whole()
    elif callable(each := getattr(model, "_init_weights", None)):
        model.apply(each)
    else:
        model.apply(reset)


def reset(module: nn.Module) -> None:
    """torch's attention and transformer have an underscore before the name."""
    for name in ("reset_parameters", "_reset_parameters"):
        if callable(own := getattr(module, name, None)):
            own()
            return


@contextmanager
def random_numbers(seed: int | None) -> Iterator[None]:
    """With a seed: those of the seed, and the process's own generators stay as they were. Without: those of rank 0's, which go
    on from there on every rank that had the same. Collective."""
    if seed is not None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield
        return
    box = [_states()]
    own = box[0]
    dist.broadcast_object_list(box, src=0)
    _set_states(box[0])
    yield
    if any(not torch.equal(mine, theirs) for mine, theirs in zip(own, box[0], strict=True)):
        _set_states(own)


def _states() -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]


def _set_states(states: Sequence[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1])
