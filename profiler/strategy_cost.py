"""What units cost under strategies with sharded implementations, without tracing every strategy.

Strategies that cut the same factors with an implementation of their own run the same kernels, so they share one pair of
traces, fitted to monomials in the local factor sizes as `unit_cost` does. Axes are known by position there and get their
names when a strategy asks: cutting k over one axis or the other is one entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from autopar.ir.mesh import MeshSpec
from autopar.ops.factors import Factor
from autopar.ops.flops import Collective, collectives_of
from autopar.ops.lowering.emit import emit_unit
from autopar.ops.strategies import Strategy, cut_by
from autopar.ops.units import Unit
from autopar.profiler.model_cost import Measured
from autopar.profiler.unit_cost import (
    ONE_DEVICE,
    PRIMES,
    Monomial,
    Trace,
    UnitCost,
    figures,
    fitted_cost,
    monomial,
    structure,
    trace_unit,
    unsharded,
)

ANY_SIZE = frozenset({"linear", "addmm", "convolution", "embedding", "mean", "cross_entropy", "softmax", "log_softmax"})
"""Implementations whose kernels depend on local sizes and on how many axes cut, but not on the sizes of axes, and into which
no global size is written. The others are traced for each cut by itself."""

Cuts = tuple[tuple[str, int], ...]
"""Per mesh axis that cuts a factor with an implementation: that factor (or the pair, as in "b0+e"), and the size of the axis.

Where sizes do not matter the axis has size 2, and the factor is the first of those that the implementation takes alike (all
that make up the tokens of a loss)."""


@dataclass(frozen=True, kw_only=True)
class Sent:
    """One collective: kind, position of its axis among the cuts, bytes."""

    kind: str
    position: int
    bytes: Monomial


@dataclass(frozen=True, kw_only=True)
class Family:
    """What strategies with the same cuts share; `kernels` has no collectives."""

    kernels: UnitCost
    forward: tuple[Sent, ...]
    backward: tuple[Sent, ...]


Families = MutableMapping[tuple[str, Cuts, frozenset[Factor]], Family | None]
"""By a unit's structure, the cuts, and which factors they cut unevenly; None where the implementation is the op itself."""


class StrategyCosts:
    """Costs of strategies on one mesh, each family traced once; `families` has those that are known from other meshes."""

    def __init__(self, mesh: MeshSpec, device: str, families: Families | None = None) -> None:
        self.mesh, self.device = mesh, device
        self.families: Families = {} if families is None else families

    def of(self, measured: Measured, chosen: Strategy) -> UnitCost:
        """The unit's cost under the strategy, as monomials in its local factor sizes; its collectives in bytes."""
        unit = measured.unit
        axes = cutting_axes(unit, chosen)
        if not axes:
            return measured.cost
        cuts = tuple(self.cut(unit, str(chosen.factors[axis]), axis) for axis in axes)
        padded = chosen.padded(unit, self.mesh.sizes) & {factor for factor, _ in cuts}
        key = (structure(unit, growing(unit, cuts)), cuts, padded)
        if key not in self.families:
            self.families[key] = family(unit, cuts, self.device, padded) if runs_other_ops(unit, cuts) else None
        found = self.families[key]
        if found is None:
            return measured.cost
        sizes, names = chosen.local_sizes(unit, self.mesh.sizes), [self.mesh.names[axis] for axis in axes]
        return replace(
            found.kernels,
            forward_collectives=tuple(Collective(s.kind, names[s.position], round(s.bytes.at(sizes))) for s in found.forward),
            backward_collectives=tuple(Collective(s.kind, names[s.position], round(s.bytes.at(sizes))) for s in found.backward),
        )

    def cut(self, unit: Unit, factor: str, axis: int) -> tuple[str, int]:
        if factor not in unit.sharded or not any_size(unit, factor):
            return factor, self.mesh.sizes[axis]
        return next(f for f, places in unit.sharded.items() if places == unit.sharded[factor]), 2


def cutting_axes(unit: Unit, chosen: Strategy) -> list[int]:
    """Mesh axes that cut a factor with an implementation, in the order in which `emit_unit` names them."""
    return list(dict.fromkeys(axis for factor in unit.sharded for axis in chosen.axes_of(factor)))


def runs_other_ops(unit: Unit, cuts: Cuts) -> bool:
    """Whether the implementation is any different from the op itself (a linear without bias is not)."""
    return emitted_ops(unit, *small_mesh(cuts)) != emitted_ops(unit, ONE_DEVICE, unsharded(unit))


def emitted_ops(unit: Unit, mesh: MeshSpec, chosen: Strategy) -> list[object]:
    graph = torch.fx.Graph()
    env = {node: graph.placeholder(node.name) for node in unit.operands}
    emit_unit(unit, chosen, mesh, graph, env, graph.placeholder)
    return [n.target for n in graph.nodes if n.op != "placeholder"]


def any_size(unit: Unit, factor: Factor) -> bool:
    return all(implementation in ANY_SIZE for _, implementation, _ in unit.sharded[factor])


def growing(unit: Unit, cuts: Cuts) -> list[Factor]:
    """Factors in whose sizes figures are monomials; the others' sizes are constants of a family: those whose implementation
    adds to a dim, for one, and all that share a dim with them."""
    fixed = {factor for factor in parts_of(cuts) if is_fixed(unit, factor)}
    dims = [set(dim) for tensor in unit.dims.values() for dim in tensor]
    beside = set().union(*(dim for dim in dims if dim & fixed))
    return [f for f in unit.sizes if f in unit.shardable and f not in fixed | beside]


def is_fixed(unit: Unit, factor: Factor) -> bool:
    """Whether an implementation depends on the sizes of the axes that cut the factor."""
    return factor in unit.sharded and not any_size(unit, factor)


def parts_of(cuts: Cuts) -> dict[Factor, int]:
    """Into how many pieces each factor is cut."""
    found: dict[Factor, int] = {}
    for choice, size in cuts:
        found |= {factor: found.get(factor, 1) * size for factor in cut_by(choice)}
    return found


def family(unit: Unit, cuts: Cuts, device: str, padded: frozenset[Factor]) -> Family:
    """Traced at local sizes equal to the unit's own (cut factors that do not grow: at their true local sizes), and again with
    every factor that may grow its prime times as large. Of factors in `padded` the last device lacks one element."""
    parts, grows = parts_of(cuts), growing(unit, cuts)
    fixed = parts.keys() - set(grows)
    local = {f: int(n) // parts[f] if f in fixed else int(n) for f, n in unit.sizes.items()}
    growth = dict(zip(grows, PRIMES, strict=False))
    assert not padded & fixed, f"{unit.name}: what it costs to cut {sorted(padded & fixed)} unevenly depends on their sizes"
    base, probe = (
        traced(unit, {f: n * grown.get(f, 1) * parts.get(f, 1) - (f in padded) for f, n in local.items()}, cuts, device)
        for grown in ({}, growth)
    )
    fitted = partial(monomial, growth=growth, unit=replace(unit, sizes=local))
    same = [len(n[1]) for n in base.forward + base.backward] == [len(n[1]) for n in probe.forward + probe.backward]
    assert same, f"{unit.name} cut in {cuts} runs other kernels at other sizes"
    return Family(
        kernels=fitted_cost(base, probe, fitted),
        forward=sent(base.joint.forward, probe.joint.forward, fitted),
        backward=sent(base.joint.backward, probe.joint.backward, fitted),
    )


def traced(unit: Unit, sizes: Mapping[Factor, int], cuts: Cuts, device: str) -> Trace:
    """The unit at these sizes (before cutting), cut so."""
    mesh, chosen = small_mesh(cuts)
    return figures(trace_unit(replace(unit, sizes=sizes), chosen, mesh, device), len(unit.operands))


def small_mesh(cuts: Cuts) -> tuple[MeshSpec, Strategy]:
    """A mesh that has just the cutting axes, named by position, and the strategy that cuts so on it."""
    mesh = MeshSpec(tuple(size for _, size in cuts), tuple(map(str, range(len(cuts)))))
    return mesh, Strategy(factors=tuple(factor for factor, _ in cuts), operands=(), results=())


def sent(
    base: Sequence[torch.fx.Node], probe: Sequence[torch.fx.Node], fitted: Callable[[float, float], Monomial]
) -> tuple[Sent, ...]:
    pairs = zip(collectives_of(base), collectives_of(probe), strict=True)
    return tuple(Sent(kind=a.kind, position=int(a.axis), bytes=fitted(a.bytes, b.bytes)) for a, b in pairs)
