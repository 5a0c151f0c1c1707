"""One region type of a plan as rows of text: what each unit does on each axis, how tensors change place, what is kept.

A plan names tensors and units but not which unit reads what: a conversion of a unit's result stands with that unit, one of
a parameter with the unit of the same module, and one of any other tensor in a row of its own.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from autopar.ir.conversion import Conversion
from autopar.ir.placement import Placement, State
from autopar.ir.plan import Plan, PlannedClass, PlannedConversion, PlannedRegion, PlannedUnit

MINOR_KINDS = frozenset({"pointwise", "view", "whole", "norm"})
PARTIAL_FACTOR = "~"


@dataclass(frozen=True, kw_only=True)
class Row:
    """`axes`: text per mesh axis; `marks`: text per class of calls. A `minor` row may be folded with its neighbours."""

    name: str
    axes: tuple[str, ...]
    conversions: tuple[str, ...] = ()
    marks: tuple[str, ...]
    minor: bool = False


@dataclass(frozen=True, kw_only=True)
class RegionView:
    """What the table of one region type shows."""

    name: str
    calls: int
    classes: tuple[str, ...]
    rows: tuple[Row, ...]


def region_view(plan: Plan, name: str, units: Collection[str] | None = None) -> RegionView:
    """Of all units, or of those named `units`, with the parameters and results below them."""
    return RegionReader(plan, name, units).view()


def region_rows(plan: Plan, name: str) -> tuple[tuple[str, ...], list[Row]]:
    """The classes of calls, and every row, none folded; rows below a unit's begin with two spaces."""
    reader = RegionReader(plan, name)
    return call_ranges([c.calls for c in reader.classes]), reader.rows()


class RegionReader:
    """What a plan says about one region type, unit by unit."""

    def __init__(self, plan: Plan, name: str, units: Collection[str] | None = None) -> None:
        self.plan, self.name, self.only = plan, name, units
        self.region: PlannedRegion = plan.regions[name]
        self.axes = plan.mesh.names
        self.classes = merged(self.region.classes)

    def view(self) -> RegionView:
        return RegionView(
            name=self.name,
            calls=sum(c.calls for c in self.region.classes),
            classes=call_ranges([c.calls for c in self.classes]),
            rows=tuple(fold(self.rows())),
        )

    def rows(self) -> list[Row]:
        shown = {name: unit for name, unit in self.region.units.items() if self.only is None or name in self.only}
        units = [row for name, unit in shown.items() for row in self.unit_rows(name, unit)]
        return [*(self.outside_rows() if self.only is None else ()), *units]

    @cached_property
    def unit_of(self) -> dict[str, str]:
        return {node: name for name, unit in self.region.units.items() for node in unit.nodes}

    @cached_property
    def converted(self) -> dict[str, list[PlannedConversion]]:
        found: dict[str, list[PlannedConversion]] = {}
        for conversion in self.region.converted:
            found.setdefault(conversion.tensor, []).append(conversion)
        return found

    @cached_property
    def outside(self) -> list[str]:
        """Inputs and state of the region that are converted or kept."""
        kept = [k.tensor for c in self.classes for k in c.kept]
        return [t for t in dict.fromkeys([*kept, *self.converted]) if t not in self.unit_of]

    @cached_property
    def parameters(self) -> dict[str, str]:
        """State slot -> the unit of the same module; "" if there is none."""
        return {t: self._owner(t) for t in self.outside if any(self.is_slot(t, name) for name in self.plan.state)}

    def is_slot(self, tensor: str, name: str) -> bool:
        """Whether the region calls state of this name so: by its path, or by the end of it within a repeated module."""
        flat = name.replace(".", "_")
        return tensor not in self.unit_of and (flat == tensor or ("*" in self.name and flat.endswith(f"_{tensor}")))

    def _owner(self, slot: str) -> str:
        module = slot.rpartition("_")[0]
        return next((u for node, u in self.unit_of.items() if module and node.startswith(f"{module}_")), "")

    def outside_rows(self) -> list[Row]:
        """Inputs of the region, and state that no single unit owns."""
        return [
            self.tensor_row(tensor, f"({'parameter' if tensor in self.parameters else 'input'}) {tensor}")
            for tensor in self.outside
            if not self.parameters.get(tensor)
        ]

    def unit_rows(self, name: str, unit: PlannedUnit) -> list[Row]:
        """The unit, and below it its parameters and results that are converted."""
        below = [self.tensor_row(slot, f"  {short(slot)}") for slot, owner in self.parameters.items() if owner == name]
        results = [node for node in unit.nodes if node in self.converted]
        below += [self.tensor_row(node, f"  → {node if len(results) > 1 else 'result'}") for node in results]
        once = sum(c.calls for c in self.classes) == 1
        row = Row(
            name=name,
            axes=tuple(factor_text(factor, role) for factor, role in zip(unit.factors, unit.roles, strict=True)),
            marks=tuple(self.unit_mark(name, unit, c) for c in self.classes),
            minor=once and not below and unit.kind in MINOR_KINDS and not any(unit.factors),
        )
        return [row, *below]

    def unit_mark(self, name: str, unit: PlannedUnit, choice: PlannedClass) -> str:
        if name in choice.redone:
            return "redo"
        kept = any(k.tensor in unit.nodes and k.tensor not in self.converted for k in choice.kept)
        return "keep" if kept else "inside" if name in choice.kept_internals else ""

    def tensor_row(self, tensor: str, name: str) -> Row:
        """A tensor that is converted or kept; of a parameter also where it rests."""
        rest = next((p.placement for n, p in self.plan.state.items() if self.is_slot(tensor, n)), None)
        return Row(
            name=name,
            axes=tuple(map(state_text, rest.states)) if rest else ("",) * len(self.axes),
            conversions=chains(self.converted.get(tensor, ()), self.axes),
            marks=tuple(self.tensor_mark(tensor, c) for c in self.classes),
        )

    def tensor_mark(self, tensor: str, choice: PlannedClass) -> str:
        placements = sorted(str(k.placement) for k in choice.kept if k.tensor == tensor)
        kept = [f"keep {p.replace(', ', ',')}" for p in placements] if tensor in self.converted else ["keep"] * bool(placements)
        return "\n".join([*kept, *(["again"] if any(c.tensor == tensor for c in choice.reconverted) else [])])


def merged(classes: Iterable[PlannedClass]) -> list[PlannedClass]:
    """Neighbouring classes that keep and redo the same become one."""
    groups = groupby(classes, key=lambda c: c.model_copy(update={"calls": 0}))
    return [first.model_copy(update={"calls": sum(c.calls for c in members)}) for first, members in groups]


def call_ranges(counts: Sequence[int]) -> tuple[str, ...]:
    """Which calls each class covers, counted from 0 as layers are; a lone class needs no numbers."""
    if len(counts) == 1:
        return ("for backward",)
    ranges, start = [], 0
    for count in counts:
        ranges.append(f"call {start}" if count == 1 else f"calls {start}–{start + count - 1}")
        start += count
    return tuple(ranges)


def factor_text(factor: str | None, role: str | None) -> str:
    if factor is None:
        return "·"
    return "partial sums" if factor == PARTIAL_FACTOR else f"{role} {factor}" if role and role != factor else factor


def short(slot: str) -> str:
    """`weight` of `mlp_c_fc_weight`."""
    return slot.rpartition("_")[2]


def chains(conversions: Iterable[PlannedConversion], axes: Sequence[str]) -> tuple[str, ...]:
    """One line per path through the conversions of a tensor, as `reduce_scatter node, gather gpu`."""
    return tuple(path_text(path, axes) for path in paths(conversions))


def paths(conversions: Iterable[PlannedConversion]) -> tuple[tuple[Conversion, ...], ...]:
    """The conversions of a tensor, one after the other, from where they start to each placement that none leaves."""
    following: dict[Placement, list[Conversion]] = {}
    for planned in conversions:
        following.setdefault(planned.before, []).append(Conversion(planned.before, planned.after))
    reached = {c.after for found in following.values() for c in found}
    starts = [before for before in following if before not in reached] or list(following)[:1]
    return tuple(path for start in starts for path in _paths(start, following, frozenset()))


def _paths(
    at: Placement, following: Mapping[Placement, list[Conversion]], seen: frozenset[Placement]
) -> Iterable[tuple[Conversion, ...]]:
    for step in following.get(at, ()):
        if step.after not in seen:
            rest = list(_paths(step.after, following, seen | {at})) or [()]
            yield from ((step, *path) for path in rest)


def path_text(path: Iterable[Conversion], axes: Sequence[str]) -> str:
    """`gather gpu node`; with dims where a shard moves or begins: `exchange gpu (1 to 2)`, `slice gpu (0)`."""
    parts = []
    for kind, steps in groupby(path, key=lambda c: c.kind.name):
        parts.append(" ".join([kind, *(axes[c.axis] + dims_text(c) for c in steps)]))
    return ", ".join(parts)


def dims_text(conversion: Conversion) -> str:
    before, after = conversion.dims
    return "" if after is None else f" ({after})" if before is None else f" ({before} to {after})"


def state_text(state: State) -> str:
    return f"S({state})" if isinstance(state, int) else state


def fold(rows: Iterable[Row]) -> Iterable[Row]:
    """Runs of several minor rows become one."""
    for minor, members in groupby(rows, key=lambda row: row.minor):
        run = list(members)
        if not minor or len(run) == 1:
            yield from run
            continue
        marks = tuple(", ".join(filter(None, dict.fromkeys(column))) for column in zip(*(r.marks for r in run), strict=True))
        yield Row(name=f"… {len(run)} small units, not cut", axes=run[0].axes, marks=marks, minor=True)


def pattern(name: str) -> str:
    """`h.*.attn.weight` for `h.3.attn.weight`."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)
