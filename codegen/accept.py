"""Whether a plan's decisions can be carried out by a program: judged before anything is emitted, with the field named.

The rules are those that the solver's own solutions are held against (`solver/check.py`), read off the program instead of a
problem: a file may have been edited since. What backward reads shows when graphs are split (`split.py`); what all of it
comes to, when they are counted (`hold.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from autopar.errors import PlanError
from autopar.ir.mesh import MeshSpec
from autopar.ir.placement import Placement
from autopar.ir.plan import Plan, PlannedClass, PlannedRegion
from autopar.ir.program import Program, Region
from autopar.ops.rows import discovered
from autopar.ops.strategies import Strategy, options, strategy
from autopar.ops.units import Unit, needs_grad, units

Position = tuple[str, Placement]
"""A tensor (by its node's name in the program) at a placement."""


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """A region whose planned decisions are possible: its units, in order, and the strategy of each by name."""

    region: Region
    units: tuple[Unit, ...]
    strategies: Mapping[str, Strategy]


def accept(program: Program, plan: Plan) -> dict[str, Accepted]:
    """Raises PlanError, naming the field, unless every decision of the plan is possible for the program."""
    plan.require(program, plan.mesh, dtypes=False)
    for field, reason in wrong_rest(program, plan):
        raise refused(field, reason)
    return {name: accept_region(program, region, plan) for name, region in program.regions.items()}


def refused(field: str, reason: str) -> PlanError:
    return PlanError(f"the plan's field {field}: {reason}. Make it again with `autopar plan`")


def wrong_rest(program: Program, plan: Plan) -> Iterator[tuple[str, str]]:
    """What rests where it cannot: in empty pieces, unlike other calls of a region, or cut where it must be whole."""
    whole = Placement.whole(len(plan.mesh))
    for name, spec in program.values.items():
        shape, placement = tuple(int(n) for n in spec.shape), plan.boundaries[name]
        if not placement.fits(shape, plan.mesh.sizes):
            yield f"boundaries.{name}", f"[{placement}] does not divide {list(shape)}"
    for name, state in program.state.items():
        if state.kind != "parameter" and plan.state[name].placement != whole:
            yield f"state.{name}.placement", f"a {state.kind} is whole on every device"
    for name in filter(None, (program.loss, *program.mutations.values())):
        if plan.boundaries[name] != whole:
            yield f"boundaries.{name}", "it must be whole on every device: it is the loss, or becomes a buffer"
    for region in program.regions:
        yield from unlike(program, plan, region)


def unlike(program: Program, plan: Plan, region: str) -> Iterator[tuple[str, str]]:
    """Values and state of later calls that do not rest as those of the first call, whose graphs they share."""
    first, *later = (program.calls[i] for i in program.calls_of(region))
    for call in later:
        values = zip((*first.inputs, *first.outputs), (*call.inputs, *call.outputs), strict=True)
        pairs = [(f"boundaries.{b}", a, plan.boundaries[a], plan.boundaries[b]) for a, b in values]
        state = zip(first.state, call.state, strict=True)
        pairs += [(f"state.{b}.placement", a, plan.state[a].placement, plan.state[b].placement) for a, b in state]
        for field, one, here, there in pairs:
            if here != there:
                yield field, f"[{there}], but calls of {region} share their graphs, and {one} is at [{here}]"


def accept_region(program: Program, region: Region, plan: Plan) -> Accepted:
    planned, found, where = plan.regions[region.name], units(region), f"regions.{region.name}"
    require_same_rows(region, planned, where)
    chosen = chosen_strategies(found, planned, plan.mesh, where)
    call = program.calls[program.calls_of(region.name)[0]]
    produced = dict(zip(region.inputs, (plan.boundaries[v] for v in call.inputs), strict=True))
    produced |= zip(region.state, (plan.state[s].placement for s in call.state), strict=True)
    wishes: list[tuple[str, Position]] = []
    for unit in found:
        produced |= zip((n.name for n in unit.results), chosen[unit.name].results, strict=True)
        operands = zip((n.name for n in unit.operands), chosen[unit.name].operands, strict=True)
        wishes += [(f"unit {unit.name}", operand) for operand in operands]
    for node, value in zip(region.outputs, call.outputs, strict=True):
        wishes.append((f"boundaries.{value}", (node.name, plan.boundaries[value])))
    came = accept_conversions(region, planned, plan.mesh, produced, wishes)
    calls = len(program.calls_of(region.name))
    if (total := sum(keep.calls for keep in planned.classes)) != calls:
        raise refused(f"{where}.classes", f"they are for {total} calls, the program has {calls} of {region.name}")
    for i, keep in enumerate(planned.classes):
        accept_class(f"{where}.classes.{i}", found, keep, came)
    return Accepted(region=region, units=found, strategies=chosen)


def require_same_rows(region: Region, planned: PlannedRegion, where: str) -> None:
    """Raises PlanError where other rules are discovered here than when the plan was made (plans that were made before they
    named any have none to compare)."""
    here = discovered(region)
    for node, said in planned.discovered.items():
        found = here.get(node)
        if found is None:
            raise refused(f"{where}.discovered.{node}", f"{said.op} has a rule here, or is not there")
        if (said.op, said.row) != (found.op, found.text):
            because = f" ({found.reason})" if found.reason else ""
            raise refused(
                f"{where}.discovered.{node}",
                f"for {said.op} it says [{said.row}], tried here {found.op} is [{found.text}]{because}",
            )
    if planned.discovered and (added := [node for node in here if node not in planned.discovered]):
        raise refused(f"{where}.discovered", f"{here[added[0]].op} at {added[0]} has no rule, and is not named")


def chosen_strategies(found: tuple[Unit, ...], planned: PlannedRegion, mesh: MeshSpec, where: str) -> dict[str, Strategy]:
    """Strategies from the factors that the plan names; raises PlanError where they are impossible."""
    names = {unit.name for unit in found}
    if strange := sorted(set(planned.units) ^ names):
        lacking = "the plan does not know" if strange[0] in names else "the model does not have"
        raise refused(f"{where}.units", f"{strange[0]} is a unit that {lacking}")
    chosen = {}
    for unit in found:
        said, known = planned.units[unit.name], options(unit)
        if said.nodes != tuple(n.name for n in unit.nodes) or said.kind != unit.kind:
            raise refused(f"{where}.units.{unit.name}", f"it is {unit.kind} of {[n.name for n in unit.nodes]} in the model")
        possible = strategy(unit, said.factors, mesh.sizes) if set(said.factors) <= set(known) else None
        if possible is None:
            sizes = {f: int(n) for f, n in unit.sizes.items() if f in known}
            raise refused(
                f"{where}.units.{unit.name}.factors", f"{list(said.factors)} cannot be cut on mesh {mesh} (factors: {sizes})"
            )
        chosen[unit.name] = possible
    return chosen


def accept_conversions(
    region: Region,
    planned: PlannedRegion,
    mesh: MeshSpec,
    produced: Mapping[str, Placement],
    wishes: list[tuple[str, Position]],
) -> set[Position]:
    """All (tensor, placement) that there are in forward: conversions start where tensors are, and lead to what is wished."""
    where = f"regions.{region.name}.converted"
    into = {(c.tensor, c.after): (i, c.before) for i, c in enumerate(planned.converted)}
    for i, conversion in enumerate(planned.converted):
        if conversion.tensor not in produced:
            raise refused(f"{where}.{i}.tensor", f"{conversion.tensor} is no tensor between units of {region.name}")
        shape = shape_of(region.nodes[conversion.tensor])
        if not conversion.after.fits(shape, mesh.sizes):
            raise refused(f"{where}.{i}.after", f"[{conversion.after}] does not divide {conversion.tensor} {list(shape)}")
        if not needs_grad(region.nodes[conversion.tensor]) and {"R", "P"} & set(conversion.after.states):
            raise refused(f"{where}.{i}.after", f"{conversion.tensor} has no gradient: it is only ever S or I")
        if conversion.after == produced[conversion.tensor]:
            raise refused(f"{where}.{i}.after", f"{conversion.tensor} is made at [{conversion.after}] already")
    came, used = set(produced.items()), set()
    for who, position in wishes:
        path: list[Position] = []
        while position not in came:
            if position not in into or position in path:
                tensor, placement = position
                raise refused(where, f"{who} needs {tensor} at [{placement}], where no conversion brings it")
            path.append(position)
            i, before = into[position]
            used.add(i)
            position = (position[0], before)
        came.update(path)
    if unused := [i for i in range(len(planned.converted)) if i not in used]:
        raise refused(f"{where}.{unused[0]}", f"nothing reads {planned.converted[unused[0]].tensor} there")
    return came


def accept_class(where: str, found: tuple[Unit, ...], keep: PlannedClass, came: set[Position]) -> None:
    for i, kept in enumerate(keep.kept):
        if (kept.tensor, kept.placement) not in came:
            raise refused(f"{where}.kept.{i}", f"{kept.tensor} is never at [{kept.placement}]")
    random = {unit.name for unit in found if unit.random}
    if twice := random & set(keep.redone):
        raise refused(f"{where}.redone", f"{min(twice)} draws random numbers: it would not give the same again")


def shape_of(node: torch.fx.Node) -> tuple[int, ...]:
    return tuple(int(n) for n in node.meta["val"].shape)
