"""Running a model's own code eagerly on tensors that have sizes, strides and memory, but no data.

Unlike a fake tensor, a `ShapeTensor` does not look like tracing to the code that it runs through, so the code takes the
branches of a real run. Sizes may be symbols. Below autograd, a `Recorder` sees every op that would run and every piece of
memory made and let go, and writes them on a tape.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from autopar.errors import TraceError
from autopar.profiler.fakes import SHAPES
from autopar.profiler.kernels import kernel, stored_bytes
from autopar.profiler.known import Known, Unknown, if_finite, is_function, part
from autopar.profiler.tape import BACKWARD, MADE, Event, Freed, Made, Size, Storage, Tape
from autopar.torch_private import (
    SymbolicSizes,
    TorchDispatchMode,
    correct_aliasing,
    next_sequence_number,
    no_torch_function,
    pytree,
    running_sequence_number,
    size_of,
    storage_key,
    symbolic_mode,
    symbolic_mode_alone,
    wrapper_like,
)

STATE_OF_CODE = "constant"

aten = torch.ops.aten
OF_ONE_DTYPE = frozenset({aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution})
"""On shapes alone these take operands of different dtypes; real ones do not."""


class ShapeTensor(Tensor):
    """Holds a fake tensor, whose memory stands for its own, and how its value is known, if it is."""

    fake: Tensor
    known: Known | None
    without_data = True
    __torch_function__ = no_torch_function  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, fake: Tensor, known: Known | None = None, requires_grad: bool = False) -> ShapeTensor:
        made: ShapeTensor = wrapper_like(cls, fake, requires_grad)
        made.fake, made.known = fake, known
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"ShapeTensor({list(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise AssertionError(f"{func} of a ShapeTensor outside of its recorder")


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While on, runs every op on shapes alone and writes the current tape.

    `here` tells the module path that is running in forward; backward ops belong to the path of the op they differentiate.
    """

    def __init__(self, sizes: SymbolicSizes, rename: Callable[[Size], Size], device: str = "cpu") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes, self.rename, self.device = sizes, rename, torch.device(device)
        self.tape = Tape("forward")
        self.here = ""
        self.storages: dict[int, Storage] = {}
        self.foreign: dict[int, tuple[Tensor, ShapeTensor]] = {}
        self.paths: dict[int, str] = {}
        self.written: set[Storage] = set()

    @contextmanager
    def writing(self, tape: Tape) -> Iterator[None]:
        before, self.tape = self.tape, tape
        try:
            yield
        finally:
            self.tape = before

    def write(self, event: Event) -> None:
        self.tape.events.append(event)

    def empty(self, shape: Any, stride: Any, dtype: torch.dtype) -> Tensor:
        """A new fake tensor; its memory is not on any tape until `adopt`ed."""
        with symbolic_mode_alone(self.sizes.mode):
            return torch.empty_strided(shape, stride, dtype=dtype, device=self.device)

    def adopt(self, fake: Tensor, storage: Storage) -> Storage:
        """From now on the memory of `fake` is that storage, until it is let go."""
        memory = fake.untyped_storage()
        self.storages[memory._cdata] = storage
        weakref.finalize(memory, self._freed, memory._cdata, storage)
        return storage

    def storage(self, tensor: ShapeTensor) -> Storage:
        return self.storages[storage_key(tensor.fake)]

    def bytes(self, fake: Tensor) -> Size:
        """Of the memory that a tensor with these sizes and strides needs when it is made."""
        total: Size = 1
        spanned: Size = 1
        for size, stride in zip(fake.shape, fake.stride(), strict=True):
            total = total * size_of(size)
            spanned = spanned + (size_of(size) - 1) * size_of(stride)
        broadcast = any(isinstance(stride, int) and stride == 0 for stride in fake.stride())
        return self.rename((spanned if broadcast else total) * fake.dtype.itemsize)

    def _freed(self, key: int, storage: Storage) -> None:
        if self.storages.get(key) is storage:
            del self.storages[key]
        self.write(Freed(storage))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = self._ours(args, kwargs or {})
        given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, ShapeTensor)]
        known = self._known(func, args, kwargs, given)
        if asks_for_data(func, args):
            return self._answer(func, args, kwargs, known, given)
        if func.overloadpacket in OF_ONE_DTYPE and len({t.dtype for t in given if t.is_floating_point() or t.ndim}) > 1:
            dtypes = ", ".join(dict.fromkeys(str(t.dtype) for t in given))
            raise TypeError(f"{func} of tensors of different dtypes: {dtypes}")
        fakes = self._run(func, args, kwargs)
        return self._wrap(func, args, kwargs, fakes, known, given)

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = pytree.tree_map_only(ShapeTensor, lambda tensor: tensor.fake, (args, kwargs))
        if isinstance(kwargs.get("device"), torch.device) and kwargs["device"].type == "meta":
            kwargs = {**kwargs, "device": self.device}
        with symbolic_mode(self.sizes.mode):
            return SHAPES.get(func, func)(*args, **kwargs)

    def _ours(self, args: Any, kwargs: Any) -> Any:
        """Tensors that the code brings along (constants, closures) as ours."""
        return pytree.tree_map_only(Tensor, lambda t: t if isinstance(t, ShapeTensor) else self._foreign(t), (args, kwargs))

    def _foreign(self, tensor: Tensor) -> ShapeTensor:
        if tensor.requires_grad:
            raise TraceError(
                f"{self.here or 'the model'} uses a tensor of shape {list(tensor.shape)} that is trained and that no module "
                "has as a parameter: register it, as self.name = nn.Parameter(...)"
            )
        if id(tensor) not in self.foreign:
            fake = self.empty(tensor.shape, tensor.stride(), tensor.dtype)
            self.adopt(fake, Storage(self.bytes(fake), STATE_OF_CODE))
            known = None if tensor.device.type == "meta" else Known(value=tensor)
            self.foreign[id(tensor)] = tensor, ShapeTensor(fake, known)
        return self.foreign[id(tensor)][1]

    def _known(self, func: Any, args: Any, kwargs: Any, given: list[ShapeTensor]) -> Known | None:
        if not is_function(func):
            if func._schema.is_mutable:
                self.written |= {self.storage(t) for t in written_by(func, args, kwargs)}
            return None
        if any(t.known is None or self.storage(t) in self.written for t in given):
            return if_finite(func, args)
        args, kwargs = pytree.tree_map_only(ShapeTensor, lambda tensor: tensor.known, (args, kwargs))
        if isinstance(kwargs.get("device"), torch.device):
            kwargs = {**kwargs, "device": torch.device("cpu")}
        return Known(func, tuple(args), dict(kwargs))

    def _answer(self, func: Any, args: Any, kwargs: Any, known: Known | None, given: list[ShapeTensor]) -> Any:
        """Of an op whose result, or its shape, depends on data: from what is known."""
        try:
            if known is None:
                raise Unknown
            value = known.compute()
        except Unknown:
            raise TraceError(
                f"{self.here or 'the model'} asks for the data of a tensor ({func}), which depends on weights or on inputs "
                "that came without data; give example inputs with data, or make the code independent of it"
            ) from None
        if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value)):
            return value
        like = pytree.tree_map_only(Tensor, lambda t: self.empty(t.shape, t.stride(), t.dtype), value)
        return self._wrap(func, args, kwargs, like, known, given)

    def _wrap(self, func: Any, args: Any, kwargs: Any, fakes: Any, known: Known | None, given: list[ShapeTensor]) -> Any:
        path = self._path()
        same = {id(tensor.fake): tensor for tensor in given}
        several = isinstance(fakes, tuple | list)
        made: list[Storage] = []

        def wrap(index: int, fake: Any) -> Any:
            if not isinstance(fake, Tensor):
                return fake
            if id(fake) in same:
                return same[id(fake)]
            if storage_key(fake) not in self.storages:
                size = self.rename(stored_bytes(func, args, self.bytes(fake)))
                made.append(self.adopt(fake, Storage(size, MADE, path, str(func))))
            return ShapeTensor(fake, part(known, index) if known and several else known)

        result = type(fakes)(wrap(i, f) for i, f in enumerate(fakes)) if several else wrap(0, fakes)
        for storage in made:
            self.write(Made(storage))
        if made or func._schema.is_mutable:
            self.write(kernel(func, args, kwargs, result, path, self.rename))
        if torch.Tag.inplace_view in func.tags:
            return correct_aliasing(func, args, kwargs, result)
        return result

    def _path(self) -> str:
        if self.tape.phase == BACKWARD:
            number = running_sequence_number()
            return self.here if number is None else self.paths.get(number, self.here)
        # the first op that runs under a number is the one that made the node; ops without a node see the number before
        self.paths.setdefault(next_sequence_number() - 1, self.here)
        return self.here


def asks_for_data(func: Any, args: Any) -> bool:
    """Whether the result, or its shape, depends on the arguments' values."""
    if torch.Tag.data_dependent_output in func.tags:
        return True
    if func.overloadpacket is torch.ops.aten.index:
        return any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
    return torch.Tag.dynamic_output_shape in func.tags and func not in SHAPES


def written_by(func: Any, args: Any, kwargs: Any) -> list[ShapeTensor]:
    """The arguments that an op writes into."""
    found = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            found += [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, ShapeTensor)]
    return found
