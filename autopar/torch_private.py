"""The one place that imports underscored names of torch; each with what it is for and the versions it was seen working on."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import sympy
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils import _python_dispatch, _pytree

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

TorchDispatchMode = _python_dispatch.TorchDispatchMode
"""Sees each op below autograd (torch 2.11 to 2.13)."""

pytree = _pytree
TreeSpec = _pytree.TreeSpec
OpOverload = torch._ops.OpOverload
OpOverloadPacket = torch._ops.OpOverloadPacket
"""The trees that torch.export speaks in, a ModelOutput of transformers included (torch 2.11 to 2.13)."""


@contextmanager
def fake_process_group(world_size: int, rank: int = 0) -> Iterator[None]:
    """A default process group whose collectives move nothing, torn down at the end.

    `FakeStore` (torch 2.11, 2.13): the store that the "fake" backend wants; importing it registers the backend.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def ranks_in_one_process(sizes: tuple[int, ...], names: tuple[str, ...]) -> Iterator[DeviceMesh]:
    """What `autopar.ir.local_ranks` says; `LocalTensorMode`: torch 2.11, 2.13."""
    from torch.distributed._local_tensor import LocalTensorMode
    from torch.distributed.device_mesh import init_device_mesh

    devices = math.prod(sizes)
    with fake_process_group(devices), LocalTensorMode(devices):
        yield init_device_mesh("cpu", sizes, mesh_dim_names=names)


def rank_map(value: Callable[[int], Tensor]) -> Tensor:
    """Inside `ranks_in_one_process`: the tensor that is `value(rank)` on each rank.

    `LocalTensorMode.rank_map`: torch 2.11, 2.13.
    """
    from torch.distributed._local_tensor import local_tensor_mode

    mode = local_tensor_mode()
    assert mode is not None, "rank_map is for use inside local_ranks"
    return mode.rank_map(value)


def by_rank(x: Tensor) -> dict[int, Tensor]:
    """The value of a `rank_map` tensor on each rank (`LocalTensor._local_tensors`: torch 2.11, 2.13)."""
    return dict(cast(dict[int, Tensor], x._local_tensors))  # type: ignore[attr-defined]


def coordinates(mesh: DeviceMesh) -> tuple[Tensor, ...]:
    """Inside `ranks_in_one_process`: per mesh axis the 0-dim int64 tensor of each rank's place on it."""
    sizes = tuple(mesh.shape)

    def along(axis: int) -> Tensor:
        inner = math.prod(sizes[axis + 1 :])
        return rank_map(lambda rank: torch.tensor(rank // inner % sizes[axis]))

    return tuple(along(axis) for axis in range(len(sizes)))


def fake_mode() -> contextlib.AbstractContextManager[object]:
    """Inside it, tensors have shapes, dtypes and devices but no data (`torch._subclasses.FakeTensorMode`: torch 2.13)."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


LOGGERS_OF_TRACES = "torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor"
"""Names of the loggers that remark on what a trace meets (torch 2.11 to 2.13)."""


def graph_if_traced() -> torch.fx.Graph | None:
    """The graph that a running `make_fx` or `torch.export` writes (`get_proxy_mode().tracer`: torch 2.11 to 2.13)."""
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    mode = get_proxy_mode()
    return None if mode is None else mode.tracer.graph


def unwatched() -> contextlib.AbstractContextManager[object]:
    """Inside it, reading sizes and flags of tensors calls no torch function modes, each of which takes as long as the reading
    (`torch._C.DisableTorchFunction`: torch 2.11 to 2.13)."""
    return cast(contextlib.AbstractContextManager[object], torch._C.DisableTorchFunction())


def size_of(size: int | torch.SymInt) -> int | sympy.Expr:
    """A dim's size as a plain int or the sympy expression in it (`SymInt.node.expr`: torch 2.11 to 2.13)."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    expression = size.node.expr
    return int(expression) if expression.is_Integer else expression


def in_python_dispatcher() -> contextlib.AbstractContextManager[object]:
    """Inside it, ops written in C++ that read sizes as numbers, as constant_pad_nd's, give way to their Python equals
    (`torch._dispatch.python.enable_python_dispatcher`: torch 2.11 to 2.13)."""
    from torch._dispatch.python import enable_python_dispatcher

    return enable_python_dispatcher()


@contextmanager
def symbolic_mode(mode: Any) -> Iterator[None]:
    """Inside it, tensors are fake tensors of `mode`, and ops run on symbolic sizes without fixing them."""
    with mode, in_python_dispatcher():
        yield


class AllocationTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While on, counts the bytes of tensor memory that is made and still alive: `bytes` now, `peak_bytes` at worst.

    Views are counted with their memory, once; what was there before, or is on the meta device, is not counted.
    `TorchDispatchMode`, and storages as Python objects that live as long as their memory: torch 2.11, 2.13.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.peak_bytes = 0
        self.alive: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {t.untyped_storage()._cdata for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, Tensor) and not tensor.is_meta:
                self._count(tensor.untyped_storage(), before)
        return result

    def _count(self, storage: torch.UntypedStorage, before: set[int]) -> None:
        key = storage._cdata
        if key in self.alive or key in before:
            return
        self.alive[key] = storage.nbytes()
        self.bytes += self.alive[key]
        self.peak_bytes = max(self.peak_bytes, self.bytes)
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.bytes -= self.alive.pop(key, 0)


def placed_like(local: Tensor, placed: Any) -> Any:
    """A local piece as DTensor of another one's shape and placement; `DTensor.from_local` takes ten times longer.

    `DTensor.__new__` (which autograd does not see), `DTensor._spec`: torch 2.11, 2.13.
    """
    return type(placed)(local, placed._spec, requires_grad=False)


@dataclass(frozen=True)
class SymbolicSizes:
    """Fake tensors whose sizes may be symbols, and those symbols by name."""

    mode: Any
    sizes: Mapping[str, torch.SymInt]

    def replaced(self) -> dict[str, tuple[Any, str]]:
        """Symbols that code has meanwhile fixed: name -> (to what, where).

        `ShapeEnv.replacements`, `ShapeEnv.guards` with `sloc` (torch 2.11 to 2.13).
        """
        env = self.mode.shape_env
        found = {}
        for name, size in self.sizes.items():
            symbol = size.node._expr
            if symbol in env.replacements:
                where = [str(g.sloc) for g in env.guards if symbol in g.expr.free_symbols]
                found[name] = env.replacements[symbol], where[0] if where else ""
        return found

    def guards_of_the_model(self) -> list[sympy.Basic]:
        """Conditions on the symbols of branches that the model's code took by a size (torch's own code left out).

        What a slice reaches counts too: where it ends within what is sliced, its size is another than where it does not
        (`_compute_slice_index` of torch's fake tensors: torch 2.11 to 2.13).
        """
        return [guard.expr for guard in self.mode.shape_env.guards if not _is_of_torch(str(guard.sloc))]


def _is_of_torch(where: str) -> bool:
    """Whether a guard's `sloc`, as "(nn/functional.py:12 in f)", is in a file of torch's, but for slices."""
    if where.endswith(" in _compute_slice_index)"):
        return False
    file = where.strip("(").partition(":")[0]
    return (Path(torch.__file__).parent / file).exists()


def symbolic_sizes(examples: Mapping[str, int]) -> SymbolicSizes:
    """A fake tensor mode with one symbol per name; `examples` decide branches.

    `FakeTensorMode`, `ShapeEnv.create_symbol`, `ConstantSource` (torch 2.11 to 2.13).
    """
    from torch._dynamo.source import ConstantSource
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

    env = ShapeEnv()
    sizes = {}
    for name, example in examples.items():
        source = ConstantSource(name)
        symbol = env.create_symbol(example, source, dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None)
        sizes[name] = cast(torch.SymInt, env.create_symintnode(symbol, hint=example, source=source))
    return SymbolicSizes(FakeTensorMode(shape_env=env, allow_non_fake_inputs=True), sizes)


def example_of(size: Any) -> Any:
    """The example value of a symbolic int, float or bool; anything else as it is (`SymNode.hint`: torch 2.11 to 2.13)."""
    return size.node.hint if isinstance(size, torch.SymInt | torch.SymFloat | torch.SymBool) else size


def wrapper_like(cls: type, fake: Tensor, requires_grad: bool) -> Any:
    """A tensor of a subclass, like another in shape, strides, dtype and device.

    `Tensor._make_wrapper_subclass`: torch 2.11 to 2.13.
    """
    return Tensor._make_wrapper_subclass(
        cls,
        fake.shape,
        strides=fake.stride(),
        storage_offset=fake.storage_offset(),
        dtype=fake.dtype,
        device=fake.device,
        requires_grad=requires_grad,
    )


no_torch_function = torch._C._disabled_torch_function_impl
"""For subclasses that only care for what happens below autograd (torch 2.11 to 2.13)."""


def storage_key(tensor: Tensor) -> int:
    """What tells one memory from another while both exist (`UntypedStorage._cdata`: torch 2.11 to 2.13)."""
    return cast(int, tensor.untyped_storage()._cdata)


def next_sequence_number() -> int:
    """Of the next autograd node of this thread (`torch._C._autograd._get_sequence_nr`: torch 2.11 to 2.13)."""
    return torch._C._autograd._get_sequence_nr()


def running_sequence_number() -> int | None:
    """Of the autograd node that is running backward (`torch._C._current_autograd_node`, `_sequence_nr`: torch 2.11 to 2.13)."""
    node = torch._C._current_autograd_node()
    return None if node is None else node._sequence_nr()


def correct_aliasing(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
    """For subclasses: the result as autograd expects it (`return_and_correct_aliasing`: torch 2.11 to 2.13)."""
    return _python_dispatch.return_and_correct_aliasing(func, args, kwargs, result)  # type: ignore[no-untyped-call]


@contextmanager
def symbolic_mode_alone(mode: Any) -> Iterator[None]:
    """As `symbolic_mode`, with all other dispatch modes off."""
    with without_modes(), symbolic_mode(mode):
        yield


def is_grad_switch(target: Any) -> bool:
    """Whether a node that is being traced turns gradients on or off (`torch._C._set_grad_enabled`: torch 2.11 to 2.13)."""
    return target is torch._C._set_grad_enabled


def checkpoint_hook() -> Any | None:
    """What packs saved tensors while a non-reentrant checkpoint runs, one object per call of it; None outside of any.

    `_top_saved_tensors_default_hooks`, `_checkpoint_hook`: torch 2.11 to 2.13.
    """
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks[0] if hooks and hooks[0].__qualname__.startswith("_checkpoint_hook.") else None


def is_selective_checkpoint() -> bool:
    """Whether the running checkpoint decides per op (`_CachingTorchDispatchMode` of `context_fn`: torch 2.11 to 2.13)."""
    return any(type(mode).__name__ == "_CachingTorchDispatchMode" for mode in active_modes())


def active_modes() -> list[Any]:
    """All modes that see ops before they run: a default device, a tracer (`_get_current_*_mode_stack`: torch 2.11 to 2.13)."""
    from torch.overrides import _get_current_function_mode_stack

    return [*_get_current_function_mode_stack(), *_python_dispatch._get_current_dispatch_mode_stack()]  # type: ignore[no-untyped-call]


def is_fake(tensor: Tensor) -> bool:
    """Whether it has a device and sizes, but no data (`FakeTensor`: torch 2.11 to 2.13)."""
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(tensor, FakeTensor)


def is_plain_fake(tensor: Tensor) -> bool:
    """A fake tensor whose content nobody knows and that nobody gave attributes (`FakeTensor`: torch 2.11 to 2.13)."""
    from torch._subclasses.fake_tensor import FakeTensor

    own = {"fake_mode", "fake_device", "constant", "pytype", "dispatch_keys", "real_tensor"}
    private = all(name in own or name.startswith("_") for name in vars(tensor))
    return type(tensor) is FakeTensor and tensor.constant is None and private


def default_store() -> Any:
    """The store that the default process group met in (`distributed_c10d._get_default_store`: torch 2.11 to 2.13)."""
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()


def gradient_numbers(tensor: Tensor, known: Container[int]) -> Iterator[int]:
    """Numbers of the autograd nodes behind a tensor, up to those that are known (`_sequence_nr`: torch 2.11 to 2.13)."""
    waiting: list[Any] = [tensor.grad_fn]
    seen: set[int] = set()
    while waiting:
        node = waiting.pop()
        if node is not None and (number := node._sequence_nr()) not in known and number not in seen:
            seen.add(number)
            yield number
            waiting += [source for source, _ in node.next_functions]


def peak_tracker() -> Any:
    """torch's own tracker of memory, which benchmarks compare with (`MemTracker`: torch 2.11 to 2.13)."""
    from torch.distributed._tools.mem_tracker import MemTracker

    return MemTracker()


def cpu_peak_bytes(run: Callable[[], object]) -> int:
    """The most memory that the CPU allocator had given out during `run`, beyond what it had before; for benchmarks.

    Unlike `AllocationTracker` it also sees what compiled code takes. The allocator's reports to the profiler
    (`profile.profiler.kineto_results`): torch 2.13.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    assert profile.profiler is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: int(e.start_ns())):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def inductor_within(budget: float) -> Callable[..., Any]:
    """A backend of `torch.compile` that keeps this share of the activations (`activation_memory_budget`: torch 2.13)."""

    def compiled(module: Any, inputs: Any) -> Any:
        from torch._functorch import config
        from torch._inductor.compile_fx import compile_fx

        with config.patch(activation_memory_budget=budget):
            return compile_fx(module, inputs)

    return compiled


def compile_by_inductor(
    run: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor], *, is_backward: bool, options: Mapping[str, Any]
) -> tuple[torch.fx.GraphModule, Callable[[list[Tensor]], Sequence[Tensor]], str]:
    """The ATen graph of a function of tensors that Inductor got, what it made of it, which takes a list that it empties, and
    the code of that.

    `inputs` are tensors in the `fake_mode` that is on; shapes, strides and dtypes are fixed by them. Results have the strides
    that they have in `run`. `torch._inductor`: `select_decomp_table`, `config.patch` and `compile_fx_inner`, which is what
    AOTAutograd calls with each of its two graphs ("user_visible_output_idxs": results whose strides count; `source_code`);
    torch 2.13.
    """
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(torch.func.functionalize(run), decomposition_table=select_decomp_table())(*inputs)
    graph.graph.eliminate_dead_code()
    results = graph.graph.output_node()
    results.meta["user_visible_output_idxs"] = list(range(len(cast(tuple[Any, ...], results.args[0]))))
    got = torch.fx.GraphModule(graph, torch.fx.Graph())
    got.graph.output(got.graph.graph_copy(graph.graph, {}))
    with config.patch(dict(options)):
        compiled = compile_fx_inner(graph, list(inputs), is_backward=is_backward)
    return got, cast(Callable[[list[Tensor]], Sequence[Tensor]], compiled), str(getattr(compiled, "source_code", ""))


def cpp_compiler() -> str | None:
    """The C++ compiler that Inductor takes; None if there is none (`get_cpp_compiler`, `InvalidCxxCompiler`: torch 2.13)."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return get_cpp_compiler()
    except InvalidCxxCompiler:
        return None


def fake_like(mode: Any, shape: list[int], stride: list[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of a `FakeTensorMode` that looks so, made without running an op in it (`FakeTensor`: torch 2.11 to 2.13)."""
    from torch._subclasses.fake_tensor import FakeTensor

    like = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
    return cast(Tensor, FakeTensor(mode, like, device))


def global_module_hooks() -> bool:
    """Whether there are hooks on the calls of all modules (`_global_forward_hooks` and its like: torch 2.11 to 2.13)."""
    from torch.nn.modules import module

    return bool(module._global_forward_hooks or module._global_forward_pre_hooks)


def without_modes() -> contextlib.AbstractContextManager[object]:
    """Inside it, ops on tensors with data run, whatever is being traced (`_disable_current_modes`: torch 2.11 to 2.13)."""
    return cast(contextlib.AbstractContextManager[object], _python_dispatch._disable_current_modes())


def autograd_inside_op() -> contextlib.AbstractContextManager[object]:
    """Inside the code of an op, where autograd is off: on again (`_ForceDispatchKeyGuard`: torch 2.11 to 2.13)."""
    keys, off = torch._C.DispatchKey, torch._C._dispatch_tls_local_exclude_set()
    for name in ("ADInplaceOrView", *(n for n in dir(keys) if n.startswith("Autograd"))):
        off = off.remove(getattr(keys, name))
    return torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), off)
