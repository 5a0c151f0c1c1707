"""A plan as plain rows, for data frames, and as a graph: what people compute with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from autopar.errors import InputError
from autopar.ir.constraints import Selector, suggest
from autopar.ir.conversion import Conversion
from autopar.ir.region_view import chains, factor_text, pattern

if TYPE_CHECKING:
    import networkx

    from autopar.ir.plan import Plan, PlannedRegion

Row = dict[str, Any]


def units_of(plan: Plan, module: str) -> dict[str, list[str]]:
    """Units by region whose module, or one around it, is meant by a glob, which may be the end of a path.

    Raises InputError, with what is close, if there are none.
    """
    for path in (module, f"**.{module}"):
        selector = Selector(path=path)
        found = {
            name: [unit for unit, planned in region.units.items() if selector.has_path(planned.path) or unit == module]
            for name, region in plan.regions.items()
        }
        if any(found.values()):
            return {name: units for name, units in found.items() if units}
    raise unknown_module(plan, module)


def unknown_module(plan: Plan, module: str) -> InputError:
    paths = dict.fromkeys(
        ".".join(parts[:n])
        for region in plan.regions.values()
        for unit in region.units.values()
        for parts in [unit.path.split(".")]
        for n in range(1, len(parts) + 1)
    )
    known = [path for path in paths if path]
    if not known:
        return InputError("the plan does not say which modules its units are of: make it again with `autopar plan`")
    close = suggest(pattern(module), dict.fromkeys([*known, *(path.rpartition(".")[2] for path in known)]))
    listed = f". It has {', '.join(known[:12])}{' and more' if len(known) > 12 else ''}" if close == "." else close
    return InputError(f"the plan has no module {module!r}{listed}")


def table(plan: Plan, module: str | None = None) -> list[Row]:
    """A row for each unit: where it is, what it does on each mesh axis, what is converted, what backward keeps or redoes."""
    chosen = None if module is None else units_of(plan, module)
    return [
        row
        for name, region in plan.regions.items()
        if chosen is None or name in chosen
        for row in unit_rows(plan, name, region)
        if chosen is None or row["unit"] in chosen[name]
    ]


def unit_rows(plan: Plan, name: str, region: PlannedRegion) -> Iterator[Row]:
    axes, calls = plan.mesh.names, sum(keep.calls for keep in region.classes)
    for unit, planned in region.units.items():
        texts = (factor_text(factor, role) for factor, role in zip(planned.factors, planned.roles, strict=True))
        moved = [[c for c in region.converted if c.tensor == node] for node in planned.nodes]
        yield {
            "layer_type": name,
            "calls": calls,
            "module": planned.path,
            "unit": unit,
            "op": planned.op,
            "kind": planned.kind,
            **{axis: "" if text == "·" else text for axis, text in zip(axes, texts, strict=True)},
            "converted": "; ".join(path for conversions in moved for path in chains(conversions, axes)),
            "kept_calls": sum(keep.calls for keep in region.classes if any(k.tensor in planned.nodes for k in keep.kept)),
            "kept_inside_calls": sum(keep.calls for keep in region.classes if unit in keep.kept_internals),
            "redone_calls": sum(keep.calls for keep in region.classes if unit in keep.redone),
        }


def graph(plan: Plan) -> networkx.MultiDiGraph:
    """Units and, where nothing in their region makes them, the tensors that they read; an edge for each tensor that is read.

    Nodes are (region, name): units have the fields of a row of `table` beside `what` "unit", tensors `what` "tensor".
    Edges have `tensor` and `conversions`, kinds on axes. Each region stands once, however often it is called.
    """
    import networkx

    found = networkx.MultiDiGraph(model=plan.model, mesh=str(plan.mesh))
    for row in table(plan):
        found.add_node((row["layer_type"], row["unit"]), what="unit", **row)
    for name, region in plan.regions.items():
        makers = {node: unit for unit, planned in region.units.items() for node in planned.nodes}
        for unit, planned in region.units.items():
            for tensor in planned.reads:
                maker = makers.get(tensor, tensor)
                if tensor not in makers:
                    found.add_node((name, tensor), what="tensor")
                moved = [Conversion(c.before, c.after) for c in region.converted if c.tensor == tensor]
                kinds = tuple(f"{c.kind.name} {plan.mesh.names[c.axis]}" for c in moved)
                found.add_edge((name, maker), (name, unit), tensor=tensor, conversions=kinds)
    return found
