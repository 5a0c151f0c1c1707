"""explain: a rule in words and tables: its factors, what cutting each means, all strategies on a mesh, and the conversions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx

from autopar.errors import InputError
from autopar.ir.conversion import SEARCHED, ConversionKind, letter
from autopar.ir.mesh import MeshLike, MeshSpec
from autopar.ir.placement import Placement
from autopar.ops import tables
from autopar.ops.factors import Dims, Factor
from autopar.ops.names import op_named
from autopar.ops.rule import INVARIANT, REDUCED, WHOLE, OpRule
from autopar.ops.strategies import PASS_PARTIAL, strategies
from autopar.ops.typical import typical
from autopar.ops.units import Unit, compose
from autopar.torch_private import OpOverload, pytree

MOST = 100
"""Strategies that are listed."""
MEANS = {
    "S": "each device has a piece of the dim",
    "R": "all devices have the same; its gradient comes as partial sums, P, which the plan adds up",
    "I": "all devices have the same, and so is its gradient",
    "P": "the value is the sum of what the devices have; its gradient is R, the same everywhere",
}


@dataclass(frozen=True)
class Explanation:
    """Text for people; `str` gives it, and so does an interactive session."""

    text: str

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return self.text


def explain(
    op: Any = None, mesh: MeshLike = "2x2", *, args: tuple[Any, ...] | None = None, kwargs: Mapping[str, Any] | None = None
) -> Explanation:
    """The rule of an op, its strategies on a mesh, and the conversions that lead to its operands and from its results.

    `op`: a name such as "aten.linear", an overload, or a function or op of yours; without one, all rows by family. Dims are
    shown on a typical call, or on the one that is given (`args`, `kwargs`; meta tensors will do). Raises InputError
    for an unknown name, and for a call that the op does not take.

    >>> print(explain("aten.mm", "2").text.splitlines()[0])
    aten.mm.default, matmul
    """
    if op is None:
        return Explanation(all_rows())
    target, spec = op_named(op), MeshSpec.of(mesh)
    rule = tables.rule_for(target)
    if rule is None:
        return Explanation(
            f"{target} has no row: what may be cut is found by trying, call by call; give it a row with @autopar.op_rule "
            "(docs/rules.md)"
        )
    found = typical(target) if args is None else (args, dict(kwargs or {}))
    if found is None:
        ask = "no typical call of it is known: give one, as explain(op, args=(tensor, ...)), to see its strategies"
        return Explanation(f"{target}, {rule.kind}\n  {rule.text or 'dims follow from shapes and attributes'}; {ask}")
    unit = unit_on(target, *found)
    parts = [heading(target, rule, unit), factors_table(unit), strategies_table(unit, spec), conversions_table(unit, spec)]
    return Explanation("\n\n".join(parts))


def unit_on(op: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Unit:
    """The op alone, on these arguments without their data. Raises InputError if it does not take them."""
    graph = fx.Graph()
    args, kwargs = pytree.tree_map_only(Tensor, without_data, (args, kwargs))

    def node_of(tensor: Tensor) -> fx.Node:
        node = graph.placeholder("operand")
        node.meta = {"val": tensor, "needs_grad": tensor.is_floating_point()}
        return node

    nodes = pytree.tree_map_only(Tensor, node_of, (args, kwargs))
    try:
        found = op(*args, **kwargs)
    except Exception as error:
        raise InputError(f"{op} does not take these arguments: {error}") from error
    node = graph.call_function(op, *nodes)
    several = isinstance(found, tuple | list)
    flags = [v.is_floating_point() for v in (found if several else (found,))]
    node.meta = {"val": tuple(found) if several else found, "needs_grad": tuple(flags) if several else flags[0]}
    results = [graph.call_function(getitem, (node, i)) for i in range(len(found))] if several else [node]
    for result, value in zip(results, found if several else (found,), strict=True):
        result.meta = {"val": value, "needs_grad": value.is_floating_point()}
    graph.output(tuple(results))
    return compose([node, *results] if several else [node])


def without_data(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta")


def heading(op: OpOverload, rule: OpRule, unit: Unit) -> str:
    lines = [f"{op}, {rule.kind}", f"  {rule.text or 'dims follow from shapes and attributes:'}"]
    named = (names_of(op, unit), unit.operands), (result_names(unit), unit.results)
    sides = [", ".join(f"{n} [{dims_text(unit.dims[t])}]" for n, t in zip(*side, strict=True)) for side in named]
    lines.append(f"  {sides[0]} -> {sides[1]}")
    flags = {"linear: partial sums pass through (~)": unit.linear, "random: numbers are drawn by place": rule.random}
    return "\n".join([*lines, *(f"  {text}" for text, on in flags.items() if on)])


def dims_text(dims: Dims) -> str:
    return " ".join(d[0] if len(d) == 1 else f"({' '.join(d)})" if d else "1" for d in dims)


def names_of(op: OpOverload, unit: Unit) -> list[str]:
    """The operands by the names of the op's arguments."""
    names: dict[fx.Node, str] = {}
    node = unit.nodes[0]
    for i, argument in enumerate(op._schema.arguments):
        given = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)
        nodes = [g for g in (given if isinstance(given, list | tuple) else [given]) if isinstance(g, fx.Node)]
        names |= {g: argument.name if len(nodes) == 1 else f"{argument.name}[{j}]" for j, g in enumerate(nodes)}
    return [names[operand] for operand in unit.operands]


def result_names(unit: Unit) -> list[str]:
    return ["result"] if len(unit.results) == 1 else [f"result {i}" for i in range(len(unit.results))]


def factors_table(unit: Unit) -> str:
    rows = [("factor", "size", "cut means")]
    for factor, size in unit.sizes.items():
        rows.append((factor, str(size), meaning(unit, factor)))
    return table(rows)


def meaning(unit: Unit, factor: Factor) -> str:
    marks = unit.marks[factor]
    if WHOLE in marks:
        return "whole: never cut"
    own = [implementation for _, implementation, _ in unit.sharded.get(factor, ())]
    kind = "piece of the results"
    if INVARIANT in marks or REDUCED in marks:
        kind = "summand of the results" + (", which what is run adds up" if INVARIANT in marks else "")
    return f"each device has a {kind}{f'; another implementation runs, {own[0]}' if own else ''}"


def strategies_table(unit: Unit, mesh: MeshSpec) -> str:
    op = unit.nodes[0].target
    assert isinstance(op, OpOverload)
    names = names_of(op, unit)
    rows = [("cut", *names, "->", *result_names(unit), "gradients of", *names)]
    found = strategies(unit, mesh.sizes)
    for s in found[:MOST]:
        grads = [str(p.gradient()) if n.meta["needs_grad"] else "-" for p, n in zip(s.operands, unit.operands, strict=True)]
        cut = ", ".join("-" if f is None else "~" if f == PASS_PARTIAL else f for f in s.factors)
        rows.append((cut, *map(str, s.operands), "->", *map(str, s.results), "", *grads))
    more = f"\nand {len(found) - MOST} more" if len(found) > MOST else ""
    return (
        f"{len(found)} strategies on mesh {mesh} ({', '.join(mesh.names)}), a factor (or -) on each axis:\n{table(rows)}{more}"
    )


def conversions_table(unit: Unit, mesh: MeshSpec) -> str:
    """What leads to the states that operands want on an axis, and from those that results have; the letters' meanings."""
    found = strategies(unit, mesh.sizes)
    wanted = letters_of([p for s in found for p in s.operands])
    made = letters_of([p for s in found for p in s.results])
    rows = [("conversion on an axis", "forward", "backward", "")]
    for kind in SEARCHED:
        uses = [text for text, on in (("to operands", kind.after in wanted), ("from results", kind.before in made)) if on]
        if uses:
            rows.append((arrow(kind), sent(kind, kind.forward), sent(kind, kind.backward), ", ".join(uses)))
    lines = [f"  {name}  {MEANS[name]}" for name in "SRIP" if name in wanted | made]
    return f"{table(rows)}\n" + "\n".join(lines)


def letters_of(placements: Sequence[Placement]) -> set[str]:
    return {letter(state) for placement in placements for state in placement.states}


def arrow(kind: ConversionKind) -> str:
    return "S(a) -> S(b)" if kind.before == kind.after else f"{kind.before} -> {kind.after}"


def sent(kind: ConversionKind, collective: str | None) -> str:
    return (collective or "nothing is sent").replace("_", "-")


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Columns as wide as they need be."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  " + "  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def all_rows() -> str:
    """One line per row, by family, those of users last."""
    families = {family.__name__.rpartition(".")[2]: family.ROWS for family in tables.FAMILIES} | {"yours": tables.USER_RULES}
    parts = []
    for name, found in families.items():
        rows = [(str(op), rule.kind, rule.text or "by shapes and attributes") for op, rule in found.items()]
        if rows:
            parts.append(f"{name}\n{table(rows)}")
    return "\n\n".join([*parts, "Pointwise ops need no row: torch's own tag makes their rule."])
