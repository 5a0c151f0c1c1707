"""Units: chains of nodes that one decision covers.

A transformer block has some seventy nodes, most of them views and pointwise ops whose placement follows from a neighbour's.
Composing their rules gives a dozen units, each with one set of factors. Tensors inside a unit are never converted, so they
may be cut in ways that no placement can say (the flattened (batch seq) dim with seq sharded); tensors between units are
described with as many dims as possible, since these offer the most placements.

How units form:
- a reshape that adds dims joins the op that made its input, one that removes dims joins the op that reads its result;
- other views join their only neighbour on either side, but for reshapes that split a dim of a trained tensor;
- a pointwise op joins the pointwise op that is its only reader; a reduction also takes in the pointwise ops before it;
- everything else stands alone.
"""

from __future__ import annotations

import itertools
import operator
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import networkx as nx
import torch

from autopar.errors import RuleError
from autopar.ir.program import Program, Region, Size, place_of
from autopar.ops import tables
from autopar.ops.discovered import found_for, rule_from, warn_kept_whole
from autopar.ops.drawn import is_unknown, kind_of, sites_of
from autopar.ops.factors import CannotUnify, Dims, Factor, Space, flat
from autopar.ops.fits import all_whole
from autopar.ops.rule import EVEN, INVARIANT, REDUCED, WHOLE, OpRule, Shape, Signature, tensor_operands
from autopar.torch_private import size_of

TOGETHER = "+"
"""Between the names of two factors that one mesh axis cuts."""
MERGES_DIMS = frozenset({torch.ops.aten.reshape.default, torch.ops.aten.view.default, torch.ops.aten.contiguous.default})
FLATTENS = frozenset({torch.ops.aten.linear.default, torch.ops.aten.matmul.default})
"""Products of more than two dims are made of matrices: operands that do not lie so are copied."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Nodes (in order) with common factors.

    `operands`: nodes outside that it reads; `results`: its nodes that are read outside. `dims`: per tensor its factors.
    `sharded`: factor -> nodes that need an implementation of their own when it is cut, with that implementation's name and
    the factor's name in its rule. `random`: two runs of it differ; `sites`: nodes that draw random numbers by key instead, and
    the key's row among those of the region. `dense`: results that must leave contiguous, since a reader merges their dims: the
    copy is made here, once, where the profile sees it, and not again by every reader. `counts`: per node the arguments that say
    how many there are of these factors.
    """

    name: str
    kind: str
    nodes: tuple[torch.fx.Node, ...]
    operands: tuple[torch.fx.Node, ...]
    results: tuple[torch.fx.Node, ...]
    sizes: Mapping[Factor, Size]
    marks: Mapping[Factor, frozenset[str]]
    dims: Mapping[torch.fx.Node, Dims]
    reduced_at: Mapping[torch.fx.Node, frozenset[Factor]]
    linear: bool
    random: bool
    sites: Mapping[torch.fx.Node, int] = field(default_factory=dict)
    dense: frozenset[torch.fx.Node] = frozenset()
    counts: Mapping[torch.fx.Node, Mapping[str, tuple[Factor, ...]]] = field(default_factory=dict)

    @property
    def shardable(self) -> tuple[Factor, ...]:
        return tuple(f for f in self.sizes if WHOLE not in self.marks[f])

    @cached_property
    def ragged(self) -> frozenset[Factor]:
        """Factors that may be cut unevenly: every op takes padding of them, and each has its dims for itself."""
        together = {f for dims in self.dims.values() for dim in dims if len(dim) > 1 for f in dim}
        return frozenset(f for f in self.shardable if EVEN not in self.marks[f] and f not in together)

    @cached_property
    def sharded(self) -> dict[Factor, tuple[tuple[str, str, str], ...]]:
        """factor -> (node name, implementation, name of the factor in the node's rule)."""
        found: dict[Factor, list[tuple[str, str, str]]] = defaultdict(list)
        for factor, marks in self.marks.items():
            for mark in sorted(marks):
                if mark.startswith("sharded:"):
                    _, node, implementation, name = mark.split(":")
                    found[factor].append((node, implementation, name))
        return {factor: tuple(places) for factor, places in found.items()}

    @cached_property
    def exchanged(self) -> dict[str, tuple[tuple[str, str, str], ...]]:
        """As `sharded`, for pairs of factors that an axis may cut together, named "b0+e": the pieces of the first travel to
        those of the second."""
        found: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
        for goes, comes in itertools.product(self.shardable, repeat=2):
            for mark in sorted(self.marks[goes]):
                if mark.startswith("goes:") and mark.replace("goes:", "comes:", 1) in self.marks[comes]:
                    _, node, implementation, name = mark.split(":")
                    found[f"{goes}{TOGETHER}{comes}"].append((node, implementation, name))
        return {pair: tuple(places) for pair, places in found.items()}


def rule_of(node: torch.fx.Node) -> OpRule:
    """The row of the table, or what is discovered; an op of which nothing is known is kept whole, with one warning."""
    rule = tables.rule_for(node.target)
    if rule is not None:
        return rule
    found = found_for(node)
    if not found.found:
        warn_kept_whole(node, found.reason)
    return rule_from(found)


def is_getitem(node: torch.fx.Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem"


def result_of(node: torch.fx.Node) -> tuple[torch.fx.Node, int]:
    """Of a getitem: the node with several results, and which one it takes."""
    source, position = node.args
    assert isinstance(source, torch.fx.Node)
    assert isinstance(position, int)
    return source, position


def is_size(node: torch.fx.Node) -> bool:
    """Whether the node computes a size, not a tensor: it is in no unit."""
    return node.op == "call_function" and not isinstance(node.meta["val"], torch.Tensor | tuple | list)


def shapes_of(node: torch.fx.Node) -> tuple[Shape, ...]:
    """Shapes of a node's results; sympy expressions where dynamic."""
    value = node.meta["val"]
    values = value if isinstance(value, tuple | list) else (value,)
    return tuple(tuple(size_of(n) for n in v.shape) for v in values)


def fitted(node: torch.fx.Node) -> Signature:
    """The node's rule fitted to its shapes; whole if they do not fit the row. Raises RuleError for a row of a user's."""
    operands = [None if n is None else shapes_of(n)[0] for n in tensor_operands(node)]
    results = shapes_of(node)
    try:
        return rule_of(node).signature(node, operands, results)
    except ValueError as error:
        if tables.own_rule(node.target) is not None:
            raise RuleError(f"{error}. This is {node.target} at {place_of(node)}") from error
        shapes = ", ".join("-" if s is None else str(list(s)) for s in operands)
        warn_kept_whole(node, f"its rule does not fit operands of shapes {shapes}")
        return all_whole(node, operands, results)


def unknown_draws(program: Program) -> list[str]:
    """Where the program draws random numbers that autopar cannot draw, as "aten.multinomial.default at path (file.py:12)"."""
    return [
        f"{node.target} at {place_of(node, call.path)}"
        for call in program.calls
        for node in filter(is_unknown, program.regions[call.region].graph.nodes)
    ]


def needs_grad(node: torch.fx.Node) -> bool:
    flag = node.meta["needs_grad"]
    return any(flag) if isinstance(flag, tuple | list) else bool(flag)


def compose(nodes: Sequence[torch.fx.Node], name: str = "") -> Unit:
    """One unit of these nodes; raises CannotUnify if their loops do not fit together."""
    inside = set(nodes)
    space = Space()
    dims: dict[torch.fx.Node, Dims] = {}
    parts: dict[torch.fx.Node, tuple[Dims, ...]] = {}
    operands: list[torch.fx.Node] = []
    reduced: dict[torch.fx.Node, set[Factor]] = defaultdict(set)
    counts: dict[torch.fx.Node, dict[str, list[Factor]]] = {}
    linear = True

    for node in nodes:
        if is_getitem(node):
            source, position = result_of(node)
            dims[node] = parts[source][position]
            reduced[node] = reduced[source]
            continue
        rule, local = rule_of(node), fitted(node)
        linear = linear and rule.is_linear(node)
        fresh = {}
        for factor, size in local.sizes.items():
            marks = {m.replace(":", f":{node.name}:", 1) for m in local.marks[factor]}
            fresh[factor] = space.new(factor, size, marks if rule.tolerates(node, factor, marks) else marks | {EVEN})
        counts[node] = {name: [fresh[f] for f in factors.split() if f in fresh] for name, factors in rule.counts.items()}
        reads = [
            (n, renamed(d, fresh))
            for n, d in zip(tensor_operands(node), local.operands, strict=False)
            if n is not None and d is not None
        ]
        for source, seen in reads:
            if source not in dims:
                if source in inside:
                    raise CannotUnify(f"{source} is read before it is made")
                operands.append(source)
                dims[source] = seen
            else:
                for mine, theirs in zip(dims[source], seen, strict=True):
                    space.unify(mine, theirs)
            reduced[node] |= reduced[source]
        own = {fresh[f] for f, m in local.marks.items() if REDUCED in m or INVARIANT in m}
        partial = {frozenset(reduced[source]) for source, _ in reads}
        if partial - {frozenset()} and (own or len(partial) > 1 or not rule.is_linear(node)):
            raise CannotUnify(f"{node} is not linear in a partial sum")
        reduced[node] |= own
        parts[node] = tuple(renamed(r, fresh) for r in local.results)
        dims[node] = parts[node][0] if len(parts[node]) == 1 else ()
    resolved = {node: space.resolve(d) for node, d in dims.items()}
    if twice := {f for d in (*resolved.values(), *made_of(parts, space)) for f, n in Counter(flat(d)).items() if n > 1}:
        if sum(not is_getitem(n) for n in nodes) > 1:
            raise CannotUnify(f"{sorted(twice)} would be two dims of one tensor (x + x.T)")
        for factor in twice:
            space.marks[factor] |= {WHOLE}
    read = [n for n in nodes if any(user not in inside and not is_size(user) for user in n.users)]
    results = [n for n in read if len(shapes_of(n)) == 1]
    rules = [rule_of(n) for n in nodes if not is_getitem(n)]
    anchors = [r.kind for r in rules if r.kind not in ("view", "pointwise")]
    return Unit(
        name=name or named_after(nodes),
        kind=anchors[0] if anchors else ("pointwise" if any(r.kind == "pointwise" for r in rules) else "view"),
        nodes=tuple(nodes),
        operands=tuple(operands),
        results=tuple(results),
        sizes=dict(space.sizes),
        marks=dict(space.marks),
        dims=resolved,
        reduced_at={node: frozenset(space.leaves(fs)) for node, fs in reduced.items()},
        linear=linear,
        random=any(is_unknown(n) for n in nodes),
        sites={node: site for site, node in enumerate(n for n in nodes if kind_of(n) is not None)},
        counts={node: {name: tuple(space.leaves(fs)) for name, fs in found.items() if fs} for node, found in counts.items()},
    )


def made_of(parts: Mapping[torch.fx.Node, tuple[Dims, ...]], space: Space) -> Iterator[Dims]:
    """The dims of all results, as the space has them now."""
    for results in parts.values():
        yield from map(space.resolve, results)


def renamed(dims: Dims, names: Mapping[Factor, Factor]) -> Dims:
    return tuple(tuple(names[factor] for factor in dim) for dim in dims)


def named_after(nodes: Sequence[torch.fx.Node]) -> str:
    """The anchor's name, or the last node's: that is what the chain computes."""
    for node in nodes:
        if not is_getitem(node) and rule_of(node).kind not in ("view", "pointwise"):
            return node.name
    return next(node.name for node in reversed(nodes) if not is_getitem(node))


class Grouping:
    """Which unit each node is in while chains grow; merging is tried, and undone if the loops do not fit."""

    def __init__(self, region: Region) -> None:
        self.order = {node: i for i, node in enumerate(region.graph.nodes)}
        self.outputs = set(region.outputs)
        self.group: dict[torch.fx.Node, int] = {}
        self.members: dict[int, list[torch.fx.Node]] = {}
        self.single: dict[torch.fx.Node, Unit] = {}
        calls = [n for n in region.graph.nodes if n.op == "call_function" and not is_size(n)]
        for node in calls:
            home = self.group[result_of(node)[0]] if is_getitem(node) else len(self.members)
            self.group[node] = home
            self.members.setdefault(home, []).append(node)

    def kind(self, group: int) -> str:
        kinds = [rule_of(n).kind for n in self.members[group] if not is_getitem(n)]
        anchors = [k for k in kinds if k not in ("view", "pointwise")]
        return anchors[0] if anchors else ("pointwise" if "pointwise" in kinds else "view")

    def readers(self, group: int) -> set[int | None]:
        """Groups that read this one's values; None stands for the region's outputs."""
        found: set[int | None] = set()
        for node in self.members[group]:
            found |= {None if user.op == "output" else self.group[user] for user in node.users if not is_size(user)}
        return found - {group}

    def sources(self, group: int) -> set[int]:
        """Groups whose values this one reads."""
        reads = {n for node in self.members[group] for n in node.all_input_nodes}
        return {self.group[n] for n in reads if n in self.group} - {group}

    def merge(self, group: int, into: int) -> bool:
        nodes = sorted([*self.members[group], *self.members[into]], key=self.order.__getitem__)
        try:
            compose(nodes)
        except CannotUnify:
            return False
        self.members[into] = nodes
        for node in self.members.pop(group):
            self.group[node] = into
        return True


def units(region: Region) -> tuple[Unit, ...]:
    """All units of a region, in an order in which each one's operands are ready."""
    grouping = Grouping(region)
    changed = True
    while changed:
        changed = absorb_views(grouping) or absorb_pointwise(grouping)
    return in_order(grouping, region)


def absorb_views(grouping: Grouping) -> bool:
    changed = False
    for group in list(grouping.members):
        if group not in grouping.members or grouping.kind(group) != "view":
            continue
        first, last = grouping.members[group][0], grouping.members[group][-1]
        source = next(iter(grouping.sources(group)), None)
        readers = grouping.readers(group)
        reader = next(iter(readers)) if len(readers) == 1 and not splits_state(first) else None
        grows = len(shapes_of(last)[0]) - len(shapes_of(first.all_input_nodes[0])[0])
        # the source may be joined if only this view reads it: else its other readers would see a regrouped tensor
        joins: list[int | None] = [source] if source is not None and grouping.readers(source) == {group} else []
        joins.insert(0 if grows < 0 else len(joins), reader)
        for target in joins:
            if target is not None and grouping.kind(target) != "whole" and grouping.merge(group, target):
                changed = True
                break
    return changed


def splits_state(node: torch.fx.Node) -> bool:
    """Whether the reshape gives a trained tensor more dims: alone it stays, so that conversions may cut the new ones."""
    source = node.all_input_nodes[0]
    more = len(shapes_of(node)[0]) > len(shapes_of(source)[0])
    return node.target in MERGES_DIMS and source.op == "placeholder" and needs_grad(source) and more


def absorb_pointwise(grouping: Grouping) -> bool:
    changed = False
    for group in list(grouping.members):
        if group not in grouping.members or grouping.kind(group) not in ("pointwise", "view"):
            continue
        readers = grouping.readers(group)
        target = next(iter(readers)) if len(readers) == 1 else None
        if target is not None and grouping.kind(target) in ("pointwise", "reduction"):
            changed = grouping.merge(group, target) or changed
    return changed


def in_order(grouping: Grouping, region: Region) -> tuple[Unit, ...]:
    """Topological order, ties by the position of a unit's last node."""
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(grouping.members)
    graph.add_edges_from((source, group) for group in grouping.members for source in grouping.sources(group))
    last = {group: grouping.order[nodes[-1]] for group, nodes in grouping.members.items()}
    composed = [compose(grouping.members[g]) for g in nx.lexicographical_topological_sort(graph, key=last.__getitem__)]
    merged = set(region.outputs) | {operand for unit in composed for operand in unit.operands if merges_dims(unit, operand)}
    sites = sites_of(region)
    return tuple(
        replace(unit, dense=frozenset(merged & set(unit.results)), sites={node: sites[node] for node in unit.sites})
        for unit in composed
    )


def only_splits(node: torch.fx.Node) -> bool:
    """Whether each dim that a reshape makes is (part of) one dim that it reads: a view, wherever the elements lie."""
    before, after = (ends_of(shapes_of(n)[0]) for n in (node.all_input_nodes[0], node))
    return node.target is not torch.ops.aten.contiguous.default and before <= after


def ends_of(shape: Sequence[int]) -> set[int]:
    """After how many elements a dim ends, of all elements in order; dims of size 1 end nowhere else."""
    return set(itertools.accumulate(shape, operator.mul))


def merges_dims(unit: Unit, operand: torch.fx.Node) -> bool:
    """Whether a reshape or product in the unit reads the operand, maybe through other views: it copies unless that is
    contiguous."""
    views = {operand}
    for node in unit.nodes:
        if not is_getitem(node) and views & set(node.all_input_nodes):
            if node.target in MERGES_DIMS and not only_splits(node):
                return True
            if node.target in FLATTENS and any(len(shapes_of(n)[0]) > 2 for n in views & set(node.all_input_nodes)):
                return True
            if rule_of(node).kind == "view":
                views.add(node)
    return False
