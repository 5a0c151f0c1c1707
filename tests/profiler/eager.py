"""What a real run costs: FLOPs that torch counts, and storages that autograd saves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from autopar.ops.flops import SAME_COUNT_AS


def count_flops(run: Callable[[], Any]) -> tuple[Any, int]:
    """(result, FLOPs) by `FlopCounterMode`, with the CPU's flash attention, which it leaves out, counted as the GPU's."""

    def as_twin(twin: Any) -> Callable[..., int]:
        count = flop_registry[twin]
        like = lambda *args, **kwargs: count(*args, **kwargs)  # noqa: E731
        like._get_raw = True  # type: ignore[attr-defined]
        return like

    with FlopCounterMode(display=False, custom_mapping={op: as_twin(twin) for op, twin in SAME_COUNT_AS.items()}) as counter:
        result = run()
    return result, counter.get_total_flops()


def saved_storages(run: Callable[[], Any], state: Mapping[str, Tensor]) -> Counter[int]:
    """Bytes of each storage that autograd saves while running -> how many such; storages of `state` are left out."""
    known = {t.untyped_storage().data_ptr() for t in state.values()}
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
