"""The profile of a model: FLOPs, bytes and seconds of one training step on one device, in closed form.

Figures are sums over region types, each weighted by the number of its calls, and expressions in the program's dynamic dims.
Memory that backward needs is counted once per storage: the tensor that two ops save, or one op saves and the next region's
first op too, is one tensor.

    peak = state + gradients + optimizer state + saved + the largest working set of one unit

which is exact up to gradients that wait between units (a residual stream's, say) while others are computed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import sympy
import torch

from autopar.errors import InputError
from autopar.hardware import Hardware, load
from autopar.ir.optimizer import STATE_COPIES
from autopar.ir.program import Program, Region, Size
from autopar.ops.units import is_size, needs_grad
from autopar.profiler.unit_figures import INPUT, Kernel, RegionFigures, Storage, Tracing

"""Tensors of AdamW's state per parameter, each of the parameter's own size and dtype."""

INPUTS = "inputs"
"""The row of what backward reads of the model's own inputs."""


@dataclass(frozen=True, kw_only=True)
class RegionRow:
    """One region type, all its `calls` together."""

    region: str
    calls: int
    forward_flops: sympy.Expr
    backward_flops: sympy.Expr
    saved_bytes: sympy.Expr


@dataclass(frozen=True, kw_only=True)
class UnitRow:
    """One unit of a region type, in all calls together; `saved_bytes` of what it makes (not: of what it reads)."""

    region: str
    unit: str
    kind: str
    calls: int
    forward_flops: sympy.Expr
    backward_flops: sympy.Expr
    saved_bytes: sympy.Expr


@dataclass(frozen=True, kw_only=True)
class ProfileAt:
    """A profile at one size: numbers. Times are None without hardware."""

    parameter_count: int
    parameter_bytes: int
    buffer_bytes: int
    forward_flops: int
    backward_flops: int
    saved_bytes: int
    peak_bytes: int
    forward_s: float | None
    backward_s: float | None


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Of one training step on one device: sympy expressions in the dynamic dims, sympy Integers where there are none.

    A multiply-add is two FLOPs. `saved_bytes`: what backward reads of the values of forward and of the inputs, parameters
    and buffers excluded. `peak_bytes`: parameters, gradients, AdamW state, buffers, saved, and the largest working set.
    `kernels` are (kernel, how often it runs) for times on `hardware`.

    >>> # figures = autopar.profile(model, kwargs=batch, dynamic={"batch": 0, "seq": 1})
    >>> # figures.forward_flops, figures.at(batch=8, seq=4096).peak_bytes
    """

    name: str
    symbols: Mapping[str, sympy.Symbol]
    parameter_count: sympy.Expr
    parameter_bytes: sympy.Expr
    buffer_bytes: sympy.Expr
    forward_flops: sympy.Expr
    backward_flops: sympy.Expr
    saved_bytes: sympy.Expr
    peak_bytes: sympy.Expr
    regions: tuple[RegionRow, ...]
    units: tuple[UnitRow, ...]
    hardware: Hardware | None
    forward_kernels: tuple[tuple[Kernel, int], ...] = field(repr=False)
    backward_kernels: tuple[tuple[Kernel, int], ...] = field(repr=False)

    def at(self, **sizes: int) -> ProfileAt:
        """Numbers at these sizes of all dynamic dims; raises InputError for a dim too many or too few."""
        if set(sizes) != set(self.symbols):
            raise InputError(
                f"the profile of {self.name} has the dynamic dims {sorted(self.symbols)}, "
                f"and sizes were given for {sorted(sizes)}"
            )
        for name, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise InputError(f"dynamic dim {name!r} of {self.name} must be a positive int, not {size!r}")
        figures, forward, backward = self._evaluate(*(sizes[name] for name in self.symbols))
        numbers = dict(zip(self._names, map(int, figures), strict=True))
        return ProfileAt(
            **numbers,
            forward_s=self._seconds(self.forward_kernels, forward),
            backward_s=self._seconds(self.backward_kernels, backward),
        )

    def _seconds(self, kernels: Sequence[tuple[Kernel, int]], numbers: Sequence[tuple[float, float]]) -> float | None:
        if self.hardware is None:
            return None
        timed = zip(kernels, numbers, strict=True)
        return math.fsum(count * self.hardware.time_s(flops, moved, k.dtype) for (k, count), (flops, moved) in timed)

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(name for name in ProfileAt.__dataclass_fields__ if not name.endswith("_s"))

    @cached_property
    def _evaluate(self) -> Callable[..., tuple[list[int], list[tuple[float, float]], list[tuple[float, float]]]]:
        """All figures from numbers, compiled once."""
        kernels = [[(k.flops, k.bytes) for k, _ in found] for found in (self.forward_kernels, self.backward_kernels)]
        figures = [getattr(self, name) for name in self._names]
        return sympy.lambdify(list(self.symbols.values()), (figures, *kernels), modules="math", cse=True)  # type: ignore[no-any-return]


def profile(program: Program, hardware: Hardware | str | None = None, device: str | None = None) -> Profile:
    """The profile of a traced program; `hardware` (a Hardware, or the name or path of one) adds times.

    Kernels are those that the device type runs. Default: the hardware's if this machine has such devices, else "cpu"
    (autograd needs the device's own support, on fake tensors too; attention may save a few bytes more or less elsewhere).
    """
    hardware = load(hardware) if isinstance(hardware, str) else hardware
    device = device or ("cuda" if hardware and hardware.device_type == "cuda" and torch.cuda.is_available() else "cpu")
    live = differentiated(program)
    regions = {name: Tracing(r, live[name], program.symbols, device).figures() for name, r in program.regions.items()}
    calls = {name: len(program.calls_of(name)) for name in program.regions}
    saved = saved_storages(program, regions)
    state = state_bytes(program)
    rows = [
        unit_row(name, i, figures, calls[name], saved) for name, figures in regions.items() for i in range(len(figures.units))
    ]
    by_region = [region_row(name, count, rows, saved) for name, count in {**calls, INPUTS: 1}.items()]
    resting = state["parameter"] + state["buffer"] + (1 + STATE_COPIES["adamw"]) * state["trained"]
    total_saved = plus(row.saved_bytes for row in by_region)
    working = largest(w for figures in regions.values() for unit in figures.units for w in unit.working)
    return Profile(
        name=program.name,
        symbols=dict(program.symbols),
        parameter_count=expression(program.parameter_count),
        parameter_bytes=state["parameter"],
        buffer_bytes=state["buffer"],
        forward_flops=plus(row.forward_flops for row in by_region),
        backward_flops=plus(row.backward_flops for row in by_region),
        saved_bytes=total_saved,
        peak_bytes=resting + total_saved + working,
        regions=tuple(by_region),
        units=tuple(rows),
        hardware=hardware,
        forward_kernels=counted((k, calls[n]) for n, f in regions.items() for u in f.units for k in u.forward),
        backward_kernels=counted((k, calls[n]) for n, f in regions.items() for u in f.units for k in u.backward),
    )


def differentiated(program: Program) -> dict[str, set[torch.fx.Node]]:
    """Per region the nodes through which a gradient of the loss flows (in some call); of all outputs if there is no loss."""
    wanted = {program.loss} if program.loss else {v for v in program.outputs if v is not None and program.values[v].needs_grad}
    found: dict[str, set[torch.fx.Node]] = {name: set() for name in program.regions}
    known: dict[tuple[str, tuple[int, ...]], tuple[set[torch.fx.Node], list[int]]] = {}
    for call in reversed(program.calls):
        ends = tuple(j for j, value in enumerate(call.outputs) if value in wanted)
        if (call.region, ends) not in known:
            region = program.regions[call.region]
            reached = reaches(region, [region.outputs[j] for j in ends])
            known[call.region, ends] = reached, [i for i, slot in enumerate(region.inputs) if region.nodes[slot] in reached]
        reached, inputs = known[call.region, ends]
        found[call.region] |= reached
        wanted |= {call.inputs[i] for i in inputs}
    return found


def reaches(region: Region, ends: Iterable[torch.fx.Node]) -> set[torch.fx.Node]:
    """Nodes with a gradient that some end depends on, the ends included."""
    waiting, found = list(ends), set[torch.fx.Node]()
    while waiting:
        node = waiting.pop()
        if node not in found and not is_size(node) and needs_grad(node):
            found.add(node)
            waiting += node.all_input_nodes
    return found


def saved_storages(program: Program, regions: Mapping[str, RegionFigures]) -> Counter[tuple[str, Storage]]:
    """(region that makes it, storage) -> how many of them backward needs, over all calls; inputs of the model are of INPUTS."""
    instances: set[tuple[int, str, Storage]] = set()
    for index, call in enumerate(program.calls):
        for storage in {s for unit in regions[call.region].units for s in unit.saved}:
            if (home := resolve(program, regions, index, storage)) is not None:
                instances.add(home)
    return Counter((region, storage) for _, region, storage in instances)


def resolve(
    program: Program, regions: Mapping[str, RegionFigures], index: int, storage: Storage
) -> tuple[int, str, Storage] | None:
    """(call, region, storage) where the memory that a call sees as `storage` is made; None for state."""
    while storage.kind == INPUT:
        call = program.calls[index]
        value = call.inputs[program.regions[call.region].inputs.index(storage.owner)]
        source = program.producer(value)
        if source is None:
            return -1, INPUTS, Storage(INPUT, value, "", storage.bytes)
        index, position = source
        storage = regions[program.calls[index].region].outputs[position]
    return None if storage.kind != "made" else (index, program.calls[index].region, storage)


def unit_row(region: str, i: int, figures: RegionFigures, calls: int, saved: Mapping[tuple[str, Storage], int]) -> UnitRow:
    found = figures.units[i]
    return UnitRow(
        region=region,
        unit=found.unit.name,
        kind=found.unit.kind,
        calls=calls,
        forward_flops=plus(calls * k.flops for k in found.forward),
        backward_flops=plus(calls * k.flops for k in found.backward),
        saved_bytes=plus(n * s.bytes for (r, s), n in saved.items() if r == region and s.owner == found.unit.name),
    )


def region_row(name: str, calls: int, rows: Iterable[UnitRow], saved: Mapping[tuple[str, Storage], int]) -> RegionRow:
    mine = [row for row in rows if row.region == name]
    return RegionRow(
        region=name,
        calls=calls,
        forward_flops=plus(row.forward_flops for row in mine),
        backward_flops=plus(row.backward_flops for row in mine),
        saved_bytes=plus(n * s.bytes for (r, s), n in saved.items() if r == name),
    )


def state_bytes(program: Program) -> dict[str, sympy.Expr]:
    """Bytes of parameters, of those that are trained, and of buffers (constants of the code among them)."""
    parameters = [s for s in program.state.values() if s.kind == "parameter"]
    return {
        "parameter": plus(s.spec.bytes for s in parameters),
        "trained": plus(s.spec.bytes for s in parameters if s.spec.needs_grad),
        "buffer": plus(s.spec.bytes for s in program.state.values() if s.kind != "parameter"),
    }


def counted(kernels: Iterable[tuple[Kernel, int]]) -> tuple[tuple[Kernel, int], ...]:
    """Equal kernels once, with how often they run in all."""
    found: Counter[Kernel] = Counter()
    for kernel, count in kernels:
        found[kernel] += count
    return tuple(found.items())


def expression(size: Size) -> sympy.Expr:
    return sympy.sympify(size)


def plus(sizes: Iterable[Size]) -> sympy.Expr:
    return sympy.Add(*map(expression, sizes))


def largest(sizes: Iterable[Size]) -> sympy.Expr:
    """The maximum, less those that another is at least as large as, term by term (symbols are positive)."""
    terms = {e: e.expand().as_coefficients_dict() for e in map(expression, sizes)}
    kept: dict[sympy.Expr, dict[sympy.Expr, sympy.Expr]] = {}
    for candidate, mine in sorted(terms.items(), key=lambda item: -sum(abs(c) for c in item[1].values())):
        if not any(at_most(mine, other) for other in kept.values()):
            kept = {e: t for e, t in kept.items() if not at_most(t, mine)} | {candidate: mine}
    options = list(kept)
    if len(options) < 2:
        return options[0] if options else sympy.Integer(0)
    return sympy.Max(*options, evaluate=False)


def at_most(small: Mapping[sympy.Expr, sympy.Expr], large: Mapping[sympy.Expr, sympy.Expr]) -> bool:
    return all(small.get(term, 0) <= large.get(term, 0) for term in {*small, *large})
