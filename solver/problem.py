"""What the ILP is about, as plain data: no torch, no model, only numbers and placements.

A `Problem` is built from a profiled program; a `Solution` says what was chosen. Both are independent of any solver, so that
the checker and the brute-force tests can judge solutions without its code. Seconds and bytes are per device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from autopar.ir.placement import Placement


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """One way to run a unit: on each mesh axis one factor, or none.

    `operands` and `results` are the placements that it wants and makes. `saved_bytes` is what its backward reads besides
    operands and results (a norm's statistics, the inside of a chain): kept, or made again by redoing the unit.
    `forward_s` and `backward_s` hold the time of collectives inside it; `forward_links_s` and `backward_links_s` say how much
    of it is on each link (empty: none). `forward_temp_bytes` and `backward_temp_bytes` bound the memory live while it runs:
    operands, results, their gradients in backward, and scratch. `reads` replaces the unit's where the strategy runs another
    implementation. `factors` and `roles` name the choice per axis, for people and for the baselines.
    """

    factors: tuple[str | None, ...]
    roles: tuple[str | None, ...] = ()
    operands: tuple[Placement, ...]
    results: tuple[Placement, ...]
    forward_s: float
    backward_s: float
    forward_links_s: tuple[float, ...] = ()
    backward_links_s: tuple[float, ...] = ()
    saved_bytes: float = 0.0
    forward_temp_bytes: float = 0.0
    backward_temp_bytes: float = 0.0
    reads: tuple[tuple[str, int], ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A decision op. `operands` and `results` name tensors of its region (an operand may occur twice).

    `reads` lists what backward reads: ("operand", i) at the placement that the strategy wants, ("result", j) at the one it
    makes. `redoable` is false where running twice would not give the same (random ops).
    """

    name: str
    kind: str
    operands: tuple[str, ...]
    results: tuple[str, ...]
    reads: tuple[tuple[str, int], ...]
    strategies: tuple[Strategy, ...]
    redoable: bool = True

    def reads_of(self, strategy: Strategy) -> tuple[tuple[str, int], ...]:
        """What backward reads under this strategy."""
        return self.reads if strategy.reads is None else strategy.reads


@dataclass(frozen=True, kw_only=True)
class Arc:
    """A conversion of a tensor, with its times; `backward_s` is zero for tensors without gradient.

    `forward_link` and `backward_link` number the link that is busy for that time; None where it is a copy on the device.
    `*_work_s`: for how much of it the device computes nothing else, also where it runs beside other work: `*_moved_s`, copies
    that put pieces in their place, and what a link takes of the device's computing power.
    """

    before: Placement
    after: Placement
    forward_s: float
    backward_s: float
    forward_link: int | None = None
    backward_link: int | None = None
    forward_work_s: float = 0.0
    backward_work_s: float = 0.0
    forward_moved_s: float = 0.0
    backward_moved_s: float = 0.0

    @property
    def travels(self) -> bool:
        """Whether it uses a link, one way or the other."""
        return self.forward_link is not None or self.backward_link is not None


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor of a region: `bytes_at` has one device's bytes at every placement that it may have; `arcs` connect them.

    `source` says where it comes from: "unit", "input" (of the region) or "state". Gradients, as they travel, have
    `gradient_scale` times the bytes.
    """

    name: str
    source: str
    bytes_at: Mapping[Placement, float]
    arcs: tuple[Arc, ...]
    gradient_scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Region:
    """Units in execution order. `inputs` / `outputs` map tensors to boundaries, `state` maps tensors to state groups.

    `classes` are multiplicities that add up to the number of calls, in execution order: calls of one class keep and redo
    the same, different classes may differ; strategies and conversions are shared by all.
    """

    name: str
    units: tuple[Unit, ...]
    tensors: Mapping[str, Tensor]
    inputs: Mapping[str, str]
    outputs: tuple[tuple[str, str], ...]
    state: Mapping[str, str]
    classes: tuple[int, ...] = (1,)

    @cached_property
    def unit(self) -> dict[str, Unit]:
        return {unit.name: unit for unit in self.units}

    @cached_property
    def position(self) -> dict[str, int]:
        """Of each unit in execution order."""
        return {unit.name: i for i, unit in enumerate(self.units)}

    @cached_property
    def lives(self) -> dict[str, tuple[int, int]]:
        """Of each tensor: the position of the unit that makes it (-1: there from the start) and of its last reader."""
        made = {name: i for i, unit in enumerate(self.units) for name in unit.results}
        last = {name: i for i, unit in enumerate(self.units) for name in unit.operands}
        last |= {name: len(self.units) for name, _ in self.outputs}
        return {name: (made.get(name, -1), last.get(name, -1)) for name in self.tensors}


@dataclass(frozen=True, kw_only=True)
class Boundary:
    """Where a value may rest between regions: it leaves its producer and reaches each consumer at one chosen placement.

    `carried`: every call of the consuming region gets its own value (hidden states), so what is kept counts per call;
    otherwise all calls read one and the same tensor (a mask), kept once. `resident`: a program input, in memory anyway.
    `needs_grad`: whether a gradient of its size flows back through it. `returned`: an output of the program, which its
    caller holds while backward runs.
    """

    name: str
    bytes_at: Mapping[Placement, float]
    carried: bool = False
    resident: bool = False
    needs_grad: bool = True
    returned: bool = False


@dataclass(frozen=True, kw_only=True)
class StateGroup:
    """Equal parameters (or buffers) of all calls of a region; all figures are for all of them together.

    `bytes_at`: what is in memory all the time, with optimizer state (and with the sums of gradients over micro-batches, which
    the new ones are added to when backward is through). `grad_bytes_at`: gradients that appear as backward passes, those of
    each call with it, or all of them with the first call if they are `shared` by the calls. `step_bytes_at` and `step_s_at`:
    scratch and time of an optimizer step. `cast_s_at`: time of the casts to what is computed with, in all forwards and
    backwards of a step.
    """

    name: str
    bytes_at: Mapping[Placement, float]
    grad_bytes_at: Mapping[Placement, float] = field(default_factory=dict)
    step_bytes_at: Mapping[Placement, float]
    step_s_at: Mapping[Placement, float] = field(default_factory=dict)
    cast_s_at: Mapping[Placement, float] = field(default_factory=dict)
    shared: bool = False

    def grad_bytes(self, placement: Placement) -> float:
        return self.grad_bytes_at.get(placement, 0.0)

    def step_s(self, placement: Placement) -> float:
        """Seconds of a step that where it rests decides."""
        return self.step_s_at.get(placement, 0.0) + self.cast_s_at.get(placement, 0.0)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Regions are in execution order of their first call; `budget_bytes` is per device (None: no limit).

    With `overlap`, conversions of state (gathers of parameters, reductions of their gradients) run beside other work: forward
    or backward of a call takes as long as its computation and all other communication, or as the busiest of `links` links,
    whichever is longer. A step is `micro_batches` times all forwards and backwards, and one optimizer step.
    """

    axes: int
    regions: tuple[Region, ...]
    boundaries: Mapping[str, Boundary]
    state: Mapping[str, StateGroup]
    budget_bytes: float | None
    links: int = 0
    overlap: bool = False
    micro_batches: int = 1

    @cached_property
    def region(self) -> dict[str, Region]:
        return {region.name: region for region in self.regions}


@dataclass(frozen=True, kw_only=True)
class ClassChoice:
    """What one class of calls keeps for backward and makes again.

    `kept`: (tensor, placement); `kept_internals`: units whose `saved_bytes` are kept; `redone`: units run again;
    `reconverted`: (tensor, before, after) run again.
    """

    kept: frozenset[tuple[str, Placement]] = frozenset()
    kept_internals: frozenset[str] = frozenset()
    redone: frozenset[str] = frozenset()
    reconverted: frozenset[tuple[str, Placement, Placement]] = frozenset()


@dataclass(frozen=True, kw_only=True)
class RegionChoice:
    """`strategies`: index per unit; `converted`: (tensor, before, after) executed in forward; one `ClassChoice` per class."""

    strategies: Mapping[str, int]
    converted: frozenset[tuple[str, Placement, Placement]]
    classes: tuple[ClassChoice, ...]


@dataclass(frozen=True, kw_only=True)
class Solution:
    """`status` is one of optimal, feasible (time limit), with `bound_s` the proven lower bound of `cost_s`."""

    regions: Mapping[str, RegionChoice]
    boundaries: Mapping[str, Placement]
    rest: Mapping[str, Placement]
    cost_s: float
    peak_bytes: float
    bound_s: float
    status: str
    notes: tuple[str, ...] = field(default=())

    @property
    def gap(self) -> float:
        """Relative distance of the cost from the proven bound."""
        return 0.0 if self.cost_s <= 0 else max(0.0, (self.cost_s - self.bound_s) / self.cost_s)
