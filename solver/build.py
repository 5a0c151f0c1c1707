"""From a measured program, a mesh and hardware to the solver's Problem: every placement, strategy and conversion priced."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from autopar.hardware import Hardware
from autopar.ir.conversion import Conversion, Moves, conversions, moves
from autopar.ir.mesh import MeshSpec
from autopar.ir.optimizer import STATE_COPIES
from autopar.ir.placement import INVARIANT, MOST_PADDING, PARTIAL, Placement, divisors, placements
from autopar.ir.program import Program, Region
from autopar.ops.factors import Factor
from autopar.ops.flops import Collective
from autopar.ops.strategies import Strategy, strategies
from autopar.ops.units import Unit, needs_grad
from autopar.profiler.model_cost import Measured, ModelCost
from autopar.profiler.strategy_cost import StrategyCosts
from autopar.profiler.unit_cost import NodeCost, peak
from autopar.solver import problem as p
from autopar.solver.groups import UnionFind
from autopar.solver.ragged import Ragged
from autopar.solver.restriction import split
from autopar.solver.roles import BATCH, role_of, roles


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where a program is to run: mesh, hardware, byte budget per device, optimizer, and how many classes of calls.

    The program is one of `micro_batches` of a step. `overlap`: see `Problem`. `resting`: parameters that are somewhere already.
    """

    mesh: MeshSpec
    hardware: Hardware
    budget_bytes: float | None = None
    optimizer: str = "adamw"
    split: bool = True
    overlap: bool = True
    micro_batches: int = 1
    resting: Mapping[str, Placement] = field(default_factory=dict)


class Builder:
    """Builds one Problem; the methods are in the order of its parts."""

    def __init__(self, cost: ModelCost, setting: Setting) -> None:
        self.cost, self.setting = cost, setting
        self.program: Program = cost.program
        self.mesh, self.hardware = setting.mesh, setting.hardware
        self.costs = StrategyCosts(setting.mesh, cost.device, cost.families)
        self.links = setting.hardware.axis_links(setting.mesh)
        self.link_of = [self.links.index(link) for link in self.links]
        self.boundary_of = group_boundaries(self.program)
        self.group_of = group_state(self.program)
        self.strategies: dict[str, dict[str, tuple[Strategy, ...]]] = {}
        self.converted: dict[tuple[object, ...], tuple[dict[Placement, float], tuple[p.Arc, ...]]] = {}
        units = {name: [m.unit for m in found] for name, found in cost.regions.items()}
        self.ragged = Ragged(self.program, units, setting.resting, setting.mesh.sizes)

    @cached_property
    def roles(self) -> dict[str, dict[str, dict[str, str]]]:
        return roles(self.program, {name: tuple(m.unit for m in found) for name, found in self.cost.regions.items()})

    def problem(self) -> p.Problem:
        return p.Problem(
            axes=len(self.mesh),
            regions=tuple(self.region(region) for region in self.program.regions.values()),
            boundaries=self.boundaries(),
            state=self.state(),
            budget_bytes=self.setting.budget_bytes,
            links=len(self.links),
            overlap=self.setting.overlap,
            micro_batches=self.setting.micro_batches,
        )

    def region(self, region: Region) -> p.Region:
        measured = self.cost.regions[region.name]
        self.strategies[region.name] = {m.unit.name: self.options(region.name, m) for m in measured}
        units = tuple(self.unit(region.name, m) for m in measured)
        calls = [self.program.calls[i] for i in self.program.calls_of(region.name)]
        read = {name for m in measured for name in (n.name for n in m.unit.operands)}
        inputs = {slot: self.boundary_of[v] for slot, v in zip(region.inputs, calls[0].inputs, strict=True)}
        state = {slot: self.group_of[s] for slot, s in zip(region.state, calls[0].state, strict=True)}
        outputs = tuple((n.name, self.boundary_of[v]) for n, v in zip(region.outputs, calls[0].outputs, strict=True))
        here, made = region.name, [n for m in measured for n in m.unit.results]
        tensors = {n.name: self.tensor(here, n, "unit", any_partial(units, n.name)) for n in made}
        passed = {name for name, _ in outputs}
        tensors |= {slot: self.tensor(here, region.nodes[slot], "input") for slot in inputs if slot in read | passed}
        for slot, name in zip(region.state, calls[0].state, strict=True):
            if slot in read | passed:
                tensors[slot] = self.tensor(here, region.nodes[slot], "state", scale=gradient_scale(self.program, name))
        return p.Region(
            name=region.name,
            units=units,
            tensors=tensors,
            inputs={slot: b for slot, b in inputs.items() if slot in tensors},
            outputs=outputs,
            state={slot: g for slot, g in state.items() if slot in tensors},
            classes=split(len(calls)) if self.setting.split else (len(calls),),
        )

    def tensor(self, region: str, node: torch.fx.Node, source: str, partial: bool = False, scale: float = 1.0) -> p.Tensor:
        value = node.meta["val"]
        shape, grad = tuple(int(n) for n in value.shape), needs_grad(node)
        letters = ("R", INVARIANT, *((PARTIAL,) if partial else ())) if grad else (INVARIANT,)
        ragged = self.ragged.of_tensor(region, node.name, len(shape))
        same = divisors(shape, self.mesh.sizes, ragged)
        key = (same, ragged, bytes_of(value), letters, grad, scale, source == "state")
        if key not in self.converted:
            self.converted[key] = self.conversions(shape, *key[1:])
        found, arcs = self.converted[key]
        return p.Tensor(name=node.name, source=source, bytes_at=found, arcs=arcs, gradient_scale=scale)

    def conversions(
        self,
        shape: tuple[int, ...],
        ragged: frozenset[int],
        size: int,
        letters: tuple[str, ...],
        grad: bool,
        scale: float,
        state: bool,
    ) -> tuple[dict[Placement, float], tuple[p.Arc, ...]]:
        """One device's bytes at every placement of a tensor of `size` bytes, and the conversions between these. Gradients have
        `scale` times the bytes. `state`: see `collective_s`."""
        sizes = self.mesh.sizes
        found = {pl: size * pl.local_share(shape, sizes) for pl in placements(shape, sizes, letters, ragged)}
        between = conversions(shape, sizes, letters, differentiable=grad, ragged=ragged)
        item = size / max(math.prod(shape), 1)
        return found, tuple(self.arc(conversion, shape, item, found, grad, scale, state) for conversion in between)

    def local_bytes(self, value: torch.Tensor, placement: Placement) -> float:
        return bytes_of(value) * placement.local_share([int(n) for n in value.shape], self.mesh.sizes)

    def arc(
        self,
        conversion: Conversion,
        shape: tuple[int, ...],
        item: float,
        bytes_at: Mapping[Placement, float],
        grad: bool,
        scale: float,
        state: bool,
    ) -> p.Arc:
        """`item`: bytes of an element."""
        before, after = bytes_at[conversion.before], bytes_at[conversion.after]
        link, lengths = self.link_of[conversion.axis], conversion.lengths(shape, self.mesh.sizes)
        forward, backward = conversion.kind.forward, conversion.kind.backward
        sent_s = self.sent_s(conversion, forward, shape, item, state)
        moved_s = self.moved_s(before, after, moves(conversion, forward, lengths=lengths))
        sent_back_s = moved_back_s = 0.0
        if grad:
            sent_back_s = self.sent_s(conversion, backward, shape, scale * item, state)
            moved_back_s = self.moved_s(scale * after, scale * before, moves(conversion, backward, back=True, lengths=lengths))
        taken = 1.0 - self.hardware.overlap
        return p.Arc(
            before=conversion.before,
            after=conversion.after,
            forward_s=sent_s + moved_s,
            backward_s=sent_back_s + moved_back_s,
            forward_link=link if forward else None,
            backward_link=link if backward and grad else None,
            forward_work_s=moved_s + taken * sent_s,
            backward_work_s=moved_back_s + taken * sent_back_s,
            forward_moved_s=moved_s,
            backward_moved_s=moved_back_s,
        )

    def sent_s(self, conversion: Conversion, kind: str | None, shape: tuple[int, ...], item: float, state: bool) -> float:
        """Time of one direction's collective."""
        if kind is None:
            return 0.0
        return self.collective_s(kind, item * conversion.sent(kind, shape, self.mesh.sizes), conversion.axis, state)

    def collective_s(self, kind: str, bytes: float, axis: int, state: bool = False) -> float:
        """Time of one collective. Those of `state` travel beside other work, reductions in buckets; others find their devices
        at different points, which wait for each other."""
        on_link = self.links[axis].collective_s(kind, bytes, self.mesh.sizes[axis], buckets=state)
        return on_link if state else on_link + self.hardware.skew_s

    def moved_s(self, source: float, target: float, copies: Moves) -> float:
        """Time of the copies on the device, each of which reads and writes."""
        sizes = (copies.source * source, copies.target * target, copies.smaller * min(source, target))
        return sum(self.hardware.time_s(0, 2 * size, "float32") for size in sizes if size)

    def unit(self, region: str, measured: Measured) -> p.Unit:
        unit, cost = measured.unit, measured.cost
        return p.Unit(
            name=unit.name,
            kind=unit.kind,
            operands=tuple(n.name for n in unit.operands),
            results=tuple(n.name for n in unit.results),
            reads=cost.reads,
            strategies=tuple(self.strategy(region, measured, s) for s in self.strategies[region][unit.name]),
            redoable=not unit.random,
        )

    def options(self, region: str, measured: Measured) -> tuple[Strategy, ...]:
        """All strategies; of units without gradient and without products (masks, positions) only those that cut the batch.

        They cost next to nothing, their results can be sliced for nothing, and models have dozens of them: with all their
        strategies they were half of the ILP.
        """
        unit, ragged = measured.unit, self.ragged.factors(region, measured.unit)
        found = tuple(s for s in strategies(unit, self.mesh.sizes) if self.pads_little(unit, s, ragged))
        touched = (*measured.unit.operands, *measured.unit.results)
        if any(needs_grad(n) for n in touched) or any(n.flops.coefficient for n in measured.cost.forward):
            return found
        role = self.roles[region][measured.unit.name]
        return tuple(s for s in found if all(f is None or role_of(f, role) == BATCH for f in s.factors))

    def pads_little(self, unit: Unit, strategy: Strategy, ragged: frozenset[Factor]) -> bool:
        """Whether it cuts unevenly only what is `ragged` here, and with little padding."""
        if not unit.ragged or not (padded := strategy.padded(unit, self.mesh.sizes)):
            return True
        local = strategy.local_sizes(unit, self.mesh.sizes)
        held = {f: local[f] * strategy.parts(f, self.mesh.sizes) for f in padded}
        return padded <= ragged and all(n <= int(unit.sizes[f]) * (1 + MOST_PADDING) for f, n in held.items())

    def strategy(self, region: str, measured: Measured, chosen: Strategy) -> p.Strategy:
        unit = measured.unit
        cost = self.costs.of(measured, chosen)
        sizes = chosen.local_sizes(unit, self.mesh.sizes)
        inside = sum(m.at(sizes) for m in cost.internals)
        operands = [self.local_bytes(n.meta["val"], pl) for n, pl in zip(unit.operands, chosen.operands, strict=True)]
        role = self.roles[region][unit.name]
        return p.Strategy(
            factors=chosen.factors,
            roles=tuple(role_of(f, role) for f in chosen.factors),
            operands=chosen.operands,
            results=chosen.results,
            reads=cost.reads,
            forward_s=self.kernels_s(cost.forward, sizes) + sum(self.links_s(cost.forward_collectives)),
            backward_s=self.kernels_s(cost.backward, sizes) + sum(self.links_s(cost.backward_collectives)),
            forward_links_s=self.links_s(cost.forward_collectives),
            backward_links_s=self.links_s(cost.backward_collectives),
            saved_bytes=inside,
            forward_temp_bytes=sum(operands) + peak(cost.forward_live, sizes),
            backward_temp_bytes=peak(cost.backward_live, sizes),
        )

    def kernels_s(self, nodes: Iterable[NodeCost], sizes: Mapping[str, int]) -> float:
        return sum(self.hardware.time_s(n.flops.at(sizes), sum(m.at(sizes) for m in n.moved), n.dtype) for n in nodes)

    def links_s(self, collectives: Sequence[Collective]) -> tuple[float, ...]:
        """How long each link is busy with these; nothing at all if there are none."""
        found = [0.0] * len(self.links) if collectives else []
        for c in collectives:
            axis = self.mesh.names.index(c.axis)
            found[self.link_of[axis]] += self.collective_s(c.kind, c.bytes, axis)
        return tuple(found)

    def boundaries(self) -> dict[str, p.Boundary]:
        members: dict[str, list[str]] = {}
        for value, boundary in self.boundary_of.items():
            members.setdefault(boundary, []).append(value)
        carried = {
            self.boundary_of[value]
            for name, region in self.program.regions.items()
            for position, value in enumerate(self.program.calls[self.program.calls_of(name)[0]].inputs)
            if not self.program.is_shared_input(name, position)
        }
        found = {}
        for boundary, names in members.items():
            spec = self.program.values[names[0]]
            whole = self.program.loss in names or set(self.program.mutations.values()) & set(names)
            shape = tuple(int(n) for n in spec.shape)
            ragged = frozenset[int]().union(*map(self.ragged.of_value, names))
            searched = placements(shape, self.mesh.sizes, (INVARIANT,), ragged)
            options = [Placement.whole(len(self.mesh))] if whole else list(searched)
            full = int(spec.bytes)
            found[boundary] = p.Boundary(
                name=boundary,
                bytes_at={pl: full * pl.local_share(shape, self.mesh.sizes) for pl in options},
                carried=boundary in carried,
                returned=any(name in self.program.outputs and self.program.values[name].shape for name in names),
                resident=any(name in self.program.inputs for name in names),
                needs_grad=any(self.program.values[name].needs_grad for name in names),
            )
        return found

    def state(self) -> dict[str, p.StateGroup]:
        members: dict[str, list[str]] = {}
        for name, group in self.group_of.items():
            members.setdefault(group, []).append(name)
        return {group: self.group(group, names) for group, names in members.items()}

    def group(self, group: str, names: Sequence[str]) -> p.StateGroup:
        state, moments = self.program.state[names[0]], STATE_COPIES[self.setting.optimizer]
        shape, size = tuple(int(n) for n in state.spec.shape), int(state.spec.bytes) * len(names)
        trained = state.kind == "parameter" and state.spec.needs_grad
        whole = [Placement.whole(len(self.mesh))]
        ragged = frozenset[int]().union(*map(self.ragged.of_state, names))
        options = list(placements(shape, self.mesh.sizes, (INVARIANT,), ragged)) if state.kind == "parameter" else whole
        local = {pl: size * pl.local_share(shape, self.mesh.sizes) for pl in options}
        accumulated = self.setting.micro_batches > 1
        readers = [call for call in self.program.calls if set(names) & set(call.state)]
        moved = 3 + 2 * moments  # parameter and moments are read and written, the gradient is read
        return p.StateGroup(
            name=group,
            bytes_at={pl: n * (1 + (moments + accumulated if trained else 0)) for pl, n in local.items()},
            grad_bytes_at={pl: n if trained else 0.0 for pl, n in local.items()},
            step_bytes_at={pl: n if trained else 0.0 for pl, n in local.items()},
            step_s_at={
                pl: self.hardware.launch_s + self.hardware.update_s(moved * n) if trained else 0.0 for pl, n in local.items()
            },
            cast_s_at=self.cast_s_at(names, local, len(readers)),
            shared=len(names) < len(readers),
        )

    def cast_s_at(self, names: Sequence[str], local: Mapping[Placement, float], readers: int) -> dict[Placement, float]:
        """What is computed with is made where the parameter rests, by every call, forward and backward."""
        dtype, rests = self.program.cast_to(names[0]), self.program.state[names[0]].spec.dtype
        if dtype is None:
            return {}
        moved = 1 + dtype.itemsize / rests.itemsize
        times = 2 * self.setting.micro_batches * readers / len(names)
        return {pl: times * self.hardware.time_s(0, moved * n, str(dtype).removeprefix("torch.")) for pl, n in local.items()}


def gradient_scale(program: Program, name: str) -> float:
    """Bytes of a gradient on its way between devices over bytes of what is computed with."""
    dtype = program.state[name].gradient_dtype
    return 1.0 if dtype is None else dtype.itemsize / program.computed_dtype(name).itemsize


def bytes_of(value: torch.Tensor) -> int:
    """The whole tensor's."""
    return int(value.numel()) * value.element_size()


def any_partial(units: Sequence[p.Unit], name: str) -> bool:
    return any(
        PARTIAL in s.results[unit.results.index(name)].states for unit in units if name in unit.results for s in unit.strategies
    )


def group_boundaries(program: Program) -> dict[str, str]:
    """value -> boundary: values in the same position of a repeated region's calls share one."""
    union = UnionFind(program.values)
    for name, region in program.regions.items():
        calls = [program.calls[i] for i in program.calls_of(name)]
        for position in range(len(region.inputs)):
            if not program.is_shared_input(name, position):
                union.join([call.inputs[position] for call in calls])
        for position in range(len(region.outputs)):
            union.join([call.outputs[position] for call in calls])
    return union.names()


def group_state(program: Program) -> dict[str, str]:
    """state name -> group: state in the same position of a repeated region's calls shares one."""
    union = UnionFind(program.state)
    for name, region in program.regions.items():
        calls = [program.calls[i] for i in program.calls_of(name)]
        for position in range(len(region.state)):
            union.join([call.state[position] for call in calls])
    return union.names()
