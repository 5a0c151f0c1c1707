"""What the rules of the user select: units by the modules, kinds and ops of their nodes, parameters by their names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch.fx import Node

from autopar.errors import ConstraintError
from autopar.ir.constraints import Rule, suggest
from autopar.ir.program import Program, path_of, place_of
from autopar.ops.units import Unit, is_getitem
from autopar.profiler.model_cost import Measured
from autopar.solver.problem import Unit as Choice

Key = tuple[str, str]
"""(region, unit)."""
LISTED = 12
"""How many known names an error lists."""


@dataclass(frozen=True, kw_only=True)
class Picked:
    """The units of a rule, in order of execution, and remarks on what else they concern."""

    keys: tuple[Key, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PickedState:
    """The state groups of a rule; `by_name` are those whose own name, not only a module's, was given."""

    groups: tuple[str, ...]
    by_name: frozenset[str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Modules:
    """Where in the model every unit is. Equal layers are one region, of which each call has a path of its own."""

    program: Program
    measured: Mapping[str, Sequence[Measured]]

    @cached_property
    def units(self) -> dict[Key, Unit]:
        return {(region, m.unit.name): m.unit for region, found in self.measured.items() for m in found}

    def calls(self, region: str) -> list[str]:
        """The path of each call of a region."""
        return [self.program.calls[i].path for i in self.program.calls_of(region)]

    @cached_property
    def paths(self) -> list[str]:
        """All modules with nodes in them and those around these, layers as `*`."""
        found: dict[str, None] = {}
        for (region, _), unit in self.units.items():
            for call in self.calls(region):
                for node in unit.nodes:
                    parts = re.sub(r"(?<![^.])\d+(?![^.])", "*", path_of(node, call)).split(".")
                    found |= dict.fromkeys(".".join(parts[:n]) for n in range(1, len(parts) + 1))
        return [path for path in found if path]

    def path_of(self, key: Key) -> str:
        """The module of a unit's leading op; of equal layers with `*` for their number. "" for the model itself."""
        calls = self.calls(key[0])
        return path_of(leading(self.units[key]), calls[0] if len(calls) == 1 else key[0])

    @cached_property
    def kinds(self) -> list[str]:
        return sorted({unit.kind for unit in self.units.values()})

    @cached_property
    def ops(self) -> list[str]:
        return sorted({str(n.target).removeprefix("aten.").rpartition(".")[0] for u in self.units.values() for n in ops(u)})


def ops(unit: Unit) -> Iterator[Node]:
    return (node for node in unit.nodes if not is_getitem(node))


def leading(unit: Unit) -> Node:
    """The op that a unit is called after."""
    return next((node for node in unit.nodes if node.name == unit.name), unit.nodes[0])


def pick_units(modules: Modules, rule: Rule) -> Picked:
    """Units of which any node is selected at any call; raises ConstraintError, with what is close, if there are none."""
    selector, counts = rule.selector, {}
    for (region, name), unit in modules.units.items():
        if selector.kind not in (None, unit.kind):
            continue
        places = {node.meta.get("path", ""): node for node in ops(unit) if selector.has_op(str(node.target))}
        calls = modules.calls(region)
        hit = sum(any(selector.has_path(path_of(node, call)) for node in places.values()) for call in calls)
        if hit:
            counts[region, name] = (hit, len(calls))
    if not counts:
        raise ConstraintError(f"{rule} matches nothing: {_missing(modules, rule)}")
    return Picked(keys=tuple(counts), notes=tuple(_shared(rule, {region: c for (region, _), c in counts.items()})))


def kept_whole(modules: Modules, choices: Mapping[Key, Choice], keys: Sequence[Key]) -> str:
    """Where no strategy cuts any of these units: which op is to blame, where it is, and what helps; else ""."""
    if any(any(s.factors) for key in keys for s in choices[key].strategies):
        return ""
    region, name = keys[0]
    node = next(ops(modules.units[region, name]))
    place = place_of(node, modules.calls(region)[0])
    return f". {node.target} at {place} is whole on every device, no rule cuts it: give it one with @autopar.op_rule"


def _shared(rule: Rule, counts: Mapping[str, tuple[int, int]]) -> Iterator[str]:
    for region, (hit, calls) in counts.items():
        if hit < calls:
            yield f"{rule} names {hit} of {calls} equal layers {region}: they share one decision, so it holds for all of them"


def _missing(modules: Modules, rule: Rule) -> str:
    """What the program has instead."""
    selector = rule.selector
    if selector.kind is not None and selector.kind not in modules.kinds:
        return f"there is no unit of kind {selector.kind!r}; there are {', '.join(modules.kinds)}"
    if selector.op is not None and not any(selector.has_op(str(n.target)) for u in modules.units.values() for n in ops(u)):
        return f"there is no op {selector.op!r}{suggest(selector.op, modules.ops)} There are {_listed(modules.ops)}"
    inside = {key for key, unit in modules.units.items() if _in_path(modules, rule, key, unit)}
    if selector.path is not None and not inside:
        return f"there is no module {selector.path!r} with ops of its own{_near(selector.path, modules.paths)}"
    kinds = sorted({modules.units[key].kind for key in inside})
    return (
        f"in {selector.path or 'the model'} no unit is all that it asks for at once; there are units of kind {', '.join(kinds)}"
    )


def _in_path(modules: Modules, rule: Rule, key: Key, unit: Unit) -> bool:
    return any(rule.selector.has_path(path_of(node, call)) for call in modules.calls(key[0]) for node in unit.nodes)


def _near(path: str, known: Sequence[str]) -> str:
    close = suggest(re.sub(r"(?<![^.])\d+(?![^.])", "*", path), known)
    return close if close != "." else f". There are {_listed(known)}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


def pick_state(modules: Modules, rule: Rule, group_of: Mapping[str, str]) -> PickedState:
    """Groups of parameters of which any is selected by its name, an alias, or a module around it; raises ConstraintError."""
    if rule.selector.kind or rule.selector.op:
        raise ConstraintError(f"{rule}: where parameters rest is said of names or modules, not of kinds or ops")
    program, hit = modules.program, {}
    parameters = {name: state for name, state in program.state.items() if state.kind == "parameter"}
    for name, state in parameters.items():
        names = (name, *state.aliases)
        if any(map(rule.selector.has_path, names)):
            hit[name] = any(rule.selector.is_path(n) for n in names)
    if not hit:
        known = list(dict.fromkeys(re.sub(r"(?<![^.])\d+(?![^.])", "*", name) for name in parameters))
        raise ConstraintError(f"{rule} matches no parameter{_near(rule.selector.path or '', known)}")
    groups = tuple(dict.fromkeys(group_of[name] for name in hit))
    notes = []
    for group in groups:
        members = [name for name in parameters if group_of[name] == group]
        if any(name not in hit for name in members):
            count = sum(name in hit for name in members)
            notes.append(f"{rule} names {count} of the {len(members)} equal parameters of {group}: it holds for all of them")
    return PickedState(
        groups=groups, by_name=frozenset(group_of[name] for name, direct in hit.items() if direct), notes=tuple(notes)
    )
