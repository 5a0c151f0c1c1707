"""Why a plan is as it is: for a unit, each other strategy with what it would cost, and what forbids it.

A strategy is priced with everything else of the plan as it is: other units do what they did, the unit's own parameters may rest
elsewhere, conversions and what backward keeps are chosen anew. That is what changing this one decision costs at most; what a
wish costs when all decisions may follow it, `why_not` finds by a search.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

from autopar.errors import BudgetError, ConstraintError, InputError, SolverError
from autopar.ir.constraints import Constraints, Rule, Selector
from autopar.ir.plan import Plan
from autopar.ir.program import path_of
from autopar.ir.shown import Shown
from autopar.ops.rule import WHOLE
from autopar.ops.units import Unit as TracedUnit
from autopar.planning.question import Question
from autopar.solver.problem import Problem, Solution, Strategy, Unit
from autopar.solver.restriction import Restriction
from autopar.solver.search import solve
from autopar.solver.selection import Key, Modules, leading, pick_state, pick_units
from autopar.solver.smallest import Clock
from autopar.solver.two_stage import save_memory, shard
from autopar.solver.vicinity import Vicinity

PLACEMENT_ON_AXIS = re.compile(r"(S(\(\d+\))?|R|I|P|whole)( on |\s*(,|$))")
"""What a wish may say without "out="."""

UNCONNECTED = "nothing connects it with its neighbours as they are"
TOO_LARGE = "does not fit the budget"
NOT_IN_TIME = "nothing that fits was found in time"

GAP = 1e-4
LIMIT_S = 10.0
"""For one strategy: what backward keeps under a budget may take a search."""
FIT_S = 2.0
"""For another search, where the fastest plan with a strategy does not fit, and a slower one may."""


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """One strategy of a unit. `own_s`: its kernels and collectives in a step, all calls together.

    `step_time_s`, `estimated_peak_bytes`: of the plan with this strategy in it (the peak as the solver estimates it, from
    above); None if there is no such plan. `forbidden` says what rules it out, "" if it is possible.
    """

    factors: tuple[str | None, ...]
    roles: tuple[str | None, ...]
    chosen: bool
    own_s: float
    step_time_s: float | None
    estimated_peak_bytes: float | None
    forbidden: str = ""


@dataclass(frozen=True, kw_only=True)
class Explained(Shown):
    """A unit of a plan on a mesh with these `axes`, and its strategies, the fastest first.

    `path` is that of its module in the first of `calls` equal layers, `source` a line of the model's code. `sizes`: of its
    factors; `uncut` says of those that no strategy cuts why not.
    """

    axes: tuple[str, ...]
    region: str
    unit: str
    kind: str
    calls: int
    path: str
    op: str
    source: str
    sizes: dict[str, int]
    uncut: dict[str, str]
    alternatives: tuple[Alternative, ...]

    @property
    def chosen(self) -> Alternative:
        return next(a for a in self.alternatives if a.chosen)

    @property
    def next_best(self) -> Alternative | None:
        """The fastest of the others that are possible."""
        return next((a for a in self.alternatives if not a.chosen and not a.forbidden), None)


@dataclass(frozen=True, kw_only=True)
class WhyNot(Shown):
    """What a search finds with one more pin than `before`; `plan` is None, and `reason` says why, if it finds nothing."""

    pin: str
    before: Plan
    plan: Plan | None
    reason: str = ""


def explain(question: Question, asked: str) -> list[Explained]:
    """The units that are asked for: by their own name, by a path of modules, `op=NAME` or `kind=NAME` (as pins select).

    Raises InputError, with what is close, if there are none.
    """
    return Explainer(question).explain(asked)


@dataclass(frozen=True)
class Explainer:
    question: Question

    @cached_property
    def modules(self) -> Modules:
        builder = self.question.priced.builder
        return Modules(builder.program, builder.cost.regions)

    @cached_property
    def problem(self) -> Problem:
        """With the plan's budget, or a little more where the solver estimates more than the graphs need."""
        budget, estimated = self.question.plan.budget_bytes, self.question.solution.peak_bytes
        return replace(self.question.problem, budget_bytes=None if budget is None else max(budget, math.ceil(estimated)))

    @cached_property
    def vicinity(self) -> Vicinity:
        return Vicinity(self.problem)

    def explain(self, asked: str) -> list[Explained]:
        keys = self.named(asked)
        found = []
        for region, unit in keys:
            self.question.progress(f"trying the strategies of {unit}")
            found.append(self.unit(region, unit))
        return found

    def named(self, asked: str) -> Sequence[Key]:
        """Raises InputError."""
        own = [key for key in self.modules.units if asked in (key[1], f"{key[0]}: {key[1]}")]
        return own or pick(self.modules, asked)

    def unit(self, region: str, name: str) -> Explained:
        problem_unit = next(u for u in self.problem.region[region].units if u.name == name)
        traced, calls = self.modules.units[region, name], self.modules.calls(region)
        node = leading(traced)
        alternatives = [self.alternative(region, problem_unit, i) for i in range(len(problem_unit.strategies))]
        return Explained(
            axes=self.question.plan.mesh.names,
            region=region,
            unit=name,
            kind=traced.kind,
            calls=len(calls),
            path=path_of(node, calls[0]) or node.name,
            op=str(node.target),
            source=node.meta.get("source", ""),
            sizes={factor: int(size) for factor, size in traced.sizes.items()},
            uncut=dict(self.uncut(traced, problem_unit)),
            alternatives=tuple(sorted(alternatives, key=lambda a: (a.step_time_s is None, a.step_time_s, not a.chosen))),
        )

    def alternative(self, region: str, unit: Unit, index: int) -> Alternative:
        question, strategy = self.question, unit.strategies[index]
        chosen = question.solution.regions[region].strategies[unit.name] == index
        against = question.priced.wanted.against(region, unit.name, index)
        found, why = (question.solution, "") if chosen else self.with_strategy(region, unit, index, bool(against))
        times = sum(self.problem.region[region].classes) * self.problem.micro_batches
        return Alternative(
            factors=strategy.factors,
            roles=strategy.roles,
            chosen=chosen,
            own_s=times * (strategy.forward_s + strategy.backward_s),
            step_time_s=None if found is None else found.cost_s,
            estimated_peak_bytes=None if found is None else found.peak_bytes,
            forbidden="" if chosen else ", ".join(against) or why,
        )

    def with_strategy(self, region: str, unit: Unit, index: int, against_wishes: bool) -> tuple[Solution | None, str]:
        """The best plan in which only this unit does otherwise, within the budget if that can be; what rules it out, if not."""
        plan, own = self.question.solution, {self.problem.region[region].state.get(operand) for operand in unit.operands}
        here = (region, unit.name)
        only = Restriction(
            strategy=lambda r, u, i: i == (index if (r, u) == here else plan.regions[r].strategies[u]),
            rest=lambda group, placement: group in own or placement == plan.rest[group],
        )
        allow = only if against_wishes else only & self.question.priced.wanted.allow
        clock = Clock(LIMIT_S)
        try:
            space = self.vicinity.of(allow)
            draft = shard(space, math.inf, GAP, clock)
        except SolverError:
            return None, UNCONNECTED
        if draft is None:
            return None, NOT_IN_TIME if clock.left_s <= 0 else UNCONNECTED
        if (found := save_memory(space, draft, GAP, clock)) is not None:
            return found, ""
        try:
            return solve(self.problem, gap=GAP, time_limit_s=FIT_S, allow=allow), ""
        except BudgetError:
            return draft, TOO_LARGE
        except SolverError:
            return draft, NOT_IN_TIME

    def uncut(self, traced: TracedUnit, unit: Unit) -> Iterator[tuple[str, str]]:
        """Factors that no strategy cuts, and why."""
        cut = {factor for strategy in unit.strategies for factor in parts(strategy)}
        sizes = sorted({n for n in self.question.plan.mesh.sizes if n > 1})
        for factor, size in traced.sizes.items():
            if factor in cut or int(size) == 1:
                continue
            if WHOLE in traced.marks[factor]:
                yield factor, "the rule keeps it whole"
            elif sizes and all(int(size) % n for n in sizes):
                yield factor, f"{int(size)} does not divide by {' or '.join(map(str, sizes))}"
            else:
                yield factor, "a tensor would have no placement"


def parts(strategy: Strategy) -> Iterator[str]:
    return (part for choice in strategy.factors if choice for part in choice.split("+"))


def pick(modules: Modules, asked: str) -> Sequence[Key]:
    """Units of a selection; a path that matches nothing may be the end of one. Raises InputError."""
    selector = Selector.parse(asked, repr(asked))
    errors = []
    for one in (selector, anywhere(selector)):
        try:
            return pick_units(modules, Rule(ban=False, text=asked, selector=one, statements=())).keys
        except ConstraintError as error:
            errors.append(str(error).removeprefix("pin "))
    raise InputError(errors[0])


def anywhere(selector: Selector) -> Selector:
    """Its path as the end of one: "mlp.up_proj" in every layer."""
    return selector if selector.path is None else replace(selector, path=f"**.{selector.path}")


def why_not(question: Question, wish: str) -> WhyNot:
    """Search the plan again with a pin more, all else as it was asked for.

    `wish` is a rule as for pins; a placement alone is what leaves the selection, and a path may be the end of one, as in
    "mlp.up_proj: S(1) on gpu". Raises ConstraintError if it is no rule.
    """
    pin = pin_of(question, wish)
    old = question.plan.constraints
    constraints: Constraints = replace(old, pins=(*old.pins, pin))
    constraints.require_axes(question.plan.mesh.names)
    try:
        found = question.planner.under(constraints).find(question.plan.mesh, question.plan.budget_bytes)
    except (BudgetError, ConstraintError, SolverError) as error:
        return WhyNot(pin=pin, before=question.plan, plan=None, reason=str(error))
    return WhyNot(pin=pin, before=question.plan, plan=found.plan.model_copy(update={"origin": question.plan.origin}))


def pin_of(question: Question, wish: str) -> str:
    """The rule in full."""
    selected, colon, said = (part.strip() for part in wish.partition(":"))
    if colon and PLACEMENT_ON_AXIS.match(said):
        said = f"out={said}"
    rule = Rule.parse(f"{selected}: {said}" if colon else wish)
    builder = question.priced.builder
    modules = Modules(builder.program, builder.cost.regions)
    for selector in (rule.selector, anywhere(rule.selector)):
        with suppress(ConstraintError):
            wanted = replace(rule, selector=selector)
            if any(one.subject == "rest" for one in rule.statements):
                pick_state(modules, wanted, builder.group_of)
            else:
                pick_units(modules, wanted)
            return f"{selector}: {said}"
    return rule.text
