"""A plan with its program, priced again: what questions about it begin with, without a search."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import nn

from autopar.codegen.accept import accept
from autopar.codegen.emit import Emitted, emit
from autopar.errors import PlanError
from autopar.hardware import Hardware
from autopar.ir.plan import Plan
from autopar.ir.timeline import Timeline, step_on_clock_s
from autopar.planning.planner import Aims, Planner, Priced, Progress, silent
from autopar.planning.simulate import simulate
from autopar.seconds import human_s
from autopar.solver.from_plan import as_planned, to_solution
from autopar.solver.problem import Problem, Solution
from autopar.tracer import trace

SAME = 1e-6
"""Relative: step times that went through a file."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """`decided` and `solution` are the plan as a choice among those of `problem`, which has the plan's budget."""

    plan: Plan
    planner: Planner
    progress: Progress

    @cached_property
    def priced(self) -> Priced:
        return self.planner.priced(self.plan.mesh)

    @cached_property
    def problem(self) -> Problem:
        return replace(self.priced.problem, budget_bytes=self.plan.budget_bytes)

    @cached_property
    def decided(self) -> Solution:
        """What the plan decides, at the step time that it says.

        Raises PlanError if this version has other choices than the one that made the plan, or the hardware other figures.
        """
        accept(self.planner.program, self.plan)
        found = as_planned(self.priced.builder, self.priced.problem, self.plan)
        if not math.isclose(found.cost_s, self.plan.step_time_s, rel_tol=SAME):
            raise PlanError(
                f"the plan says {human_s(self.plan.step_time_s)} per step, and on {self.planner.aims.hardware.name} as it is "
                f"described here it takes {human_s(found.cost_s)}: give the hardware that it was made for, or plan again"
            )
        return found

    @cached_property
    def solution(self) -> Solution:
        """The solution that it came from: a choice that can be varied. It may make more again than the plan's graphs do."""
        _ = self.decided
        return to_solution(self.priced.builder, self.priced.problem, self.plan)

    @cached_property
    def emitted(self) -> Emitted:
        """Its graphs, on fake tensors."""
        self.progress("emitting")
        return emit(self.planner.program, self.plan)

    @cached_property
    def timeline(self) -> Timeline:
        """One forward and backward on a clock."""
        emitted = self.emitted
        self.progress("running the clock")
        return simulate(emitted, self.planner.aims.hardware)

    @cached_property
    def clock_s(self) -> float:
        """Seconds of a whole step on that clock."""
        return step_on_clock_s(self.plan, self.timeline.step_s)


def ask(
    model: nn.Module,
    plan: Plan,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    hardware: Hardware,
    progress: Progress = silent,
) -> Question:
    """`args`/`kwargs`: of one micro-batch. Raises TraceError, PlanError if the plan is for another program."""
    progress("tracing")
    program = trace(model, args, dict(kwargs), name=plan.model, precision=plan.precision, progress=progress)
    plan.require(program, plan.mesh)
    aims = Aims(hardware=hardware, optimizer=plan.optimizer, overlap=plan.overlap, constraints=plan.constraints)
    return Question(
        plan=plan, planner=Planner(program, aims, micro_batches=plan.micro_batches, progress=progress), progress=progress
    )
