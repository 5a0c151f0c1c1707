"""What a real run costs: FLOPs that torch counts, and storages that autograd saves. `eager_memory` measures peaks."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count, flop_registry

aten = torch.ops.aten
SAME_COUNT_AS = {
    aten._scaled_dot_product_flash_attention_for_cpu: aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: aten._scaled_dot_product_flash_attention_backward,
}
"""torch 2.11 to 2.13 count nothing for the CPU's flash attention; it does the same products as the GPU's."""

Counts = Mapping[Any, Callable[..., int]]

TORCH: Counts = {}
"""All as `FlopCounterMode` counts it."""


def _as_twin(twin: Any) -> Callable[..., int]:
    count = flop_registry[twin]
    like = lambda *args, **kwargs: count(*args, **kwargs)  # noqa: E731
    like._get_raw = True  # type: ignore[attr-defined]
    return like


def _grouped_mm(a: list[int], b: list[int], *_: Any, **__: Any) -> int:
    """Each row, or each column, of all groups once; both 3-d is a plain bmm."""
    return 2 * a[-2] * a[-1] * b[-1] * (a[0] if len(a) == len(b) == 3 else 1)


def _grouped_convolution_backward(*args: Any, **_: Any) -> int:
    """One product of forward's size for each gradient that is wanted, of input and of weight."""
    grad_out, x, weight, _bias, _stride, _padding, _dilation, transposed, _output_padding, _groups, wanted = args
    return sum(wanted[:2]) * conv_flop_count(x, weight, grad_out, transposed)


FILLED: Counts = {op: _as_twin(twin) for op, twin in SAME_COUNT_AS.items()} | {torch.ops.aten._grouped_mm: _grouped_mm}
"""What it leaves out on the CPU counted too: flash attention, as on the GPU, and products of experts."""

CORRECTED: Counts = {**FILLED, torch.ops.aten.convolution_backward: _grouped_convolution_backward}
"""Also without what it counts `groups` times too much; see docs/profile-accuracy.md."""


def count_flops_by_op(run: Callable[[], Any], counts: Counts = FILLED) -> tuple[Any, dict[str, int]]:
    """(result, FLOPs per op as "aten.mm") by `FlopCounterMode`, with other formulas for some ops."""
    with FlopCounterMode(display=False, custom_mapping=dict(counts)) as counter:
        result = run()
    return result, {str(op): flops for op, flops in counter.get_flop_counts().get("Global", {}).items()}


def count_flops(run: Callable[[], Any]) -> tuple[Any, int]:
    """(result, FLOPs) of `count_flops_by_op`."""
    result, by_op = count_flops_by_op(run)
    return result, sum(by_op.values())


@dataclass(frozen=True, kw_only=True)
class Flops:
    """FLOPs per op of one forward and of its backward."""

    forward_by_op: dict[str, int]
    backward_by_op: dict[str, int]

    @property
    def forward(self) -> int:
        return sum(self.forward_by_op.values())

    @property
    def backward(self) -> int:
        return sum(self.backward_by_op.values())


def training_flops(model: nn.Module, kwargs: Mapping[str, Tensor], counts: Counts = FILLED) -> Flops:
    """Of the model that returns a loss; leaves gradients behind."""
    loss, forward = count_flops_by_op(lambda: model(**kwargs)["loss"], counts)
    _, backward = count_flops_by_op(loss.backward, counts)
    return Flops(forward_by_op=forward, backward_by_op=backward)


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What the autograd graph of a loss holds at the end of forward: bytes of whole storages, each storage once.

    `bytes` leaves out parameters, buffers and the model's inputs; `input_bytes` are the inputs' storages among what is
    saved; `context_bytes` are tensors that a Python autograd function keeps as an attribute of its ctx, unseen by
    saved-tensor hooks and freed only with the node (not part of `bytes`).
    """

    sizes: Counter[int]
    input_bytes: int
    context_bytes: int

    @property
    def bytes(self) -> int:
        return total(self.sizes)


class _Packed:
    """What autograd holds instead of a tensor, so that what it lets go is seen."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def saved_tensors(model: nn.Module, kwargs: Mapping[str, Tensor]) -> Saved:
    """Of `model(**kwargs)["loss"]` run eagerly, as soon as the model has returned and its other outputs are gone."""
    held: weakref.WeakSet[_Packed] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Packed:
        packed = _Packed(tensor)
        held.add(packed)
        return packed

    with saved_tensors_hooks(pack, lambda packed: packed.tensor):
        loss = model(**kwargs)["loss"]
    storages = _storages(packed.tensor for packed in held)
    own = set(_storages(state_of(model).values()))
    inputs = set(_storages(kwargs.values()))
    context = _storages(_context_tensors(loss.grad_fn)).items() - storages.items()
    return Saved(
        sizes=Counter(size for address, size in storages.items() if address not in own | inputs),
        input_bytes=sum(size for address, size in storages.items() if address in inputs),
        context_bytes=sum(size for address, size in context if address not in own | inputs),
    )


def saved_storages(run: Callable[[], Any], state: Mapping[str, Tensor]) -> Counter[int]:
    """Bytes of each storage that autograd saves while running -> how many such; storages of `state` are left out."""
    known = set(_storages(state.values()))
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in known:
            kept[address] = tensor
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        result = run()
    sizes = Counter(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del result
    return sizes


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def total(sizes: Mapping[int, int]) -> int:
    return sum(size * count for size, count in sizes.items())


def _storages(tensors: Any) -> dict[int, int]:
    """Address -> bytes of the distinct storages; those of no bytes share the address 0."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def _context_tensors(node: Node | None) -> Iterator[Tensor]:
    """Tensors in the `__dict__` of Python functions' nodes below."""
    seen, todo = set(), [node]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        todo += [below for below, _ in node.next_functions]
        yield from (value for value in getattr(node, "__dict__", {}).values() if isinstance(value, Tensor))
