"""Proof by running: every strategy of a unit on all ranks, forward and gradients, against the full op in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx

from autopar.errors import RuleError
from autopar.ir.local_ranks import local_ranks
from autopar.ir.mesh import MeshSpec
from autopar.ops.drawn import draw_of
from autopar.ops.draws import KEY, draw_whole, generator_state
from autopar.ops.lowering.emit import emit_unit
from autopar.ops.pieces import ANYTHING, collect, coordinates_of_ranks, cut, difference, distribute, join
from autopar.ops.sharded import common, indexing, layers
from autopar.ops.strategies import Strategy, strategies
from autopar.ops.units import Unit, compose, is_getitem, rule_of
from autopar.torch_private import coordinates, pytree

TOLERANCE = 1e-9
SILENT = frozenset(
    [
        common.once,
        *(f for module in (indexing, layers) for f in vars(module).values() if callable(f)),
    ]
)
"""Sharded implementations that do not communicate: ranks may run one after another, which is faster."""


@dataclass(frozen=True)
class Call:
    """One op with real arguments. A tensor that occurs twice is one operand that is read twice.

    `read`: how many of its results are read, the first ones; None for all."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    read: int | None = None


def unit_of(calls: Sequence[Call | Callable[[Tensor], Call]]) -> tuple[Unit, list[Tensor]]:
    """The unit of a chain of ops, each later one made from the result before it, and the values of its operands."""
    graph = fx.Graph()
    holders: dict[int, tuple[Tensor, fx.Node]] = {}
    made: dict[int, fx.Node] = {}
    nodes: list[fx.Node] = []
    previous: Any = None

    def node_of(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) in made:
            return made[id(value)]
        if id(value) not in holders:
            node = graph.placeholder(f"operand_{len(holders)}")
            node.meta = {"val": value, "needs_grad": value.requires_grad}
            holders[id(value)] = value, node
        return holders[id(value)][1]

    for step in calls:
        call = step if isinstance(step, Call) else step(previous)
        args, kwargs = pytree.tree_map(node_of, (call.args, call.kwargs))
        previous = call.target(*call.args, **call.kwargs)
        values = list(previous) if isinstance(previous, tuple | list) else [previous]
        node = graph.call_function(call.target, args, kwargs)
        flags = [v.requires_grad for v in values]
        node.meta = {"val": previous, "needs_grad": flags if isinstance(previous, tuple | list) else flags[0]}
        nodes.append(node)
        made[id(previous)] = node
        results = [node]
        if isinstance(previous, tuple | list):
            results = [graph.call_function(getitem, (node, i)) for i in range(len(values))[: call.read]]
            for result, value in zip(results, values, strict=False):
                result.meta = {"val": value, "needs_grad": value.requires_grad}
            nodes += results
    graph.output(tuple(results))
    unit = compose(nodes)
    by_node = {node: value for value, node in holders.values()}
    return unit, [by_node[node] for node in unit.operands]


def full_run(unit: Unit, operands: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor | None]]:
    """Results, random cotangents, and the gradients of the operands (None where none is wanted)."""
    done: dict[fx.Node, Any] = dict(zip(unit.operands, operands, strict=True))
    with seeded():
        for node in unit.nodes:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: done.get(n, n.meta["val"]))
            done[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    results = [done[node] for node in unit.results]
    generator = torch.Generator().manual_seed(5)
    cotangents = [torch.randn(r.shape, dtype=torch.float64, generator=generator).to(r.dtype) for r in results]
    return [r.detach() for r in results], cotangents, gradients(results, cotangents, operands)


@contextmanager
def seeded() -> Iterator[None]:
    """With torch's generator in the state in which every run begins."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        yield


def serial_keys(unit: Unit) -> list[Tensor]:
    """By which the unit's draws are those of the full op: nothing for a unit that draws nothing."""
    cpu, states = torch.device("cpu"), []
    with seeded():
        for draw in filter(None, map(draw_of, unit.sites)):
            states.append(generator_state(cpu))
            draw_whole(draw, cpu)
    return [torch.stack(states)] if states else []


def gradients(results: Sequence[Tensor], cotangents: Sequence[Tensor], operands: Sequence[Tensor]) -> list[Tensor | None]:
    """Zeros where a wanted gradient does not exist, None where none is wanted."""
    ends = [(r, c) for r, c in zip(results, cotangents, strict=True) if r.requires_grad]
    wanted = [x for x in operands if x.requires_grad]
    if not ends or not wanted:
        return [None] * len(operands)
    found = iter(torch.autograd.grad([r for r, _ in ends], wanted, [c for _, c in ends], allow_unused=True))
    grads = [next(found) if x.requires_grad else None for x in operands]
    return [torch.zeros_like(x) if g is None and x.requires_grad else g for g, x in zip(grads, operands, strict=True)]


def local_graph(unit: Unit, strategy: Strategy, mesh: MeshSpec) -> fx.Graph:
    """(operands, coordinates on all axes, keys of draws) -> results, on one device's pieces. The mesh's names are those of
    groups."""
    graph = fx.Graph()
    env = {node: graph.placeholder(node.name) for node in unit.operands}
    at = {name: graph.placeholder(f"coordinate_{i}") for i, name in enumerate(mesh.names)}
    if unit.sites:
        at[KEY] = graph.placeholder(KEY)
    emit_unit(unit, strategy, mesh, graph, env, at.__getitem__)
    graph.output(tuple(env[node] for node in unit.results))
    return graph


def run_graph(graph: fx.Graph, given: Sequence[Any]) -> tuple[Tensor, ...]:
    inputs = iter(given)
    done: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), done.__getitem__)
        if node.op == "output":
            return args[0]  # type: ignore[no-any-return]
        done[node] = next(inputs) if node.op == "placeholder" else node.target(*args, **kwargs)
    raise AssertionError("no output node")


def communicates(graph: fx.Graph, mesh: MeshSpec) -> bool:
    """Whether a node is told of a mesh axis, without which it can send nothing, and not known to send nothing."""
    told = [node for node in graph.nodes if node.target not in SILENT]
    return any(name in mesh.names for node in told for name in pytree.tree_leaves((node.args, node.kwargs)))


def prove(unit: Unit, operands: Sequence[Tensor], sizes: tuple[int, ...], chosen: Sequence[Strategy] | None = None) -> int:
    """How many strategies were run (all of the unit's unless some are given); raises RuleError for one that is wrong."""
    results, cotangents, grads = full_run(unit, operands)
    found = strategies(unit, sizes) if chosen is None else chosen
    whole = Whole([x.detach() for x in operands], results, cotangents, grads)
    for strategy in found:
        try:
            talks = communicates(local_graph(unit, strategy, MeshSpec(sizes)), MeshSpec(sizes))
            (prove_together if talks else prove_apart)(unit, strategy, sizes, whole)
        except Exception as error:
            raise counterexample(unit, strategy, sizes, whole, error) from error
    return len(found)


def counterexample(unit: Unit, strategy: Strategy, sizes: tuple[int, ...], whole: Whole, error: Exception) -> RuleError:
    """What was cut how, and what went wrong then."""
    ops = ", ".join(str(n.target) for n in unit.nodes if not is_getitem(n))
    operands, results = (tuple(map(str, side)) for side in (strategy.operands, strategy.results))
    shapes = tuple(tuple(x.shape) for x in whole.operands)
    cuts = ", ".join(f"{f or 'nothing'} on axis {axis} of {sizes[axis]}" for axis, f in enumerate(strategy.factors))
    what = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
    rows = [f"  rule     {row}" for node in unit.nodes if not is_getitem(node) and (row := rule_of(node).text)]
    lines = [
        f"{ops} is not what its rule says. {what}",
        f"  cut      {cuts}",
        *rows,
        *(
            f"  operand  {i}: {list(s)} as {p}, gradient as {p.gradient()}"
            for i, (s, p) in enumerate(zip(shapes, strategy.operands, strict=True))
        ),
        *(
            f"  result   {i}: {list(r.shape)} as {p}"
            for i, (r, p) in enumerate(zip(whole.results, strategy.results, strict=True))
        ),
    ]
    if culprits := [f for f in dict.fromkeys(strategy.factors) if f is not None]:
        names = " and ".join(culprits)
        mend = f"mark it whole ({culprits[0]}!), or say in `sharded` what is to run where it is cut"
        lines.append(f"  {names} cannot be cut like this: {mend}")
    place = {"op": ops, "shapes": shapes, "mesh": sizes, "factors": strategy.factors}
    return RuleError("\n".join(lines), **place, operands=operands, results=results)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Whole:
    """What the full op makes of what."""

    operands: Sequence[Tensor]
    results: Sequence[Tensor]
    cotangents: Sequence[Tensor]
    gradients: Sequence[Tensor | None]


def prove_apart(unit: Unit, strategy: Strategy, sizes: tuple[int, ...], whole: Whole) -> None:
    """Rank after rank, each on its own: for local graphs that do not communicate."""
    graph = local_graph(unit, strategy, MeshSpec(sizes))
    pieces = [cut(x, p, sizes, i, ANYTHING) for i, (x, p) in enumerate(zip(whole.operands, strategy.operands, strict=True))]
    upstream = [cut(c, p.gradient(), sizes, 9) for c, p in zip(whole.cotangents, strategy.results, strict=True)]
    runs, keys = [], serial_keys(unit)
    for rank, place in enumerate(coordinates_of_ranks(sizes)):
        mine = [of[rank].requires_grad_(g is not None) for of, g in zip(pieces, whole.gradients, strict=True)]
        outputs = run_graph(graph, [*mine, *map(torch.tensor, place), *keys])
        runs.append((outputs, gradients(outputs, [of[rank] for of in upstream], mine)))
    results = [
        join([run[0][i].detach() for run in runs], p, sizes, tolerance=TOLERANCE, shape=full.shape)
        for i, (p, full) in enumerate(zip(strategy.results, whole.results, strict=True))
    ]
    grads = [
        None
        if g is None
        else join([run[1][i] for run in runs], p.gradient(), sizes, tolerance=TOLERANCE, shape=g.shape, zeros=True)  # type: ignore[misc]
        for i, (g, p) in enumerate(zip(whole.gradients, strategy.operands, strict=True))
    ]
    compare(results, grads, whole)


def prove_together(unit: Unit, strategy: Strategy, sizes: tuple[int, ...], whole: Whole) -> None:
    """All ranks at once, with their collectives."""
    with local_ranks(sizes) as devices:
        mesh = MeshSpec(sizes, tuple(devices.get_group(axis).group_name for axis in range(len(sizes))))
        given = enumerate(zip(whole.operands, strategy.operands, strict=True))
        pieces = [distribute(x, p, sizes, i, ANYTHING) for i, (x, p) in given]
        pieces = [piece.requires_grad_(g is not None) for piece, g in zip(pieces, whole.gradients, strict=True)]
        upstream = [distribute(c, p.gradient(), sizes, 9) for c, p in zip(whole.cotangents, strategy.results, strict=True)]
        outputs = run_graph(local_graph(unit, strategy, mesh), [*pieces, *coordinates(devices), *serial_keys(unit)])
        found = gradients(outputs, upstream, pieces)
        results = [
            collect(o, p, sizes, tolerance=TOLERANCE, shape=full.shape)
            for o, p, full in zip(outputs, strategy.results, whole.results, strict=True)
        ]
        grads = [
            None if g is None else collect(g, p.gradient(), sizes, tolerance=TOLERANCE, shape=x.shape, zeros=True)
            for g, p, x in zip(found, strategy.operands, whole.operands, strict=True)
        ]
    compare(results, grads, whole)


def compare(outputs: Sequence[Tensor], grads: Sequence[Tensor | None], whole: Whole) -> None:
    for i, (output, wanted) in enumerate(zip(outputs, whole.results, strict=True)):
        same(output, wanted, f"result {i}")
    for i, (grad, expected) in enumerate(zip(grads, whole.gradients, strict=True)):
        if expected is not None:
            assert grad is not None, f"the gradient of operand {i} is missing"
            same(grad, expected, f"the gradient of operand {i}")


def same(found: Tensor, wanted: Tensor, what: str) -> None:
    told = difference(found, wanted, TOLERANCE)
    assert not told, f"{what} {told}"
