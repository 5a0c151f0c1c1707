"""Bytes of tensor storage that a real training step holds at worst, by two dispatch-level trackers.

What is alive is what a plain training loop holds, and nothing for the sake of the measurement:

    loss = model(**batch)["loss"]; loss.backward(); optimizer.step(); optimizer.zero_grad(set_to_none=True)

so the logits die as soon as the model has returned, unless backward needs them.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._tools.mem_tracker import MemTracker
from torch.optim import AdamW, Optimizer
from torch.utils._pytree import tree_leaves

from autopar.torch_private import AllocationTracker
from tests.profiler.eager import state_of

Timeline = list[tuple[str, int]]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Bytes alive after each op, with what was there before (`resting_bytes`: state, inputs, optimizer state).

    The marks "forward", "backward", "step", "zero_grad" follow the last op of each phase, when its temporaries are gone.
    """

    resting_bytes: int
    timeline: Timeline

    @property
    def peak_bytes(self) -> int:
        return max(size for _, size in self.timeline)

    @property
    def peak_at(self) -> int:
        """Index of the first op of the timeline at which the peak is reached."""
        return [size for _, size in self.timeline].index(self.peak_bytes)

    def after(self, mark: str) -> int:
        return dict(self.timeline)[mark]

    def phase_peak(self, mark: str) -> int:
        """The peak within the phase that ends at this mark."""
        names = [name for name, _ in self.timeline]
        ends = [i for i, name in enumerate(names) if name in PHASES]
        end = names.index(mark)
        start = max((i for i in ends if i < end), default=-1)
        return max(size for _, size in self.timeline[start + 1 : end + 1])


PHASES = ("forward", "backward", "step", "zero_grad")


class TimelineTracker(AllocationTracker):
    """Writes down the bytes alive after each op; what rests is counted from the start.

    Unlike its base, which knows nothing of what was there before, it counts a storage that first shows up as an argument:
    `torch.tensor(0.0)`, of which Adam makes one per parameter, is seen as `lift_fresh` of a tensor that no op made.
    """

    def __init__(self, resting: Iterable[Tensor]) -> None:
        super().__init__()
        self.timeline: Timeline = []
        for tensor in resting:
            self._count(tensor.untyped_storage(), set())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage(), set())
        self.timeline.append((str(func), self.bytes))
        return result

    def mark(self, name: str) -> None:
        self.timeline.append((name, self.bytes))

    def take(self, resting_bytes: int) -> Measured:
        """What was written since the last call."""
        taken, self.timeline = self.timeline, []
        return Measured(resting_bytes=resting_bytes, timeline=taken)


class TotalsTracker(MemTracker):
    """MemTracker as it is, but for the hooks by which it tells gradients from temporaries.

    They fail on a parameter that wants no gradient (torch 2.11 to 2.13: "cannot register a hook on a tensor that doesn't
    require gradient"); the totals do not need them.
    """

    def _track_module_params_and_buffers(self, module: nn.Module, install_grad_hooks: bool = True) -> tuple[int, int]:
        return super()._track_module_params_and_buffers(module, install_grad_hooks=False)


def adamw(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return AdamW(parameters, foreach=False)


def training_steps(
    model: nn.Module,
    kwargs: Mapping[str, Tensor],
    *,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = adamw,
    steps: int = 2,
) -> list[Measured]:
    """One measurement per step; the first makes the optimizer's state, the second finds it there."""
    stepper = optimizer(model.parameters())
    measured = []
    with _no_collection(), TimelineTracker(resting(model, kwargs)) as tracker:
        for _ in range(steps):
            before = tracker.bytes
            train(model, kwargs, stepper, tracker.mark)
            measured.append(tracker.take(before))
    return measured


def mem_tracker_peaks(
    model: nn.Module,
    kwargs: Mapping[str, Tensor],
    *,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = adamw,
    steps: int = 2,
) -> list[int]:
    """Peak bytes of each step by torch's own `MemTracker`, which knows the model, its inputs and the optimizer."""
    stepper = optimizer(model.parameters())
    peaks = []
    with _no_collection(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Module is None")  # figures by module go without a hook or two, totals do not
        for _ in range(steps):
            tracker = TotalsTracker()
            tracker.track_external(model, stepper, *kwargs.values())
            with tracker:
                train(model, kwargs, stepper)
            peaks.append(int(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]))
    return peaks


def train(
    model: nn.Module, kwargs: Mapping[str, Tensor], optimizer: Optimizer, mark: Callable[[str], None] = lambda phase: None
) -> None:
    loss = model(**kwargs)["loss"]
    mark("forward")
    loss.backward()
    mark("backward")
    optimizer.step()
    mark("step")
    optimizer.zero_grad(set_to_none=True)
    mark("zero_grad")


def inference(model: nn.Module, kwargs: Mapping[str, Tensor]) -> Measured:
    """One forward in eval mode without gradients, of which only the loss is kept; leaves the model in eval mode."""
    model.eval()
    with _no_collection(), torch.no_grad(), TimelineTracker(resting(model, kwargs)) as tracker:
        before = tracker.bytes
        loss = model(**kwargs)["loss"]
        tracker.mark("forward")
    del loss
    return tracker.take(before)


def resting(model: nn.Module, kwargs: Mapping[str, Tensor]) -> list[Tensor]:
    """Parameters, buffers and inputs."""
    return [*state_of(model).values(), *kwargs.values()]


def resting_bytes(model: nn.Module, kwargs: Mapping[str, Tensor]) -> int:
    """Of parameters, buffers and inputs, each storage once."""
    storages = [t.untyped_storage() for t in resting(model, kwargs)]
    return sum({s._cdata: s.nbytes() for s in storages}.values())


class _no_collection:
    """Reference cycles live until the end, as they may in any run: the same bytes every time."""

    def __enter__(self) -> None:
        gc.collect()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        gc.enable()
        gc.collect()
