"""One training step of a model on shapes alone: forward, loss, backward, as its own code runs them."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from autopar.errors import InputError, TraceError
from autopar.profiler.block_runs import Block, NotFoldable, StandIn, mark_gradients
from autopar.profiler.blocks import BlockType, repeated
from autopar.profiler.fakes import OpenSizes
from autopar.profiler.known import Known
from autopar.profiler.like import dense
from autopar.profiler.shape_tensor import Recorder, ShapeTensor
from autopar.profiler.tape import BACKWARD, FORWARD, INPUT, STATE, Size, Storage, Tape
from autopar.torch_private import in_python_dispatcher, pytree, size_of, symbolic_sizes

Marks = Sequence[Mapping[int, str]]
"""For each flattened input the names of its dynamic dims."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What a step did. `blocks` are the types of block that were run once for all their members."""

    forward: Tape
    backward: Tape | None
    inputs: tuple[Storage, ...]
    blocks: tuple[BlockType, ...]
    symbols: Mapping[str, sympy.Symbol]
    examples: Mapping[str, int]
    """Sizes of the symbols in the example inputs."""
    assumptions: tuple[sympy.Basic, ...]
    tokens: sympy.Expr
    unit: str
    unreached: frozenset[str]
    """Parameters that are trained and that no gradient reaches: an optimizer makes no state for them."""


def record(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    marks: Marks,
    *,
    training: bool = True,
    device: str = "cpu",
    dtypes: Mapping[torch.dtype, torch.dtype] | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> Recording:
    """Run forward and backward of `model` (forward only, without gradients and in eval mode, if not `training`).

    `dtypes` says which dtypes of parameters, buffers and inputs become which. The model is copied, tensors replaced by
    shapes. Blocks that turn out to differ, or to do more than compute results, are all run. Raises TraceError for code that
    needs data, or that fixes a dynamic dim.
    """
    kinds, in_python = repeated(model), 0
    while True:
        step = _Step(model, marks, kinds, training, device, dtypes or {}, progress)
        try:
            with in_python_dispatcher() if in_python > 1 else nullcontext():
                return step.run(args, kwargs, OpenSizes(products=in_python > 0))
        except NotFoldable as error:
            kinds = [kind for kind in kinds if kind is not error.block]
        except FixedDim:
            if in_python > 1:
                raise
            in_python += 1


class FixedDim(TraceError):
    """Code fixes a dynamic dim. Some of torch's C++ does where its Python equal does not (in torch 2.11 products).

    With all of it in Python, a few fused ops save other bytes than they do.
    """


class _Step:
    def __init__(
        self,
        model: nn.Module,
        marks: Marks,
        kinds: list[BlockType],
        training: bool,
        device: str,
        dtypes: Mapping[torch.dtype, torch.dtype],
        progress: Callable[[str], None],
    ) -> None:
        self.original, self.marks, self.kinds, self.training, self.progress = model, marks, kinds, training, progress
        self.device, self.dtypes = device, dtypes
        self.watched: set[nn.Module] = set()
        self.failed: tuple[int, str] = 0, ""

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], open_sizes: OpenSizes) -> Recording:
        leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
        examples = {
            name: int(leaf.shape[dim]) for mark, leaf in zip(self.marks, leaves, strict=True) for dim, name in mark.items()
        }
        sizes = symbolic_sizes(examples)
        self.symbols = {name: sympy.Symbol(name, integer=True, positive=True) for name in examples}
        self.names = {size.node.expr: self.symbols[name] for name, size in sizes.sizes.items()}
        self.recorder = recorder = Recorder(sizes, self.rename, self.device)
        forward, backward = Tape(FORWARD), Tape(BACKWARD) if self.training else None
        with (
            recorder,
            open_sizes,
            torch.set_grad_enabled(self.training),
            saved_tensors_hooks(self.note_saved, lambda tensor: tensor),
        ):
            self.state = open_sizes.stand_ins = self.make_state()
            model = self.copy()
            if not self.training:
                model.eval()
            given = [self.enter(leaf, mark, sizes.sizes) for leaf, mark in zip(leaves, self.marks, strict=True)]
            inputs = tuple({recorder.storage(t): None for t in given if isinstance(t, ShapeTensor)})
            tokens, unit = self.tokens(given)
            own_args, own_kwargs = pytree.tree_unflatten(given, spec)
            self.progress("forward")
            with recorder.writing(forward), self.errors():
                ends = losses(model(*own_args, **own_kwargs), self.training)
            if backward is not None:
                self.progress("backward")
                with recorder.writing(backward), self.errors():
                    run_backward(recorder, ends)
                    mark_gradients(recorder, self.state.values())
            unreached = frozenset(self.unreached()) if self.training else frozenset()
            with recorder.writing(Tape(BACKWARD)):
                del ends, model, given, own_args, own_kwargs
        self.check_fixed()
        return Recording(
            forward=forward,
            backward=backward,
            inputs=inputs,
            blocks=tuple(self.kinds),
            symbols=self.symbols,
            examples=examples,
            assumptions=tuple(dict.fromkeys(guard.xreplace(self.names) for guard in sizes.guards_of_the_model())),
            tokens=sympy.sympify(tokens),
            unit=unit,
            unreached=unreached,
        )

    def unreached(self) -> Iterator[str]:
        """Names of trained parameters without a gradient, in all members of a block where one has none."""
        runs = {path: kind.members[0][0] for kind in self.kinds for path, _ in kind.members}
        for name, parameter in self.original.named_parameters():
            member = next((path for path in runs if name.startswith(f"{path}.")), None)
            if member is not None:
                parameter = self.original.get_parameter(runs[member] + name[len(member) :])
            if parameter.requires_grad and self.state[id(parameter)].grad is None:
                yield name

    def rename(self, size: Size) -> Size:
        return size if isinstance(size, int) else sympy.sympify(size).xreplace(self.names)

    def tokens(self, given: list[Any]) -> tuple[Size, str]:
        """How much a step takes in: elements of the first input of integers with two dims, else rows of the first tensor."""
        tensors = [t for t in given if isinstance(t, ShapeTensor) and t.ndim]
        for t in tensors:
            if t.ndim == 2 and not t.is_floating_point():
                return self.rename(size_of(t.shape[0]) * size_of(t.shape[1])), "tokens"
        return (self.rename(size_of(tensors[0].shape[0])), "samples") if tensors else (1, "steps")

    def note_saved(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, ShapeTensor):
            self.recorder.storage(tensor).saved = True
        return tensor

    def make_state(self) -> dict[int, ShapeTensor]:
        """For each parameter and buffer, by id, its stand-in; not of members whose block is run once for all."""
        found: dict[int, ShapeTensor] = {}
        spared = {id(t) for kind in self.kinds for _, m in kind.members[1:] for t in (*m.parameters(), *m.buffers())}
        for kind, tensors in (("parameter", self.original.parameters()), ("buffer", self.original.buffers())):
            for tensor in (t for t in tensors if id(t) not in spared):
                fake = self.recorder.empty(tensor.shape, tensor.stride(), self.dtypes.get(tensor.dtype, tensor.dtype))
                self.recorder.adopt(fake, Storage(self.recorder.bytes(fake), STATE, op=kind))
                known = Known(value=tensor) if kind == "buffer" and tensor.device.type != "meta" else None
                found[id(tensor)] = ShapeTensor(fake, known, requires_grad=tensor.requires_grad)
                if kind == "parameter":
                    found[id(tensor)]._is_param = True
        return found

    def copy(self) -> nn.Module:
        """The model on the state's stand-ins, with one member of each repeated block."""
        held = (leaf for module in self.original.modules() for leaf in pytree.tree_leaves(vars(module)))
        memo: dict[int, Any] = {id(tensor): tensor for tensor in held if isinstance(tensor, Tensor)} | self.state
        for kind in self.kinds:
            path, first = kind.members[0]
            member = copy.deepcopy(first, memo)
            self.watch(member, path)
            block = Block(kind, member, self.recorder, self.progress)
            memo |= {id(member): StandIn(block, path) for path, member in kind.members}
        try:
            model = copy.deepcopy(self.original, memo)
        except Exception as error:
            raise TraceError(f"the model cannot be copied: {type(error).__name__}: {error}") from error
        self.watch(model, "")
        return model

    def watch(self, module: nn.Module, prefix: str) -> None:
        """Tell the recorder which module is running."""
        for name, child in module.named_modules():
            path = f"{prefix}.{name}" if prefix and name else prefix or name
            if child in self.watched or type(child) is StandIn:
                continue
            self.watched.add(child)
            before: list[str] = []
            child.register_forward_pre_hook(self.entering(path, before), prepend=True)
            child.register_forward_hook(self.leaving(path, before), always_call=True)

    def entering(self, path: str, before: list[str]) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            before.append(self.recorder.here)
            self.recorder.here = path

        return hook

    def leaving(self, path: str, before: list[str]) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, result: Any) -> None:
            if (error := sys.exception()) is not None and self.failed[0] != id(error):
                self.failed = id(error), path
            self.recorder.here = before.pop()

        return hook

    def enter(self, leaf: Any, mark: Mapping[int, str], sizes: Mapping[str, Any]) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        shape = [sizes[mark[dim]] if dim in mark else size for dim, size in enumerate(leaf.shape)]
        stride = dense(shape) if mark or leaf.is_contiguous() else leaf.stride()
        fake = self.recorder.empty(shape, stride, self.dtypes.get(leaf.dtype, leaf.dtype))
        self.recorder.adopt(fake, Storage(self.recorder.bytes(fake), INPUT))
        known = None if leaf.device.type == "meta" or isinstance(leaf, ShapeTensor) else Known(value=leaf)
        return ShapeTensor(fake, known, requires_grad=leaf.requires_grad)

    @contextmanager
    def errors(self) -> Iterator[None]:
        try:
            yield
        except (NotFoldable, TraceError, InputError):
            raise
        except Exception as error:
            where = (self.failed[1] if self.failed[0] == id(error) else self.recorder.here) or type(self.original).__name__
            raise TraceError(f"{where} cannot run on shapes alone: {type(error).__name__}: {error}") from error

    def check_fixed(self) -> None:
        for name, (value, where) in self.recorder.sizes.replaced().items():
            at = f" ({where})" if where else ""
            raise FixedDim(
                f"dim {name!r} cannot be dynamic: the model fixes it to {value}{at}; leave it out of `dynamic`, "
                "or make the code work for any size"
            )


def losses(results: Any, training: bool) -> list[Any]:
    """What backward starts from: the loss if there is one, else every result with a gradient."""
    named = results.get("loss") if isinstance(results, Mapping) else getattr(results, "loss", None)
    if isinstance(named, Tensor) and named.ndim == 0:
        return [named]
    tensors = [leaf for leaf in pytree.tree_leaves(results) if isinstance(leaf, Tensor)]
    ends = [t for t in tensors if t.requires_grad]
    scalars = [t for t in ends if t.ndim == 0]
    return (scalars[:1] or ends) if training else tensors


def run_backward(recorder: Recorder, ends: list[Any]) -> None:
    if not ends:
        raise TraceError("no result of the model depends on a parameter that is trained: there is nothing to differentiate")
    torch.autograd.backward(ends, [torch.ones_like(end) for end in ends])
