"""What a unit costs: measured by tracing it, written as monomials in its factor sizes.

The unit is traced jointly with its backward on fake tensors, once at its full size and once more with each factor grown by
a prime of its own. The prime factors of a figure's growth are its degrees, and with them the figure is known for every
strategy and, where factor sizes are expressions in dynamic dims, in closed form. Strategies that run a sharded
implementation are traced by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any

import sympy
import torch

from autopar.ir.mesh import MeshSpec
from autopar.ops.draws import KEY
from autopar.ops.factors import Factor, local_shape
from autopar.ops.flops import Collective, collective_of, inside, node_flops
from autopar.ops.joint import Joint, TensorLike, alias_base, bytes_of, owner, trace_joint
from autopar.ops.lowering.draws import keys_like
from autopar.ops.lowering.emit import emit_unit
from autopar.ops.strategies import Strategy, strategy
from autopar.ops.units import Unit, is_getitem, needs_grad, rule_of

ONE_DEVICE = MeshSpec((1,))
PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)

Figures = tuple[int, list[int], str]
"""Of one kernel: FLOPs, bytes of each tensor that it reads or writes, dtype."""


@dataclass(frozen=True)
class Monomial:
    """`coefficient` times the product of factor sizes to their degrees."""

    coefficient: float
    degrees: tuple[tuple[Factor, int], ...] = ()

    def at(self, sizes: Mapping[Factor, int]) -> float:
        value = self.coefficient
        for factor, degree in self.degrees:
            value *= sizes[factor] ** degree
        return value

    def expression(self, sizes: Mapping[Factor, object]) -> sympy.Expr:
        value = sympy.nsimplify(self.coefficient, rational=True)
        for factor, degree in self.degrees:
            value *= sympy.sympify(sizes[factor]) ** degree
        return value


ZERO = Monomial(0.0)


@dataclass(frozen=True)
class NodeCost:
    """One kernel: its FLOPs, and the bytes of each tensor that it reads or writes."""

    flops: Monomial
    moved: tuple[Monomial, ...]
    dtype: str


@dataclass(frozen=True, kw_only=True)
class UnitCost:
    """`reads` as in the solver's Unit; `internals` the bytes of each value inside that backward reads; `forward_live` and
    `backward_live`: at each moment worth looking at, the tensors alive that this phase made (in backward with the gradients
    that came in); `aliases`: results that share memory with an operand. Collectives are those inside sharded
    implementations (none otherwise)."""

    forward: tuple[NodeCost, ...]
    backward: tuple[NodeCost, ...]
    reads: tuple[tuple[str, int], ...]
    internals: tuple[Monomial, ...]
    forward_live: tuple[tuple[Monomial, ...], ...] = ()
    backward_live: tuple[tuple[Monomial, ...], ...] = ()
    aliases: frozenset[int] = frozenset()
    forward_collectives: tuple[Collective, ...] = ()
    backward_collectives: tuple[Collective, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Figures of one joint trace, node by node."""

    forward: list[Figures]
    backward: list[Figures]
    reads: tuple[tuple[str, int], ...]
    internals: list[int]
    forward_live: list[list[int]]
    backward_live: list[list[int]]
    aliases: frozenset[int]
    joint: Joint


def trace_unit(unit: Unit, chosen: Strategy, mesh: MeshSpec, device: str = "cpu") -> Joint:
    """The unit's joint graph on the local shapes of a strategy; its inputs are operands, coordinates, the keys of draws."""
    graph = torch.fx.Graph()
    sizes = chosen.local_sizes(unit, mesh.sizes)
    env: dict[torch.fx.Node, torch.fx.Node] = {}
    inputs: list[TensorLike] = []
    for i, node in enumerate(unit.operands):
        env[node] = graph.placeholder(f"operand_{i}")
        shape = tuple(int(n) for n in local_shape(unit.dims[node], sizes))
        inputs.append(TensorLike(shape=shape, dtype=node.meta["val"].dtype, needs_grad=needs_grad(node)))
    coordinates = {name: graph.placeholder(f"coordinate_{name}") for name in mesh.names}
    inputs += [TensorLike(shape=(), dtype=torch.int64, needs_grad=False)] * len(coordinates)
    if unit.sites:
        coordinates[KEY] = graph.placeholder(KEY)
        inputs.append(keys_like(1))
    emit_unit(unit, chosen, mesh, graph, env, coordinates.__getitem__, device)
    graph.output(tuple(env[node] for node in unit.results))
    return trace_joint(graph, inputs, [needs_grad(n) for n in unit.results], device)


def read_by_backward(joint: Joint) -> list[torch.fx.Node]:
    """Owners of the forward values (inputs included) that backward reads, each once, in order."""
    found: dict[torch.fx.Node, None] = {}
    forward = set(joint.origin) | set(joint.inputs)
    for node in joint.backward:
        for source in node.all_input_nodes:
            if source in forward:
                found[owner(source)] = None
    return list(found)


def figures(joint: Joint, operands: int) -> Trace:
    reads: list[tuple[str, int]] = []
    internals: list[int] = []
    result_of = {owner(node): j for j, node in reversed(list(enumerate(joint.outputs)))}
    for node in read_by_backward(joint):
        if node in joint.inputs:
            if (i := joint.inputs.index(node)) < operands:
                reads.append(("operand", i))
        elif node in result_of:
            reads.append(("result", result_of[node]))
        else:
            internals.append(bytes_of(node))
    return Trace(
        forward=[node_figures(n) for n in joint.forward if not skipped(n)],
        backward=[node_figures(n) for n in joint.backward if not skipped(n)],
        reads=tuple(sorted(set(reads))),
        internals=internals,
        forward_live=live(joint.forward, (), joint.outputs),
        backward_live=live(joint.backward, joint.tangents, [g for g in joint.gradients if g is not None]),
        aliases=frozenset(j for j, node in enumerate(joint.outputs) if owner(node) in joint.inputs),
        joint=joint,
    )


def live(nodes: Sequence[torch.fx.Node], given: Iterable[torch.fx.Node], wanted: Iterable[torch.fx.Node]) -> list[list[int]]:
    """Bytes of what is alive at each node: what the nodes made, and what they were given, until its last reader among them
    (`wanted` to the end). Only moments at which not less is alive than at all others."""
    last = {owner(source): i for i, node in enumerate(nodes) for source in node.all_input_nodes}
    last |= {owner(node): len(nodes) for node in wanted}
    alive = dict.fromkeys(given)
    moments: list[dict[torch.fx.Node | Scratch, None]] = [dict.fromkeys(alive)] if alive else []
    for i, node in enumerate(nodes):
        if owner(node) is node and not is_part(node):
            alive[node] = None
        moments += [{**dict.fromkeys(alive), **dict.fromkeys(within)} for within in scratch(node)]
        alive = {n: None for n in alive if last.get(n, i) > i or any(last.get(owner(u), i) > i for u in parts_of(n))}
    worth = [m for i, m in enumerate(moments) if not any(covers(o, m, j < i) for j, o in enumerate(moments) if j != i)]
    return [[n for one in moment for n in ([one.bytes] if isinstance(one, Scratch) else tensor_bytes(one))] for moment in worth]


@dataclass(frozen=True)
class Scratch:
    """One of the tensors that an op has for itself at one of its moments, by its place there."""

    node: torch.fx.Node
    moment: int
    place: int
    bytes: int


def scratch(node: torch.fx.Node) -> list[list[Scratch]]:
    """What the op has at each of its moments: at its only one nothing, for all but those that say what they do inside."""
    found = inside(node)
    moments = [()] if found is None else found.alive
    return [[Scratch(node, i, j, size) for j, size in enumerate(moment)] for i, moment in enumerate(moments)]


def covers(other: Mapping[Any, None], moment: Mapping[Any, None], earlier: bool) -> bool:
    """Whether all that is alive at `moment` is alive at the other one too (and more, or the other one came first)."""
    return moment.keys() <= other.keys() and (len(moment) < len(other) or earlier)


def tensor_bytes(node: torch.fx.Node) -> list[int]:
    """Bytes of each result."""
    value = node.meta["val"]
    made = value if isinstance(value, tuple | list) else (value,)
    return [v.numel() * v.element_size() for v in made if isinstance(v, torch.Tensor)]


def is_part(node: torch.fx.Node) -> bool:
    """One of several results: it lives and dies with the node that made them."""
    return getattr(node.target, "__name__", "") == "getitem"


def parts_of(node: torch.fx.Node) -> list[torch.fx.Node]:
    return [user for user in node.users if is_part(user)]


def skipped(node: torch.fx.Node) -> bool:
    """Views cost nothing; collectives are priced by their link."""
    return alias_base(node) is not None or collective_of(node) is not None or getattr(node.target, "__name__", "") == "getitem"


def node_figures(node: torch.fx.Node) -> Figures:
    value = node.meta["val"]
    made = [v for v in (value if isinstance(value, tuple | list) else (value,)) if isinstance(v, torch.Tensor)]
    dtype = str(made[0].dtype).removeprefix("torch.") if made else "float32"
    read = [bytes_of(n) for n in node.all_input_nodes]
    found = inside(node)
    return node_flops(node), [*read, *tensor_bytes(node), *(() if found is None else 2 * [*found.moved])], dtype


def unsharded(unit: Unit) -> Strategy:
    found = strategy(unit, (None,), (1,))
    assert found is not None
    return found


def structure(unit: Unit, grown: Collection[Factor]) -> str:
    """Text equal for units that run the same ops on the same factors, whatever the sizes of those in `grown`."""
    number: dict[torch.fx.Node, str] = {node: f"%o{i}" for i, node in enumerate(unit.operands)}
    lines = [f"{n.meta['val'].dtype}{n.meta['needs_grad']}{unit.dims[n]}" for n in unit.operands]
    for i, node in enumerate(unit.nodes):
        number[node] = f"%{i}"
        spelled = None if is_getitem(node) else rule_of(node).shape_argument
        args = [len(a) if at == spelled and isinstance(a, Sized) else a for at, a in enumerate(node.args)]
        rest = torch.fx.node.map_arg((args, node.kwargs), lambda n: number.get(n, "unread"))
        says = node in unit.results, node in unit.dense, node.meta["needs_grad"]
        lines.append(f"{node.target}{rest}{unit.dims[node]}{says}")
    return "\n".join([*lines, str(sorted((f, n) for f, n in unit.sizes.items() if f not in grown))])


def unit_cost(unit: Unit, device: str = "cpu", *, grown: Collection[Factor] | None = None) -> UnitCost:
    """The unit's cost as monomials in the factors of `grown` (default: those that a strategy may cut).

    Factor sizes must be numbers (of one example). Sizes that attributes spell out, such as a slice's end, cannot grow.
    """
    factors = [f for f in unit.sizes if (f in grown if grown is not None else f in unit.shardable)]
    growth = dict(zip(factors, PRIMES, strict=False))
    base = figures(trace_unit(unit, unsharded(unit), ONE_DEVICE, device), len(unit.operands))
    larger = replace(unit, sizes={f: int(n) * growth.get(f, 1) for f, n in unit.sizes.items()})
    probe = figures(trace_unit(larger, unsharded(unit), ONE_DEVICE, device), len(unit.operands)) if growth else base
    for ours, theirs in ((base.forward, probe.forward), (base.backward, probe.backward)):
        assert [len(n[1]) for n in ours] == [len(n[1]) for n in theirs], f"{unit.name} runs other kernels at other sizes"
    fitted = partial(monomial, growth=growth, unit=unit)
    return fitted_cost(base, probe, fitted)


def fitted_cost(base: Trace, probe: Trace, fitted: Callable[[float, float], Monomial]) -> UnitCost:
    """Figures of two traces of the same kernels, as monomials."""

    def moments(ours: list[list[int]], theirs: list[list[int]]) -> tuple[tuple[Monomial, ...], ...]:
        pairs = (zip(one, other, strict=True) for one, other in zip(ours, theirs, strict=True))
        return tuple(tuple(fitted(a, b) for a, b in pair) for pair in pairs)

    return UnitCost(
        forward=tuple(node_cost(a, b, fitted) for a, b in zip(base.forward, probe.forward, strict=True)),
        backward=tuple(node_cost(a, b, fitted) for a, b in zip(base.backward, probe.backward, strict=True)),
        reads=base.reads,
        internals=tuple(fitted(a, b) for a, b in zip(base.internals, probe.internals, strict=True)),
        forward_live=moments(base.forward_live, probe.forward_live),
        backward_live=moments(base.backward_live, probe.backward_live),
        aliases=base.aliases,
    )


def peak(moments: Iterable[Iterable[Monomial]], sizes: Mapping[Factor, int]) -> float:
    """The most bytes alive at any moment."""
    return max((sum(m.at(sizes) for m in moment) for moment in moments), default=0.0)


def node_cost(base: Figures, probe: Figures, fitted: Callable[[float, float], Monomial]) -> NodeCost:
    return NodeCost(fitted(base[0], probe[0]), tuple(fitted(a, b) for a, b in zip(base[1], probe[1], strict=True)), base[2])


def monomial(value: float, grown: float, *, growth: Mapping[Factor, int], unit: Unit) -> Monomial:
    """The monomial that is `value` at the unit's sizes and `grown` where each factor is its prime times as large."""
    if not value:
        return ZERO
    ratio, coefficient, degrees = Fraction(int(grown), int(value)), Fraction(int(value)), []
    for factor, prime in growth.items():
        degree = 0
        while ratio.numerator % prime == 0:
            ratio, degree = ratio / prime, degree + 1
        if degree:
            degrees.append((factor, degree))
            coefficient /= int(unit.sizes[factor]) ** degree
    assert ratio == 1, f"{unit.name}: {value} grows to {grown}, no product of powers of {dict(growth)}"
    return Monomial(float(coefficient), tuple(degrees))


def constants(figures: Iterable[int]) -> tuple[Monomial, ...]:
    return tuple(map(Monomial, figures))
