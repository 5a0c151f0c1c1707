"""The user's constraints as a restriction of the search: which strategies, resting places and kept values they leave.

A rule on a module concerns every unit that has a node in it. A pin on a role holds for the units that have such a factor: in a
pinned MLP the products must be cut that way, its views follow. Where nothing could hold, or two rules contradict each other,
the error names them before anything is searched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from autopar.errors import ConstraintError, SolverError
from autopar.ir.constraints import NO_CONSTRAINTS, Constraints, Rule, Statement
from autopar.ir.placement import INVARIANT, REPLICATE
from autopar.ir.program import Program
from autopar.ops.strategies import cut_by
from autopar.solver.build import Builder
from autopar.solver.choices import Choices, Options, choices, places
from autopar.solver.problem import Problem, Strategy
from autopar.solver.restriction import Restriction
from autopar.solver.roles import BATCH, TENSOR_KINDS
from autopar.solver.selection import Key, Modules, Picked, kept_whole, pick_state, pick_units
from autopar.solver.space import narrow


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the constraints leave, and remarks for the plan on how they were understood. `wishes`: by unit, each wish that says
    anything of it, with the strategies that it leaves."""

    allow: Restriction
    notes: tuple[str, ...] = ()
    wishes: Mapping[Hashable, Sequence[tuple[str, Options]]] = field(default_factory=dict)

    def against(self, region: str, unit: str, strategy: int) -> tuple[str, ...]:
        """The wishes that forbid the unit this strategy."""
        return tuple(dict.fromkeys(wish for wish, left in self.wishes.get((region, unit), ()) if strategy not in left))


def wanted(constraints: Constraints, builder: Builder, problem: Problem) -> Wanted:
    """The restriction that the constraints are; raises ConstraintError for what does not fit the program or the mesh."""
    return Translation(constraints, builder, problem).wanted()


class Translation:
    """Goes through all wishes in order, narrowing what is left; `redone` are selections redone from what enters them."""

    def __init__(self, constraints: Constraints, builder: Builder, problem: Problem) -> None:
        self.constraints, self.builder, self.problem = constraints, builder, problem
        self.program: Program = builder.program
        self.axes = builder.mesh.names
        self.units = {(r.name, u.name): u for r in problem.regions for u in r.units}
        self.modules = Modules(self.program, builder.cost.regions)
        self.strategies = Choices("unit", {key: frozenset(range(len(u.strategies))) for key, u in self.units.items()})
        self.rest = Choices("parameter", {name: frozenset(group.bytes_at) for name, group in problem.state.items()})
        self.kept: dict[Key, str] = {}
        self.redone: list[tuple[str, frozenset[Key]]] = []
        self.notes: list[str] = []

    def wanted(self) -> Wanted:
        self.constraints.require_axes(self.axes)
        for rule in self.constraints.rules:
            for said in rule.statements:
                self.apply(rule, said)
        if self.constraints.parameters == "whole":
            self.parameters_whole()
        if self.constraints.min_micro_batch > 1:
            self.limit_rows(self.constraints.min_micro_batch)
        self.require_no_conflict_in_backward()
        if self.constraints.checkpoints == "honour":
            self.honour_checkpoints()
        return Wanted(allow=self.restriction(), notes=tuple(dict.fromkeys(self.notes)), wishes=self.strategies.wishes)

    def apply(self, rule: Rule, said: Statement) -> None:
        wish = str(rule) if len(rule.statements) == 1 else f"{rule} ({said.text})"
        if said.subject == "rest":
            return self.place_parameters(rule, said, wish)
        picked = pick_units(self.modules, rule)
        self.notes += picked.notes
        if said.subject in ("keep", "recompute"):
            return self.decide_backward(wish, picked, redone=(said.subject == "recompute") != rule.ban)
        holds = {"role": self.has_role, "factor": self.has_factor, "in": self.has_placement, "out": self.has_placement}
        test = holds[said.subject]
        met = [self.narrow(key, rule, said, wish, test(key, said, picked)) for key in picked.keys]
        if not rule.ban and not any(met):
            raise ConstraintError(f"{wish} cannot hold: {self.choices(picked.keys, said)}")

    def narrow(self, key: Key, rule: Rule, said: Statement, wish: str, met: Callable[[Strategy, int], bool | None]) -> bool:
        """Leave the strategies that the rule allows; whether a pin holds. `met` is None where nothing is said of the unit."""
        unit, axes = self.units[key], said.axes(self.axes)
        verdicts = {i: [met(s, axis) for axis in axes] for i, s in enumerate(unit.strategies)}
        if rule.ban:
            allowed = [i for i, found in verdicts.items() if not any(found)]
            if not allowed:
                raise ConstraintError(f"{wish} cannot hold: {self.choices([key], said)}")
        else:
            allowed = [i for i, found in verdicts.items() if all(found)]
            if not allowed:
                if said.subject == "role" and unit.kind in TENSOR_KINDS and said.value in self.roles(key).values():
                    raise ConstraintError(f"{wish} cannot hold: {self.choices([key], said)}")
                return False
        self.strategies.restrict(key, wish, allowed)
        return True

    def roles(self, key: Key) -> Mapping[str, str]:
        region, unit = key
        return self.builder.roles[region][unit]

    def has_role(self, key: Key, said: Statement, picked: Picked) -> Callable[[Strategy, int], bool]:
        role = None if said.value == "none" else said.value
        return lambda strategy, axis: strategy.roles[axis] == role

    def has_factor(self, key: Key, said: Statement, picked: Picked) -> Callable[[Strategy, int], bool]:
        return lambda strategy, axis: strategy.factors[axis] == said.value

    def has_placement(self, key: Key, said: Statement, picked: Picked) -> Callable[[Strategy, int], bool]:
        """Of what enters (in) or leaves (out) the selection; of one operand or result of every unit if it is numbered."""
        unit, region = self.units[key], self.problem.region[key[0]]
        names = unit.operands if said.subject == "in" else unit.results
        if said.position is not None:
            positions = [said.position] if said.position < len(names) else []
        elif said.subject == "in":
            inside = {t for other in picked.keys if other[0] == key[0] for t in self.units[other].results}
            positions = [i for i, name in enumerate(names) if name not in region.state and name not in inside]
        else:
            outside = self.read_outside(key[0], picked.keys)
            positions = [i for i, name in enumerate(names) if name in outside]

        def met(strategy: Strategy, axis: int) -> bool:
            placements = strategy.operands if said.subject == "in" else strategy.results
            return bool(positions) and all(said.has_state(placements[i].states[axis]) for i in positions)

        return met

    def read_outside(self, region: str, selection: Iterable[Key]) -> set[str]:
        """Tensors that a unit outside of the selection reads, or that leave the region."""
        inside = {unit for name, unit in selection if name == region}
        found = {name for name, _ in self.problem.region[region].outputs}
        for unit in self.problem.region[region].units:
            found |= set() if unit.name in inside else set(unit.operands)
        return found

    def place_parameters(self, rule: Rule, said: Statement, wish: str) -> None:
        picked = pick_state(self.modules, rule, self.builder.group_of)
        self.notes += picked.notes
        met = []
        for group in picked.groups:
            options, axes = self.problem.state[group].bytes_at, said.axes(self.axes)
            has = {p: [said.has_state(p.states[axis]) for axis in axes] for p in options}
            allowed = [p for p, found in has.items() if (not any(found) if rule.ban else all(found))]
            met.append(bool(allowed))
            if not allowed and (rule.ban or group in picked.by_name):
                raise ConstraintError(f"{wish} cannot hold: {self.places(group, said)}")
            if allowed:
                self.rest.restrict(group, wish, allowed)
        if not any(met):
            raise ConstraintError(f"{wish} cannot hold: {self.places(picked.groups[0], said)}")

    def choices(self, keys: Sequence[Key], said: Statement) -> str:
        return choices(self.units, keys, said, self.named(said)) + kept_whole(self.modules, self.units, keys)

    def places(self, group: str, said: Statement) -> str:
        shape = [int(n) for n in self.program.state[group].spec.shape]
        return places(group, shape, self.problem.state[group].bytes_at, self.named(said))

    def named(self, said: Statement) -> dict[int, str]:
        """The axes that a statement speaks of: index -> name."""
        return {axis: self.axes[axis] for axis in said.axes(self.axes)}

    def decide_backward(self, wish: str, picked: Picked, *, redone: bool) -> None:
        if not redone:
            self.kept |= {key: self.kept.get(key, wish) for key in picked.keys}
            return
        if self.constraints.recompute == "never":
            raise ConstraintError(f"{wish} and recompute never contradict each other. Drop one of them")
        random = [key for key in picked.keys if not self.units[key].redoable]
        if random and len(random) == len(picked.keys):
            raise ConstraintError(f"{wish} cannot hold: {random[0][1]} of {random[0][0]} is random, a second run would differ")
        self.redone.append((wish, frozenset(picked.keys)))

    def require_no_conflict_in_backward(self) -> None:
        for wish, keys in self.redone:
            for region, unit in sorted(keys & self.kept.keys()):
                raise ConstraintError(
                    f"{self.kept[region, unit]} and {wish} contradict each other at unit {unit} of {region}. Drop one of them"
                )

    def honour_checkpoints(self) -> None:
        """What the model's code runs under one `torch.utils.checkpoint` is redone from its input, but for what a rule keeps.

        A chain of ops that is only partly under it is left to the solver.
        """
        for region, measured in self.builder.cost.regions.items():
            under: dict[int, set[Key]] = {}
            for unit in (m.unit for m in measured):
                numbers = {node.meta.get("checkpoint") for node in unit.nodes}
                number = numbers.pop() if len(numbers) == 1 else None
                if number is not None and (region, unit.name) not in self.kept:
                    under.setdefault(number, set()).add((region, unit.name))
            if under and self.constraints.recompute == "never":
                self.notes.append(f"recompute never overrules the model's own checkpoints in {region}")
            elif under:
                self.redone += [("the model's own checkpoint", frozenset(keys)) for keys in under.values()]
                self.notes.append(f"the model's own checkpoints in {region} are redone from their inputs (checkpoints honour)")

    def parameters_whole(self) -> None:
        for name, group in self.problem.state.items():
            whole = [p for p in group.bytes_at if all(s in (REPLICATE, INVARIANT) for s in p.states)]
            self.rest.restrict(name, "parameters whole", whole)

    def limit_rows(self, rows: int) -> None:
        """At most batch / rows devices share the batch, in every unit."""
        batch = self.batch_rows
        if batch is None:
            raise ConstraintError(f"min_micro_batch {rows}: {self.program.name} has no input with a batch dim")
        if rows > batch:
            raise ConstraintError(f"min_micro_batch {rows} is more than the whole batch, {batch} rows: give a larger batch")
        wish = f"min_micro_batch {rows}"
        for key, unit in self.units.items():
            few = [i for i, s in enumerate(unit.strategies) if self.cuts(key, s) * rows <= batch]
            if len(few) < len(unit.strategies):
                self.strategies.restrict(key, wish, few)

    def cuts(self, key: Key, strategy: Strategy) -> int:
        """Into how many pieces it cuts the batch."""
        role, choices = self.roles(key), zip(self.builder.mesh.sizes, strategy.factors, strict=True)
        return math.prod(n for n, choice in choices if BATCH in {role[f] for f in cut_by(choice)})

    @cached_property
    def batch_rows(self) -> int | None:
        shapes = (self.program.values[name].shape for name in self.program.inputs if name)
        return next((int(shape[0]) for shape in shapes if shape), None)

    def restriction(self) -> Restriction:
        """Predicates for what is restricted at all; the others stay None, which costs a search nothing."""
        strategies, rest = self.strategies, self.rest
        redo_never, kept = self.constraints.recompute == "never", self.kept
        tensors, units = self.forbidden_to_keep()
        return Restriction(
            strategy=(lambda region, unit, i: i in strategies.left[region, unit]) if strategies.wishes else None,
            rest=(lambda group, placement: placement in rest.left[group]) if rest.wishes else None,
            redo=(lambda region, unit: not redo_never and (region, unit) not in kept) if redo_never or kept else None,
            keep=(lambda region, tensor: (region, tensor) not in tensors) if tensors else None,
            keep_inside=(lambda region, unit: (region, unit) not in units) if units else None,
        )

    def forbidden_to_keep(self) -> tuple[set[Key], set[Key]]:
        """Results that are only read within one selection that is redone, and units whose own saved values go too.

        A random unit cannot run again: what it makes and saves may be kept.
        """
        tensors: set[Key] = set()
        units: set[Key] = set()
        for _, keys in self.redone:
            again = {key for key in keys if self.units[key].redoable}
            units |= again
            for region in {region for region, _ in keys}:
                outside = self.read_outside(region, keys)
                made = (t for name, unit in again if name == region for t in self.units[name, unit].results)
                tensors |= {(region, tensor) for tensor in made if tensor not in outside}
        return tensors, units


def blame(constraints: Constraints, builder: Builder, problem: Problem) -> ConstraintError | None:
    """The error that names the wishes without any one of which there would be a plan; None if others are to blame.

    Each wish is left out in turn: rules that fit every unit may still leave no placements that connect the units.
    """
    why = _stuck(constraints, builder, problem)
    if why is None or _stuck(NO_CONSTRAINTS, builder, problem) is not None:
        return None
    guilty = [wish for wish, rest in _each_left_out(constraints) if _stuck(rest, builder, problem) is None]
    names = " and ".join(guilty) if guilty else f"the constraints together ({'; '.join(constraints.lines())})"
    verb = "leaves" if len(guilty) == 1 else "leave"
    return ConstraintError(f"{names} {verb} no plan on mesh {builder.mesh}: {why}. Drop or loosen it")


def _stuck(constraints: Constraints, builder: Builder, problem: Problem) -> str | None:
    """Which unit has no choice left, if one has none."""
    try:
        narrow(problem, wanted(constraints, builder, problem).allow)
    except SolverError as error:
        return str(error).partition(":")[0]
    return None


def _each_left_out(constraints: Constraints) -> Iterator[tuple[str, Constraints]]:
    for i, pin in enumerate(constraints.pins):
        yield f"pin {pin!r}", replace(constraints, pins=constraints.pins[:i] + constraints.pins[i + 1 :])
    for i, ban in enumerate(constraints.bans):
        yield f"ban {ban!r}", replace(constraints, bans=constraints.bans[:i] + constraints.bans[i + 1 :])
    if constraints.parameters != "free":
        yield "the placement of parameters", replace(constraints, parameters="free")
    if constraints.min_micro_batch > 1:
        yield f"min_micro_batch {constraints.min_micro_batch}", replace(constraints, min_micro_batch=1)
