"""The one place that knows the quirks of ILP solvers.

HiGHS gets the arrays directly (building 10⁵ rows through PuLP costs more than some solves, and PuLP reports a time-out as
`Optimal`); without `highspy`, the CBC that PuLP ships is used, which proves less: after a time-out it gives no bound.
"""

from __future__ import annotations

import importlib
import logging
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from autopar.errors import SolverError
from autopar.solver.ilp import Ilp

THREADS = 2
PROBING = 1 << 15
"""HiGHS 1.11 to 1.15 may call a plan optimal that is not, by cuts from what its presolve learned by probing: enumeration of
small problems found one case in some thousands, right without probing (and with HiGHS 1.10)."""
LOG = logging.getLogger("autopar.solver")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """`values` is None for infeasible and nothing; `bound` is a proven lower bound of the objective (may be -inf).

    `reduced`, of a program without integers only: by how much the objective grows per unit of each variable, at least.
    """

    status: Literal["optimal", "feasible", "infeasible", "nothing"]
    values: Sequence[float] | None = None
    reduced: Sequence[float] = ()
    objective: float = math.inf
    bound: float = -math.inf


def run(
    ilp: Ilp, *, gap: float, time_limit_s: float, nodes: int | None = None, start: Mapping[int, float] | None = None
) -> Outcome:
    """Solve to a relative gap, or until the time or the number of branch-and-bound nodes is spent; `start` gives values of the
    integer variables of a known solution.

    HiGHS first; CBC where it is missing or fails. Raises SolverError, with what each said, if neither does.
    """
    began = time.monotonic()
    try:
        highspy: Any = importlib.import_module("highspy")
        outcome = _highs(highspy, ilp, gap, time_limit_s, nodes, start)
    except ImportError:
        LOG.warning("highspy is not installed: solving with CBC, which is slower and proves less")
        outcome = _cbc(ilp, gap, time_limit_s)
    except Exception as error:
        LOG.warning("HiGHS failed (%s): solving with CBC, which is slower and proves less", error)
        try:
            outcome = _cbc(ilp, gap, time_limit_s)
        except SolverError as missing:
            raise SolverError(
                f"HiGHS failed on the model ({error}), and there is no other solver: {missing}. "
                "Please report it with the model and mesh that were planned"
            ) from error
    LOG.debug("%d variables, %d rows: %s in %.2f s", ilp.variables, ilp.rows, outcome.status, time.monotonic() - began)
    return outcome


def _highs(
    highspy: Any, ilp: Ilp, gap: float, time_limit_s: float, nodes: int | None, start: Mapping[int, float] | None
) -> Outcome:
    highs = highspy.Highs()
    options = {
        "output_flag": False,
        "threads": THREADS,
        "presolve": "on",
        "presolve_rule_off": PROBING,
        "mip_rel_gap": gap,
        "mip_abs_gap": 1e-9,
        "time_limit": max(time_limit_s, 0.1),
    }
    if nodes is not None:
        options["mip_max_nodes"] = nodes
    for name, value in options.items():
        highs.setOptionValue(name, value)
    highs.passModel(_highs_lp(highspy, ilp))
    if start:
        import numpy

        highs.setSolution(len(start), numpy.array(list(start), numpy.int32), numpy.array(list(start.values()), float))
    if highs.run() == highspy.HighsStatus.kError:
        raise RuntimeError("it says: error")
    return _read_highs(highspy, highs, any(ilp.integer))


def _highs_lp(highspy: Any, ilp: Ilp) -> Any:
    import numpy

    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = ilp.variables, ilp.rows
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = map(numpy.array, (ilp.cost, ilp.lower, ilp.upper))
    lp.row_lower_, lp.row_upper_ = numpy.array(ilp.row_lower), numpy.array(ilp.row_upper)
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_ = numpy.array(ilp.starts, numpy.int32)
    lp.a_matrix_.index_ = numpy.array(ilp.columns, numpy.int32)
    lp.a_matrix_.value_ = numpy.array(ilp.values, float)
    kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
    lp.integrality_ = [kinds[flag] for flag in ilp.integer]
    return lp


def _read_highs(highspy: Any, highs: Any, integral: bool) -> Outcome:
    status, info, kinds = highs.getModelStatus(), highs.getInfo(), highspy.HighsModelStatus
    if status in (kinds.kInfeasible, kinds.kUnboundedOrInfeasible):
        return Outcome(status="infeasible")
    bound = info.mip_dual_bound if integral else (info.objective_function_value if status == kinds.kOptimal else -math.inf)
    if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return Outcome(status="nothing", bound=bound)
    return Outcome(
        status="optimal" if status == kinds.kOptimal else "feasible",
        values=list(highs.getSolution().col_value),
        reduced=() if integral else list(highs.getSolution().col_dual),
        objective=info.objective_function_value,
        bound=bound,
    )


def _cbc(ilp: Ilp, gap: float, time_limit_s: float) -> Outcome:
    import pulp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PuLP 3.3 announces PuLP 4, which our pin excludes
        return _cbc_quietly(pulp, ilp, gap, time_limit_s)


def _cbc_quietly(pulp: Any, ilp: Ilp, gap: float, time_limit_s: float) -> Outcome:
    options = {"msg": False, "gapRel": gap, "timeLimit": max(time_limit_s, 1.0), "threads": THREADS}
    solvers = [getattr(pulp, name)(**options) for name in ("COIN_CMD", "PULP_CBC_CMD") if hasattr(pulp, name)]
    solver = next((s for s in solvers if s.available()), None)
    if solver is None:
        raise SolverError("no ILP solver found: pip install highspy (or a PuLP that ships CBC)")
    problem, variables = _pulp_problem(pulp, ilp)
    try:
        problem.solve(solver)
    except pulp.PulpSolverError as error:
        raise SolverError(f"CBC failed: {error}") from error
    if problem.sol_status == pulp.LpSolutionInfeasible:
        return Outcome(status="infeasible")
    if problem.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return Outcome(status="nothing")
    values = [variable.value() or 0.0 for variable in variables]
    objective = sum(c * v for c, v in zip(ilp.cost, values, strict=True))
    if problem.sol_status == pulp.LpSolutionOptimal:
        reduced = () if any(ilp.integer) else [variable.dj or 0.0 for variable in variables]
        bound = objective if reduced else objective * (1 - gap)
        return Outcome(status="optimal", values=values, reduced=reduced, objective=objective, bound=bound)
    return Outcome(status="feasible", values=values, objective=objective)


def _pulp_problem(pulp: Any, ilp: Ilp) -> tuple[Any, list[Any]]:
    problem = pulp.LpProblem("autopar", pulp.LpMinimize)
    bounds = zip(ilp.lower, ilp.upper, ilp.integer, strict=True)
    variables = [
        pulp.LpVariable(f"v{i}", low, None if math.isinf(high) else high, pulp.LpInteger if integer else pulp.LpContinuous)
        for i, (low, high, integer) in enumerate(bounds)
    ]
    problem += pulp.LpAffineExpression([(v, c) for v, c in zip(variables, ilp.cost, strict=True)])
    for row in range(ilp.rows):
        span = range(ilp.starts[row], ilp.starts[row + 1])
        terms = pulp.LpAffineExpression([(variables[ilp.columns[i]], ilp.values[i]) for i in span])
        low, high = ilp.row_lower[row], ilp.row_upper[row]
        if low == high:
            problem += terms == low
            continue
        if not math.isinf(low):
            problem += terms >= low
        if not math.isinf(high):
            problem += terms <= high
    return problem, variables
