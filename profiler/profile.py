"""The profile of a model: what one training step costs on one device, in closed form.

The model's own code runs once on shapes alone (`autopar.profiler.step`), with its backward; figures are sums over the kernels
that ran and over the memory that was made and let go. Nothing is fitted: sizes are symbols of torch's own.

    peak = what rests (parameters, buffers, inputs, optimizer state) + the highest level of everything else over time
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import sympy
import torch
from torch import nn

from autopar.bytes import parse_bytes
from autopar.errors import InputError
from autopar.hardware import Hardware
from autopar.ir.precision import Precision
from autopar.ir.shown import Shown
from autopar.profiler.closed_form import largest, pruned
from autopar.profiler.kept import KeptRow, kept_rows, temporary_bytes
from autopar.profiler.memory import MemoryAt, memory_at
from autopar.profiler.optimizers import OPTIMIZERS, OptimizerBytes, default_implementation, optimizer_bytes
from autopar.profiler.precision import ModelPrecision
from autopar.profiler.rows import ModuleRow, OpAt, OpRow, Paths, RegionRow, module_rows, op_at, op_rows, region_rows
from autopar.profiler.solve import largest_size
from autopar.profiler.step import Marks, Recording, record
from autopar.profiler.tape import BACKWARD, FORWARD, GRADIENT, Size, Storage
from autopar.profiler.timeline import Timeline, timeline, total


@dataclass(frozen=True, kw_only=True)
class ProfileAt:
    """A profile at one size: numbers, in bytes, FLOPs and seconds. Times are None without hardware."""

    parameter_count: int
    parameter_bytes: int
    buffer_bytes: int
    input_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    saved_bytes: int
    temporary_bytes: int
    peak_bytes: int
    inference_peak_bytes: int
    forward_flops: int
    backward_flops: int
    torch_forward_flops: int
    torch_backward_flops: int
    other_forward_flops: int
    other_backward_flops: int
    moved_bytes: int
    forward_s: float | None
    backward_s: float | None
    optimizer_s: float | None

    @property
    def step_s(self) -> float | None:
        """Seconds of a whole training step by the roofline."""
        if self.forward_s is None or self.backward_s is None or self.optimizer_s is None:
            return None
        return self.forward_s + self.backward_s + self.optimizer_s


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Expected by the roofline: seconds per step, tokens (or samples) per second, model-FLOPs utilization in [0, 1].

    Utilization is (forward + backward FLOPs) / (step seconds * the device's peak FLOP/s in the dtype of most FLOPs).
    """

    step_s: float
    tokens_per_s: float
    unit: str
    mfu: float


@dataclass(frozen=True, kw_only=True)
class Profile(Shown):
    """Of one training step on one device: sympy expressions in the dynamic dims, sympy Integers where there are none.

    `forward_flops`, `backward_flops`: of products (matmuls, convolutions, attention), a multiply-add is two. `torch_*`: what
    torch's `FlopCounterMode` counts of them. `other_*`: arithmetic of all other ops, where torch counts nothing.
    `moved_bytes`: read and written by all kernels of forward and backward. `saved_bytes`: what backward needs of what forward
    made (parameters, buffers and inputs excluded), each storage once; `kept` has it by op. `temporary_bytes`: the most that
    exists at once beside that and the parameters' gradients. `peak_bytes`: of a whole training step, optimizer
    included; `inference_peak_bytes`: of a forward in eval mode without gradients. `examples`: sizes of the dynamic dims in the
    example inputs. `assumptions` are conditions on the dims under which the model's code does the same as at these sizes.

    >>> # profile = autopar.profile(model, kwargs=batch, dynamic={"batch": 0, "seq": 1}, hardware="h100-sxm")
    >>> # profile.peak_bytes, profile.at(batch=8, seq=4096).peak_bytes, profile.max_batch("80GiB", seq=4096)
    """

    name: str
    symbols: Mapping[str, sympy.Symbol]
    examples: Mapping[str, int]
    assumptions: tuple[sympy.Basic, ...]
    optimizer: str
    precision: Precision
    parameter_count: sympy.Expr
    parameter_bytes: sympy.Expr
    buffer_bytes: sympy.Expr
    input_bytes: sympy.Expr
    gradient_bytes: sympy.Expr
    optimizer_bytes: sympy.Expr
    saved_bytes: sympy.Expr
    temporary_bytes: sympy.Expr
    peak_bytes: sympy.Expr
    inference_peak_bytes: sympy.Expr
    forward_flops: sympy.Expr
    backward_flops: sympy.Expr
    torch_forward_flops: sympy.Expr
    torch_backward_flops: sympy.Expr
    other_forward_flops: sympy.Expr
    other_backward_flops: sympy.Expr
    moved_bytes: sympy.Expr
    tokens: sympy.Expr
    unit: str
    ops: tuple[OpRow, ...] = field(repr=False)
    kept: tuple[KeptRow, ...] = field(repr=False)
    modules: tuple[ModuleRow, ...] = field(repr=False)
    regions: tuple[RegionRow, ...] = field(repr=False)
    hardware: Hardware | None = field(repr=False)
    _memory: Memory = field(repr=False)

    def at(self, **sizes: int) -> ProfileAt:
        """Numbers at these sizes of all dynamic dims; raises InputError for a dim too many or too few, or out of bounds."""
        self.check(sizes)
        figures, forward, backward = self._evaluate(*(sizes[name] for name in self.symbols))
        numbers = dict(zip(self._names, map(int, figures), strict=True))
        return ProfileAt(
            **numbers,
            forward_s=self._seconds(forward, FORWARD),
            backward_s=self._seconds(backward, BACKWARD),
            optimizer_s=self._optimizer_s(),
        )

    def memory(self, **sizes: int) -> MemoryAt:
        """The memory of a step over time at these sizes: each change, the peak, and what is alive there."""
        self.check(sizes)
        values = self.values(sizes)
        found = self._memory
        return memory_at(found.timeline, found.rests, found.step_bytes, values, found.starred)

    def ops_at(self, **sizes: int) -> tuple[OpAt, ...]:
        """The rows of `ops` in numbers, with roofline seconds and what bounds them, in the same order."""
        self.check(sizes)
        _, *phases = self._evaluate(*(sizes[name] for name in self.symbols))
        numbers = dict(zip((FORWARD, BACKWARD), map(iter, phases), strict=True))
        return tuple(op_at(row, next(numbers[row.phase]), self.hardware) for row in self.ops)

    def max_batch(self, memory: int | str, **sizes: int) -> int:
        """The largest `batch` whose training step peaks within `memory` ("80GiB" or bytes), at these other sizes; 0 if none."""
        return self.largest("batch", memory, **sizes)

    def max_seq(self, memory: int | str, **sizes: int) -> int:
        """The largest `seq` whose training step peaks within `memory`, at these other sizes; 0 if none."""
        return self.largest("seq", memory, **sizes)

    def largest(self, dim: str, memory: int | str, **sizes: int) -> int:
        """The largest size of a dynamic dim whose step peaks within `memory`: one solve per term of the closed form.

        0 if not even one fits; at most what `assumptions` allow. Raises InputError if no size exceeds the budget.
        """
        if dim not in self.symbols:
            raise InputError(
                f"{self.name} has no dynamic dim {dim!r}; it has {self._dims}: profile with dynamic={{{dim!r}: ...}}"
            )
        self.check(sizes, without=dim)
        fixed = self.values(sizes)
        budget = parse_bytes(memory) if isinstance(memory, str) else memory
        return largest_size(self.symbols[dim], self.peaks, budget, fixed, self.assumptions, f"{dim!r} of {self.name}")

    def throughput(self, **sizes: int) -> Throughput:
        """Tokens per second and utilization expected on the profile's hardware; raises InputError without hardware."""
        found = self.at(**sizes)
        if self.hardware is None or found.step_s is None:
            raise InputError(f"the profile of {self.name} has no hardware: profile with hardware=...")
        flops = found.forward_flops + found.backward_flops
        by_dtype: Counter[str] = Counter()
        for row in self.ops:
            by_dtype[row.dtype] += int(row.flops.xreplace(self.values(sizes)))
        dtype = by_dtype.most_common(1)[0][0] if by_dtype else "float32"
        peaks = self.hardware.peak_flops_per_s
        tokens = int(self.tokens.xreplace(self.values(sizes)))
        return Throughput(
            step_s=found.step_s,
            tokens_per_s=tokens / found.step_s,
            unit=self.unit,
            mfu=flops / found.step_s / peaks.get(dtype, peaks["float32"]),
        )

    def values(self, sizes: Mapping[str, int]) -> dict[sympy.Symbol, int]:
        return {self.symbols[name]: size for name, size in sizes.items()}

    @property
    def peaks(self) -> tuple[sympy.Expr, ...]:
        """The terms whose maximum is `peak_bytes`."""
        return self._memory.peaks

    def check(self, sizes: Mapping[str, int], without: str = "") -> None:
        if set(sizes) != set(self.symbols) - {without}:
            raise InputError(
                f"the profile of {self.name} has the dynamic dims {self._dims}, and sizes were given for {sorted(sizes)}"
            )
        for name, size in sizes.items():
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise InputError(f"dynamic dim {name!r} of {self.name} must be a positive int, not {size!r}")
        values = self.values(sizes)
        for assumption in self.assumptions:
            if assumption.free_symbols <= values.keys() and not bool(assumption.xreplace(values)):
                raise InputError(
                    f"the profile of {self.name} holds while {assumption}, and sizes are {dict(sizes)}: "
                    "profile again with example inputs of such sizes"
                )

    @property
    def _dims(self) -> list[str]:
        return sorted(self.symbols)

    def _seconds(self, numbers: Sequence[tuple[float, float, float]], phase: str) -> float | None:
        if self.hardware is None:
            return None
        rows = [row for row in self.ops if row.phase == phase]
        return math.fsum(
            row.calls * self.hardware.time_s(flops + other, moved, row.dtype)
            for row, (flops, other, moved) in zip(rows, numbers, strict=True)
        )

    def _optimizer_s(self) -> float | None:
        """Bound by memory: parameters, state and gradients are read, parameters and state written."""
        if self.hardware is None:
            return None
        moved = 2 * (self.parameter_bytes + self.optimizer_bytes) + self.gradient_bytes
        return self.hardware.update_s(float(moved))

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(name for name in ProfileAt.__dataclass_fields__ if not name.endswith("_s"))

    @cached_property
    def _evaluate(self) -> Callable[..., Any]:
        """All figures from numbers, compiled once."""
        kernels = [
            [(row.one.flops, row.one.other_flops, row.one.bytes) for row in self.ops if row.phase == phase]
            for phase in (FORWARD, BACKWARD)
        ]
        figures = [getattr(self, name) for name in self._names]
        return sympy.lambdify(list(self.symbols.values()), (figures, *kernels), modules="math", cse=True)  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True, eq=False)
class Memory:
    """What `Profile.memory` and the peaks are made of; `rests` by name, `step_bytes` temporaries of the optimizer.

    `starred` gives a module's path with the index of a repeated block as a star.
    """

    timeline: Timeline
    step_bytes: int
    rests: Mapping[str, sympy.Expr]
    peaks: tuple[sympy.Expr, ...]
    starred: Callable[[str], str]


def profile_model(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    marks: Marks,
    *,
    name: str,
    hardware: Hardware | None = None,
    device: str | None = None,
    optimizer: str = "adamw",
    precision: Precision | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> Profile:
    """The profile of a module as its own code runs it; `marks` names the dynamic dims of each flattened input.

    Kernels are those that the device type runs. Default: the hardware's if this machine has such devices, else "cpu"
    (autograd needs the device's own support, on shapes alone too).
    """
    if optimizer not in OPTIMIZERS:
        raise InputError(f"unknown optimizer {optimizer!r}: use one of {', '.join(sorted(OPTIMIZERS))}")
    mixed = ModelPrecision(model, precision or Precision())
    device = device or ("cuda" if hardware and hardware.device_type == "cuda" and torch.cuda.is_available() else "cpu")
    step = record(model, args, kwargs, marks, device=device, dtypes=mixed.cast, progress=progress)
    progress("inference")
    inference = record(model, args, kwargs, marks, training=False, device=device, dtypes=mixed.cast, progress=progress)
    progress("adding up")
    implementation = default_implementation(optimizer, hardware.device_type if hardware else "cpu")
    own = mixed.parameters
    names = [name for name, _ in model.named_parameters()]
    stepped = [p for name, (p, trains) in zip(names, own, strict=True) if trains and name not in step.unreached]
    held = optimizer_bytes(optimizer, stepped, implementation=implementation)
    changes = timeline(step, mixed.has_gradient_buffer)
    rests = {
        "parameters": expression(sum(bytes_of(p) for p, _ in own)),
        "compute copies": expression(mixed.copies_bytes),
        "gradient buffers": expression(mixed.gradient_buffer_bytes),
        "optimizer": expression(held.state_bytes + held.counter_bytes),
        "buffers": expression(sum(b.numel() * b.dtype.itemsize for b in model.buffers())),
        "inputs": plus(s.bytes for s in step.inputs),
    }
    peaks = all_peaks(changes, rests, held)
    ops = op_rows(step)
    by_phase = {phase: [row for row in ops if row.phase == phase] for phase in (FORWARD, BACKWARD)}
    flops = {
        f"{prefix}{phase}_flops": plus(row.calls * getattr(row.one, f"{prefix}flops") for row in rows)
        for prefix in ("", "torch_", "other_")
        for phase, rows in by_phase.items()
    }
    return Profile(
        name=name,
        symbols=step.symbols,
        examples=step.examples,
        assumptions=tuple(dict.fromkeys((*step.assumptions, *inference.assumptions))),
        optimizer=optimizer,
        precision=mixed.precision,
        parameter_count=expression(sum(math.prod(shape) for (shape, _), _ in own)),
        parameter_bytes=rests["parameters"] + rests["compute copies"],
        buffer_bytes=rests["buffers"],
        input_bytes=rests["inputs"],
        gradient_bytes=rests["gradient buffers"] or plus(s.bytes for s in made(changes, GRADIENT)),
        optimizer_bytes=rests["optimizer"],
        saved_bytes=total(changes.saved),
        temporary_bytes=temporary_bytes(changes),
        peak_bytes=largest(peaks),
        inference_peak_bytes=inference_peak(inference, expression(mixed.computing_bytes), rests),
        **flops,
        moved_bytes=plus(row.calls * row.one.bytes for row in ops),
        tokens=step.tokens,
        unit=step.unit,
        ops=tuple(ops),
        kept=tuple(kept_rows(step, changes)),
        modules=tuple(module_rows(step, ops, changes, model)),
        regions=tuple(region_rows(step, ops, changes, model)),
        hardware=hardware,
        _memory=Memory(timeline=changes, step_bytes=held.step_bytes, rests=rests, peaks=peaks, starred=Paths(step).starred),
    )


def all_peaks(changes: Timeline, rests: Mapping[str, sympy.Expr], held: OptimizerBytes) -> tuple[sympy.Expr, ...]:
    """Of forward and backward, and of the optimizer's step, when only gradients and what outlives backward are left."""
    resting = sum(rests.values(), sympy.Integer(0))
    after = total(changes.alive(len(changes.changes)), kinds=None)
    options = [peak + resting for peak in changes.peaks()] + [resting + after + held.step_bytes]
    return tuple(pruned([sympy.expand(option) for option in options]))


def inference_peak(recording: Recording, parameters: sympy.Expr, rests: Mapping[str, sympy.Expr]) -> sympy.Expr:
    """`parameters` in the dtypes that the model computes in are all that rest of them."""
    resting = parameters + rests["buffers"] + rests["inputs"]
    return largest([sympy.expand(peak + resting) for peak in timeline(recording).peaks()] or [resting])


def made(changes: Timeline, kind: str) -> Iterable[Storage]:
    return (c.storage for c in changes.changes if c.sign > 0 and c.storage.kind == kind)


def bytes_of(parameter: tuple[tuple[int, ...], torch.dtype]) -> int:
    shape, dtype = parameter
    return math.prod(shape) * dtype.itemsize


def expression(size: Size) -> sympy.Expr:
    return sympy.sympify(size)


def plus(sizes: Iterable[Size]) -> sympy.Expr:
    counts: Counter[Size] = Counter(sizes)
    return sympy.Add(*(expression(size * count) for size, count in counts.items()))
