"""The model as a tree of modules whose leaves are the units of a plan, with the conversions on the way to and from each.

The plan names units, their modules and what they read; the model's graphs (`RegionFacts`), if there are any, add placements,
lines of code and times. In a plan that was made before plans said so, a unit belongs to the module of a parameter that its
name begins with.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby

from autopar.ir.conversion import Conversion
from autopar.ir.placement import Placement
from autopar.ir.plan import Plan, PlannedClass, PlannedUnit
from autopar.ir.region_view import MINOR_KINDS, RegionReader, call_ranges, paths, pattern, short
from autopar.report.anatomy import EdgeFacts, RegionFacts, UnitFacts

Marks = tuple[tuple[str, str], ...]
"""(calls, what happens to it there) for each run of calls that do the same; calls is "" where all do."""


@dataclass(frozen=True, kw_only=True)
class Edge:
    """A tensor on its way: it is made or rests at `start`, and every step is a conversion. `readers` take what comes out."""

    tensor: str
    parameter: bool = False
    start: Placement | None
    steps: tuple[tuple[Conversion, EdgeFacts], ...] = ()
    readers: tuple[str, ...] = ()
    marks: Marks = ()

    @property
    def end(self) -> Placement | None:
        return self.steps[-1][0].after if self.steps else self.start


@dataclass(frozen=True, kw_only=True)
class Op:
    """A unit. `before`: its parameters, and inputs of the region that it reads first; `after`: its converted results."""

    name: str
    unit: PlannedUnit
    facts: UnitFacts | None
    result: Placement | None
    before: tuple[Edge, ...]
    after: tuple[Edge, ...]
    marks: Marks
    minor: bool

    @property
    def seconds(self) -> float:
        return self.facts.seconds if self.facts else 0.0


@dataclass
class Module:
    """`calls`: how often it runs in a step. `parts` are modules and ops in the order in which they first run."""

    name: str
    calls: int = 1
    parts: list[Module | Op] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts)

    @property
    def ops(self) -> int:
        return sum(part.ops if isinstance(part, Module) else 1 for part in self.parts)

    def child(self, name: str) -> Module:
        found = next((part for part in self.parts if isinstance(part, Module) and part.name == name), None)
        if found is None:
            found = Module(name=name, calls=self.calls)
            self.parts.append(found)
        return found


def tree(plan: Plan, facts: Mapping[str, RegionFacts] | None = None) -> Module:
    """The whole model; a layer that is called often stands there once."""
    root = Module(name=plan.model)
    for name in plan.regions:
        region = _Region(plan, name, (facts or {}).get(name))
        top = root
        for part in components(region.root):
            top = top.child(part)
        top.calls = region.calls
        for path, op in region.ops():
            module = top
            for part in components(path):
                module = module.child(part)
            module.parts.append(op)
    return root


def components(path: str) -> list[str]:
    """Names of modules; a number or star stays with the list that it is an item of.

    >>> components("model.layers.*.mlp"), components("")
    (['model', 'layers.*', 'mlp'], [])
    """
    found: list[str] = []
    for part in filter(None, path.split(".")):
        if found and (part == "*" or part.isdigit()):
            found[-1] += f".{part}"
        else:
            found.append(part)
    return found


class _Region:
    def __init__(self, plan: Plan, name: str, facts: RegionFacts | None) -> None:
        self.plan, self.name, self.facts = plan, name, facts
        self.reader = RegionReader(plan, name)
        self.calls = sum(c.calls for c in self.reader.region.classes)

    @cached_property
    def root(self) -> str:
        """The path of the region's module; "" where it is more than one, or part of the model itself."""
        patterns = {pattern(name) for name in self.plan.state} | set(self.plan.state)
        for name in (self.name, re.sub(r"_\d+$", "", self.name)):
            if any(p.startswith(f"{name}.") for p in patterns):
                return self.name
        return ""

    @cached_property
    def slots(self) -> dict[str, str]:
        """By the name that state has in the region: its name in the model, in the first call."""
        base = re.escape(re.sub(r"_\d+$", "", self.root)).replace(r"\*", r"\d+")
        found: dict[str, dict[str, str]] = {}
        for name in self.plan.state:
            if match := re.fullmatch(rf"({base})\.(.+)" if base else "()(.+)", name):
                found.setdefault(match[1], {})[match[2].replace(".", "_")] = name
        return next(iter(found.values()), {})

    @cached_property
    def modules(self) -> list[str]:
        """Paths of modules with parameters, the longest first."""
        names = {self.slots[slot].rpartition(".")[0] for slot in self.slots}
        prefix = "" if not self.root else next(iter(self.slots.values()))
        prefix = ".".join(prefix.split(".")[: len(self.root.split("."))]) if self.root else ""
        inner = {name.removeprefix(prefix).strip(".") for name in names}
        every = {".".join(name.split(".")[: i + 1]) for name in inner for i in range(len(name.split(".")))}
        return sorted(every - {""}, key=lambda path: (-len(path), path))

    def path_of(self, unit: str) -> str:
        if self.facts is not None and unit in self.facts.units:
            return self.facts.units[unit].path
        planned = self.reader.region.units[unit]
        if planned.op:
            return planned.path.removeprefix(self.root).removeprefix(".")
        return next((path for path in self.modules if unit.startswith(f"{path.replace('.', '_')}_")), "")

    def owner(self, slot: str) -> str:
        """The unit that reads it; "" if that is not known."""
        if self.facts is not None:
            return self.facts.owners.get(slot, "")
        if reader := next((name for name, unit in self.reader.region.units.items() if slot in unit.reads), ""):
            return reader
        module = slot.rpartition("_")[0]
        return next((u for node, u in self.reader.unit_of.items() if module and node.startswith(f"{module}_")), "")

    def ops(self) -> Iterator[tuple[str, Op]]:
        """Each unit with the path of its module."""
        first = next(iter(self.reader.region.units), "")
        before: dict[str, list[Edge]] = {}
        for slot in dict.fromkeys([*self.slots, *self.reader.outside]):
            owner = self.owner(slot)
            if slot in self.reader.outside:
                edges = self.edges(slot)
                before.setdefault(owner or self.first_reader(edges) or first, []).extend(edges)
            elif owner:
                rests = self.plan.state[self.slots[slot]].placement
                before.setdefault(owner, []).append(Edge(tensor=short(slot), parameter=True, start=rests))
        for name, unit in self.reader.region.units.items():
            path = self.path_of(name)
            after = [edge for node in unit.nodes if node in self.reader.converted for edge in self.edges(node)]
            yield path, self.op(name, unit, path, tuple(before.get(name, ())), tuple(after))

    def op(self, name: str, unit: PlannedUnit, path: str, before: tuple[Edge, ...], after: tuple[Edge, ...]) -> Op:
        flat = path.replace(".", "_")
        classes = self.reader.classes
        return Op(
            name=name.removeprefix(f"{flat}_") if flat else name,
            unit=unit,
            facts=self.facts.units.get(name) if self.facts else None,
            result=self.result(unit),
            before=before,
            after=after,
            marks=marks([(c, self.reader.unit_mark(name, unit, c)) for c in classes]),
            minor=unit.kind in MINOR_KINDS and not any(unit.factors) and not before and not after,
        )

    def first_reader(self, edges: Iterable[Edge]) -> str:
        return next((reader for edge in edges for reader in edge.readers), "")

    def result(self, unit: PlannedUnit) -> Placement | None:
        """Where its last result lies when it is made, as far as that is known."""
        known = dict(self.facts.results) if self.facts else self.said_results
        return next((known[node] for node in reversed(unit.nodes) if node in known), None)

    @cached_property
    def said_results(self) -> dict[str, Placement]:
        """What the plan itself says: where conversions start, what is kept unconverted, what leaves the region."""
        leaving = {name.removeprefix(f"{self.slots_prefix}."): placement for name, placement in self.plan.boundaries.items()}
        kept = {k.tensor: k.placement for c in self.reader.classes for k in c.kept}
        starts = {tensor: paths(found)[0][0].before for tensor, found in self.reader.converted.items()}
        return leaving | kept | starts

    @property
    def slots_prefix(self) -> str:
        first = next(iter(self.slots.values()), "")
        return ".".join(first.split(".")[: len(self.root.split("."))]) if self.root else ""

    def edges(self, tensor: str) -> list[Edge]:
        """One per path of conversions; one without steps for what is only kept."""
        parameter = tensor in self.slots
        rests = self.plan.state[self.slots[tensor]].placement if parameter else None
        found = []
        for path in paths(self.reader.converted.get(tensor, ())) or ((),):
            steps = tuple((step, self.edge_facts(tensor, step.after)) for step in path)
            found.append(
                Edge(
                    tensor=short(tensor) if parameter else tensor,
                    parameter=parameter,
                    start=path[0].before if path else rests or self.kept_at(tensor),
                    steps=steps,
                    readers=steps[-1][1].readers if steps and self.facts else self.said_readers(tensor),
                    marks=marks([(c, self.reader.tensor_mark(tensor, c)) for c in self.reader.classes]),
                )
            )
        return found

    def said_readers(self, tensor: str) -> tuple[str, ...]:
        """Those that the plan names; at which placement each reads it, it does not say."""
        return tuple(name for name, unit in self.reader.region.units.items() if tensor in unit.reads)

    def kept_at(self, tensor: str) -> Placement | None:
        return next((k.placement for c in self.reader.classes for k in c.kept if k.tensor == tensor), None)

    def edge_facts(self, tensor: str, after: Placement) -> EdgeFacts:
        return self.facts.edges.get((tensor, after), EdgeFacts()) if self.facts else EdgeFacts()


def marks(by_class: Iterable[tuple[PlannedClass, str]]) -> Marks:
    """Neighbouring classes with the same mark together; nothing where no call has one."""
    runs = [(mark, sum(c.calls for c, _ in group)) for mark, group in groupby(by_class, key=lambda pair: pair[1])]
    if len(runs) == 1:
        return (("", runs[0][0]),) if runs[0][0] else ()
    ranges = call_ranges([count for _, count in runs])
    return tuple((calls, mark) for calls, (mark, _) in zip(ranges, runs, strict=True) if mark)
