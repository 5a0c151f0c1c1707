"""What becomes of a plan when other batches come: training plans them around the parameters as they rest, and so does this."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from autopar.errors import BudgetError, ConstraintError, SolverError, UnshardableError
from autopar.ir.plan import OtherSize, Plan
from autopar.ir.program import Program
from autopar.planning.planner import Aims, Planner, Progress, silent


def at_other_size(plan: Plan, program: Program, sizes: Mapping[str, int], aims: Aims, progress: Progress = silent) -> OtherSize:
    """The best plan of the model at other sizes, with the plan's mesh, budget and resting parameters; or why there is none."""
    resting = {name: plan.state[name].placement for name, s in program.state.items() if s.kind == "parameter"}
    planner = Planner(program, replace(aims, resting=resting), micro_batches=plan.micro_batches, progress=progress)
    try:
        found = planner.find(plan.mesh, plan.budget_bytes).plan
    except (BudgetError, ConstraintError, SolverError, UnshardableError) as error:
        return OtherSize(sizes=dict(sizes), reason=str(error))
    return OtherSize(sizes=dict(sizes), step_time_s=found.step_time_s, peak_bytes=found.peak_bytes)
