"""A repeated block is run once for each kind of call: forward, then backward, each on a tape of its own.

In the model a stand-in takes each member's place. It gives results of the right shapes, is one node for autograd, and writes
on the model's tape that the block's tape runs here. Memory that enters or leaves a block has a slot on the block's tape:

    enters  memory of the arguments (forward), of the gradients of its results (backward)
    leaves  memory of the results (forward), of the gradients of its arguments (backward)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from autopar.profiler.blocks import BOOKKEEPING, BlockType
from autopar.profiler.known import Known
from autopar.profiler.like import Like, dense, extent, like, view
from autopar.profiler.shape_tensor import Recorder, ShapeTensor
from autopar.profiler.tape import BACKWARD, FORWARD, GRADIENT, MADE, BlockCall, Freed, Made, Storage, Tape
from autopar.torch_private import pytree, storage_key

ENTERS = "enters"


class NotFoldable(Exception):
    """Members of this type do not all do the same, or do more than compute results: run each of them."""

    def __init__(self, block: BlockType) -> None:
        super().__init__(block.path)
        self.block = block


@dataclass(eq=False)
class Template:
    """One kind of call of a block. `backward` has a tape for each set of results that gradients arrive for."""

    arguments: tuple[Like, ...]
    forward: Tape
    results: tuple[Like, ...]
    spec: Any
    constants: tuple[Any, ...]
    roots: list[Tensor] | None
    gradients: list[Any]
    again: Callable[[], Template] | None = None
    """Runs forward once more, for a backward of another kind."""
    backward: dict[tuple[bool, ...], tuple[Tape, tuple[Like | None, ...]]] = field(default_factory=dict)


class Block:
    """All members of one type. `module` is a copy of the first, on ShapeTensors."""

    def __init__(self, kind: BlockType, module: nn.Module, recorder: Recorder, progress: Callable[[str], None]) -> None:
        self.kind, self.module, self.recorder, self.progress = kind, module, recorder, progress
        self.templates: dict[Any, Template] = {}
        self.anchor = ShapeTensor(recorder.empty((), (), torch.float32), requires_grad=True)
        self.called: set[str] = set()
        self.own_hooks = self._hooks()

    def call(self, path: str, args: Any, kwargs: Any) -> Any:
        """What the member at `path` gives for these arguments."""
        if path in self.called or self._hooks() != self.own_hooks or self._is_cast():
            raise NotFoldable(self.kind)
        self.called.add(path)
        leaves, spec = pytree.tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, ShapeTensor)]
        likes, storages = self._likes(tensors)
        constants = tuple(None if isinstance(leaf, ShapeTensor) else self._constant(leaf) for leaf in leaves)
        key = (str(spec), constants, tuple(like.key for like in likes), torch.is_grad_enabled())
        if key not in self.templates:
            marked = [_TENSOR if isinstance(leaf, ShapeTensor) else leaf for leaf in leaves]
            again = partial(self._trace, likes, marked, spec, [t.known for t in tensors], torch.is_grad_enabled())
            self.templates[key] = again()
            self.templates[key].again = again
        template = self.templates[key]
        results = _Call.apply(self, template, path, storages, self.anchor, *tensors)  # type: ignore[no-untyped-call]
        flat = iter(results)
        return pytree.tree_unflatten([next(flat) if c is _TENSOR else c for c in template.constants], template.spec)

    def _is_cast(self) -> bool:
        """Whether autocast is on around it: it keeps casts of parameters from one block's run to the next."""
        return torch.is_autocast_enabled(self.recorder.device.type)

    def _hooks(self) -> list[int]:
        """How many hooks each module inside has: one that somebody adds sees each member run."""
        return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in self.module.modules()]

    def _containers(self) -> list[Any]:
        """What lists, dicts and sets among its attributes hold: a block that writes into one may tell others something."""
        held = [value for module in self.module.modules() for key, value in vars(module).items() if key not in BOOKKEEPING]
        return [
            [(key, id(item)) for key, item in value.items()] if isinstance(value, dict) else [id(item) for item in value]
            for value in held
            if isinstance(value, list | dict | set)
        ]

    def _constant(self, leaf: Any) -> Any:
        if leaf is None or isinstance(
            leaf, bool | int | float | str | torch.dtype | torch.device | FunctionType | MethodType | type
        ):
            return leaf
        raise NotFoldable(self.kind)

    def _likes(self, tensors: Sequence[ShapeTensor]) -> tuple[tuple[Like, ...], tuple[Storage, ...]]:
        slots: dict[int, int] = {}
        storages = []
        likes = []
        for tensor in tensors:
            key = storage_key(tensor.fake)
            if key not in slots:
                slots[key] = len(slots)
                storages.append(self.recorder.storage(tensor))
            likes.append(like(tensor, slots[key]))
        return tuple(likes), tuple(storages)

    def _trace(
        self, likes: tuple[Like, ...], leaves: list[Any], spec: Any, known: list[Known | None], differentiates: bool
    ) -> Template:
        """Run the block forward, up to nodes that wait for the gradients of its results."""
        recorder = self.recorder
        template = Template(likes, Tape(FORWARD), (), None, (), None, [])
        with recorder.writing(template.forward), torch.set_grad_enabled(differentiates):
            entered = _Enter.apply(self, template, known, self.anchor) if likes else ()  # type: ignore[no-untyped-call]
            flat = iter(entered)
            arguments = [next(flat) if leaf is _TENSOR else leaf for leaf in leaves]
            slots = {storage_key(t.fake): likes[i].slot for i, t in enumerate(entered)}
            del entered, flat
            args, kwargs = pytree.tree_unflatten(arguments, spec)
            del arguments
            before = self._containers()
            self.progress(self.kind.members[0][0])
            results = self.module(*args, **kwargs)
            if self._containers() != before:
                raise NotFoldable(self.kind)
            del args, kwargs
            flat_results, template.spec = pytree.tree_flatten(results)
            del results
            template.constants = tuple(_TENSOR if isinstance(r, Tensor) else self._constant(r) for r in flat_results)
            tensors = [r for r in flat_results if isinstance(r, Tensor)]
            del flat_results
            template.results = self._results(tensors, slots)
            wanted = [i for i, result in enumerate(template.results) if result.requires_grad]
            template.roots = [_Root.apply(self, template, i, tensors[i]) for i in wanted]  # type: ignore[no-untyped-call]
            del tensors
        return template

    def _results(self, tensors: list[Any], entered: dict[int, int]) -> tuple[Like, ...]:
        left: dict[int, int] = {}
        found = []
        for tensor in tensors:
            key = storage_key(tensor.fake)
            if key in entered:
                found.append(like(tensor, entered[key]))
                continue
            storage = self.recorder.storage(tensor)
            if storage.kind != MADE:
                raise NotFoldable(self.kind)
            storage.slot = left.setdefault(key, len(left))
            self.recorder.tape.leaves[storage.slot] = storage
            found.append(like(tensor, storage.slot, enters=False))
        return tuple(found)

    def backward(self, template: Template, arrived: tuple[bool, ...]) -> tuple[Tape, tuple[Like | None, ...]]:
        """The block's backward when gradients arrive for those results; what the arguments' gradients are like."""
        if arrived not in template.backward:
            ran = template
            if template.roots is None:
                assert template.again is not None
                ran = template.again()
            template.backward[arrived] = self._run_backward(ran, arrived)
            if ran is not template:
                here, there = storages_of(ran.forward), storages_of(template.forward)
                if [s.bytes for s in here] != [s.bytes for s in there]:
                    raise NotFoldable(self.kind)
                renamed = dict(zip(here, there, strict=True))
                tape = template.backward[arrived][0]
                tape.events = [
                    Freed(renamed.get(event.storage, event.storage)) if isinstance(event, Freed) else event
                    for event in tape.events
                ]
        return template.backward[arrived]

    def _run_backward(self, template: Template, arrived: tuple[bool, ...]) -> tuple[Tape, tuple[Like | None, ...]]:
        tape = Tape(BACKWARD)
        assert template.roots is not None
        with self.recorder.writing(Tape(BACKWARD)):
            self.module.zero_grad(set_to_none=True)
        wanted = [i for i, result in enumerate(template.results) if result.requires_grad]
        roots = [root for i, root in zip(wanted, template.roots, strict=True) if arrived[i]]
        template.roots = None
        with self.recorder.writing(tape):
            seeds = [ShapeTensor(self.recorder.empty((), (), torch.float32)) for _ in roots]
            torch.autograd.backward(roots, seeds)
            del roots, seeds
            gradients, template.gradients = template.gradients, []
            likes = self._gradient_likes(gradients)
            del gradients
            mark_gradients(self.recorder, self.module.parameters())
        return tape, likes

    def _gradient_likes(self, gradients: list[Any]) -> tuple[Like | None, ...]:
        left: dict[int, int] = {}
        found: list[Like | None] = []
        for gradient in gradients:
            if gradient is None:
                found.append(None)
                continue
            storage = self.recorder.storage(gradient)
            key = storage_key(gradient.fake)
            if storage.slot is not None and storage.kind == ENTERS:
                found.append(like(gradient, storage.slot))
                continue
            storage.slot = left.setdefault(key, len(left))
            self.recorder.tape.leaves[storage.slot] = storage
            found.append(like(gradient, storage.slot, enters=False))
        return tuple(found)

    def make(
        self,
        tape: Tape,
        likes: Sequence[Like | None],
        enters: Sequence[Storage | None],
        path: str,
        given: dict[Storage, Tensor],
    ) -> list[Any]:
        """Tensors like those, in new memory or (what enters) that of a tensor in `given`; writes the call on the tape."""
        leaves: dict[int, tuple[Storage, Tensor]] = {}
        views = Counter(wanted.slot for wanted in likes if wanted is not None and not wanted.enters)
        found: list[Any] = []
        for wanted in likes:
            if wanted is None:
                found.append(None)
                continue
            if wanted.enters:
                storage = enters[wanted.slot]
                assert storage is not None
                base = given[storage]
            else:
                whole = views[wanted.slot] == 1 and wanted.is_whole
                if wanted.slot not in leaves:
                    layout = (wanted.shape, wanted.stride) if whole else ((extent(wanted),), (1,))
                    fake = self.recorder.empty(*layout, wanted.dtype)
                    inner = tape.leaves[wanted.slot]
                    storage = Storage(inner.bytes, MADE, path, inner.op)
                    leaves[wanted.slot] = self.recorder.adopt(fake, storage), fake
                base = leaves[wanted.slot][1]
                if whole:
                    found.append(ShapeTensor(base))
                    continue
            found.append(view(self.recorder, base, wanted))
        left = tuple(leaves[i][0] for i in sorted(leaves))
        self.recorder.write(BlockCall(tape, path, tuple(enters), left))
        return found


_TENSOR = object()


class StandIn(nn.Module):
    """Takes a member's place in the copy of the model; class, children and attributes are those of the block that is run."""

    def __init__(self, block: Block, path: str) -> None:
        super().__init__()
        self._modules = block.module._modules
        object.__setattr__(self, "_block", block)
        object.__setattr__(self, "_path", path)

    def __setattr__(self, name: str, value: Any) -> None:
        """Code that sets an attribute of a member can tell it from others."""
        if "_path" in self.__dict__:
            raise NotFoldable(self._block.kind)
        super().__setattr__(name, value)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._block.module)

    def train(self, mode: bool = True) -> StandIn:
        self._block.module.train(mode)
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._block.module, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._block.call(self._path, args, kwargs)


class _Enter(torch.autograd.Function):
    """The arguments of a block on its own tape; takes their gradients."""

    @staticmethod
    def forward(ctx: Any, block: Block, template: Template, known: list[Known | None], anchor: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        ctx.template = template
        recorder, bases = block.recorder, {}
        made = []
        for wanted, value in zip(template.arguments, known, strict=True):
            if wanted.slot not in bases:
                bases[wanted.slot] = recorder.empty((extent(wanted),), (1,), wanted.dtype)
                storage = Storage(0, ENTERS, slot=wanted.slot)
                recorder.tape.enters[wanted.slot] = recorder.adopt(bases[wanted.slot], storage)
            made.append(view(recorder, bases[wanted.slot], wanted, value))
        ctx.mark_non_differentiable(*(m for m, w in zip(made, template.arguments, strict=True) if not w.requires_grad))
        return tuple(made)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        ctx.template.gradients = list(gradients)
        return None, None, None, None


class _Root(torch.autograd.Function):
    """A result of a block on its own tape; its backward makes the gradient that arrives."""

    @staticmethod
    def forward(ctx: Any, block: Block, template: Template, index: int, result: ShapeTensor) -> Any:
        ctx.block, ctx.like, ctx.index = block, template.results[index], index
        return ShapeTensor(block.recorder.empty((), (), torch.float32))

    @staticmethod
    def backward(ctx: Any, seed: Any) -> Any:
        recorder, wanted = ctx.block.recorder, ctx.like
        fake = recorder.empty(wanted.shape, dense(wanted.shape), wanted.dtype)
        recorder.tape.enters[ctx.index] = recorder.adopt(fake, Storage(0, ENTERS, slot=ctx.index))
        return None, None, None, ShapeTensor(fake)


class _Call(torch.autograd.Function):
    """A member of a block, as one node of the model's autograd graph."""

    @staticmethod
    def forward(ctx: Any, block: Block, template: Template, path: str, enters: Any, anchor: Tensor, *tensors: Any) -> Any:
        ctx.set_materialize_grads(False)
        ctx.block, ctx.template, ctx.path, ctx.count = block, template, path, len(tensors)
        given = {storage: tensor.fake for tensor in tensors for storage in [block.recorder.storage(tensor)]}
        made = block.make(template.forward, template.results, enters, path, given)
        ctx.mark_non_differentiable(*(m for m, w in zip(made, template.results, strict=True) if not w.requires_grad))
        return tuple(made)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        block: Block = ctx.block
        tape, likes = block.backward(ctx.template, tuple(g is not None for g in gradients))
        enters = [None if g is None else block.recorder.storage(g) for g in gradients]
        given = {s: g.fake for s, g in zip(enters, gradients, strict=True) if s is not None}
        made = block.make(tape, likes, enters, ctx.path, given) or [None] * ctx.count
        return (None, None, None, None, None, *made)


def storages_of(tape: Tape) -> list[Storage]:
    """In an order that two runs of the same block share."""
    made = [event.storage for event in tape.events if isinstance(event, Made)]
    return [*(tape.enters[slot] for slot in sorted(tape.enters)), *made]


def mark_gradients(recorder: Recorder, parameters: Iterable[Tensor]) -> None:
    """Say which memory is the gradient of a parameter."""
    for parameter in parameters:
        if isinstance(parameter.grad, ShapeTensor):
            recorder.storage(parameter.grad).kind = GRADIENT
