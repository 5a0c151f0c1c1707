"""What an optimizer holds: its state, and what is alive for a moment inside its step.

No table of formulas: torch's own optimizer takes a step on meta tensors, under a tracker of allocations. A model has few
distinct parameters, so few are run:

- *for-loop*, torch's choice on the CPU: one parameter after the other, while local variables of the ones before still live.
  Each parameter is stepped once after each `predecessors` that it has somewhere in the model.
- *foreach*, torch's choice on CUDA (but for Adafactor): all parameters of a dtype at once. Each distinct parameter stands
  for all its equals, and so does each tensor made from it.
- *fused*: one kernel per parameter list, without temporaries.

8-bit Adam is a formula, since it is not part of torch.
"""

from __future__ import annotations

import math
from collections import ChainMap, Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adafactor, Adam, AdamW, Optimizer

from autopar.errors import InputError
from autopar.torch_private import AllocationTracker, pytree, storage_key

Parameter = tuple[tuple[int, ...], torch.dtype]
"""Shape and dtype; gradients have both too."""

Implementation = Literal["for-loop", "foreach", "fused"]

TORCH_OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = {
    "adam": Adam,
    "adamw": AdamW,
    "sgd": SGD,
    "momentum": lambda parameters, **options: SGD(parameters, momentum=0.9, **options),
    "adafactor": Adafactor,
}
OPTIMIZERS = (*TORCH_OPTIMIZERS, "adam8bit")


@dataclass(frozen=True, kw_only=True)
class OptimizerBytes:
    """Bytes on one device, for all parameters together.

    `state_bytes`: kept between steps, as large as parameters or their rows. `counter_bytes`: step counters, which torch
    keeps on the host (unless fused or capturable) whatever the parameters' device. `master_bytes`: copies of parameters in
    the master dtype. `step_bytes`: the most alive inside a step beyond what is alive before it, once state exists.
    """

    state_bytes: int
    counter_bytes: int
    master_bytes: int
    step_bytes: int

    @property
    def resting_bytes(self) -> int:
        """What the device holds between steps besides parameters and gradients."""
        return self.state_bytes + self.master_bytes


def optimizer_bytes(
    name: str,
    parameters: Iterable[tuple[Sequence[int], torch.dtype]],
    *,
    implementation: Implementation = "for-loop",
    master_dtype: torch.dtype | None = None,
) -> OptimizerBytes:
    """Of an optimizer with torch's default options over trained parameters, in the order in which it is given them.

    With `master_dtype`, parameters of another dtype have a copy in it; state has it too, and a step first casts all their
    gradients to it. Raises InputError for an optimizer that is not in `OPTIMIZERS`.

    >>> optimizer_bytes("adamw", [((4, 8), torch.float32)]).state_bytes
    256
    """
    if name not in OPTIMIZERS:
        raise InputError(f"unknown optimizer {name!r}: use one of {', '.join(sorted(OPTIMIZERS))}")
    given = [(tuple(int(n) for n in shape), dtype) for shape, dtype in parameters]
    stepped = [(shape, master_dtype or dtype) for shape, dtype in given]
    copies = sum(_bytes(new) for new, old in zip(stepped, given, strict=True) if new != old)
    if name == "adam8bit":
        return OptimizerBytes(state_bytes=adam8bit_state(stepped), counter_bytes=0, master_bytes=copies, step_bytes=copies)
    counts = Counter(stepped)
    distinct = _foreach(name, tuple(counts.items())) if implementation == "foreach" else _loop(name, tuple(stepped))
    return OptimizerBytes(
        state_bytes=sum(count * distinct.state[parameter] for parameter, count in counts.items()),
        counter_bytes=sum(count * distinct.counters[parameter] for parameter, count in counts.items()),
        master_bytes=copies,
        step_bytes=copies + (0 if implementation == "fused" else distinct.step_bytes),
    )


def default_implementation(name: str, device_type: str) -> Implementation:
    """What torch chooses when not told: foreach on CUDA for all but Adafactor (torch 2.11 to 2.13)."""
    return "foreach" if device_type == "cuda" and name != "adafactor" else "for-loop"


def adam8bit_state(parameters: Iterable[Parameter]) -> int:
    """Bytes of block-wise 8-bit Adam's state as bitsandbytes keeps it (`Adam8bit`, `AdamW8bit`; Dettmers et al. 2021).

    From 4096 elements on: per moment one byte per element and a float32 scale per block of 256, and for all parameters
    together two maps of 256 float32; smaller ones: two float32 moments. (`optim/optimizer.py`, `Optimizer2State.init_state`;
    blocks were of 2048 before version 0.44. torchao's differs in that small ones keep the parameter's dtype.)
    """
    sizes = [math.prod(shape) for shape, _ in parameters]
    large = [n for n in sizes if n >= 4096]
    moments = sum(n + 4 * math.ceil(n / 256) for n in large) + sum(4 * n for n in sizes if n < 4096)
    return 2 * (moments + 4 * 256 * bool(large))


class _Tracker(AllocationTracker):  # type: ignore[no-untyped-call]
    """Weighs what is made from a parameter by the number of parameters that it stands for, and answers for absent values."""

    def __init__(self, weights: Mapping[int, int]) -> None:
        super().__init__()
        self.weights = dict(weights)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return 1.0  # Adafactor reads norms
        result = func(*args, **(kwargs or {}))
        if isinstance(result, list | tuple) and args and isinstance(args[0], list | tuple):
            for made, source in zip(result, args[0], strict=True):
                self._add(made, [source])
        else:
            sources = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            for made in pytree.tree_leaves(result):
                self._add(made, sources)
        return result

    def _add(self, made: Any, sources: Sequence[Tensor]) -> None:
        """Count what an op made from these tensors, if it is on the optimizer's device and no memory of theirs."""
        if not (isinstance(made, Tensor) and made.is_meta):
            return
        key = storage_key(made)
        if key in self.alive or any(storage_key(source) == key for source in sources):
            return
        self.weights[key] = max((self.weights.get(storage_key(source), 1) for source in sources), default=1)
        self._count(made.untyped_storage(), set())
        extra = (self.weights[key] - 1) * self.alive[key]
        self.alive[key] += extra
        self.bytes += extra
        self.peak_bytes = max(self.peak_bytes, self.bytes)


@dataclass(frozen=True, kw_only=True)
class _Step:
    """What a step of some parameters needs beyond state, and what each of them has as state and as counters."""

    step_bytes: int
    state: Mapping[Parameter, int]
    counters: Mapping[Parameter, int]


def _step(name: str, counts: Sequence[tuple[Parameter, int]], foreach: bool) -> _Step:
    """Of a first step, which makes all state before anything else; each parameter stands for that many."""
    made = [_meta(parameter) for parameter, _ in counts]
    weights = {storage_key(t): n for p, (_, n) in zip(made, counts, strict=True) for t in (p, p.grad) if t is not None}
    optimizer = TORCH_OPTIMIZERS[name](made, foreach=foreach)
    with _Tracker(weights) as tracker:
        optimizer.step()
    kept = [[t for t in optimizer.state[p].values() if isinstance(t, Tensor)] for p in made]
    return _Step(
        step_bytes=tracker.peak_bytes - tracker.bytes,
        state={p: sum(t.nbytes for t in own if t.is_meta) for (p, _), own in zip(counts, kept, strict=True)},
        counters={p: sum(t.nbytes for t in own if not t.is_meta) for (p, _), own in zip(counts, kept, strict=True)},
    )


@cache
def _loop(name: str, parameters: tuple[Parameter, ...]) -> _Step:
    steps = [_step(name, [(parameter, 1) for parameter in run], False) for run in stretches(parameters)]
    return _Step(
        step_bytes=max((step.step_bytes for step in steps), default=0),
        state=dict(ChainMap(*(dict(step.state) for step in steps))),
        counters=dict(ChainMap(*(dict(step.counters) for step in steps))),
    )


@cache
def _foreach(name: str, counts: tuple[tuple[Parameter, int], ...]) -> _Step:
    return _step(name, counts, True) if counts else _Step(step_bytes=0, state={}, counters={})


def stretches(parameters: Sequence[Parameter]) -> list[list[Parameter]]:
    """A few short sequences in which each parameter follows, among others, whatever `predecessors` it has in the given one."""
    seen: set[tuple[Parameter, ...]] = set()
    found: list[list[int]] = []
    for i, before in enumerate(predecessors(parameters)):
        window = tuple(parameters[j] for j in (*before, i))
        if window in seen:
            continue
        seen.add(window)
        if found and found[-1][-1] == i - 1:
            found[-1].append(i)
        else:
            found.append([*before, i])
    return [[parameters[i] for i in run] for run in found]


def predecessors(parameters: Sequence[Parameter]) -> Iterator[list[int]]:
    """Per parameter, whose temporaries may live on while it is stepped: the last vector before it, and the last matrix.

    One of them is the one just before. Adafactor treats the two apart, each with local variables of its own.
    """
    last: dict[bool, int] = {}
    for i, (shape, _) in enumerate(parameters):
        yield sorted(last.values())
        last[len(shape) > 1] = i


def _meta(parameter: Parameter) -> nn.Parameter:
    """A parameter of no content with a gradient of none."""
    shape, dtype = parameter
    made = nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"))
    made.grad = torch.empty_like(made)
    return made


def _bytes(parameter: Parameter) -> int:
    shape, dtype = parameter
    return math.prod(shape) * dtype.itemsize
