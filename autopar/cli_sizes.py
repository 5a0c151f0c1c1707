"""`autopar plan --dynamic`: what becomes of a plan when batches of other sizes come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autopar.cli_origin import again
from autopar.errors import AutoparError, InputError

if TYPE_CHECKING:
    from autopar import Plan
    from autopar.ir.plan import OtherSize

NAMES = ("batch", "seq")
Sizes = dict[str, int]

DynamicOption = Annotated[
    list[str] | None,
    typer.Option(
        "--dynamic", metavar="SIZES", help="Predict batches of other sizes too, as seq=1024,4096 or batch=8; may be repeated."
    ),
]


def other_sizes(given: Sequence[str] | None, *, single: bool) -> list[Sizes]:
    """Every combination of the sizes that are named; raises InputError. `single`: one plan is looked for, for one batch.

    >>> other_sizes(["seq=8,16", "batch=2"], single=True)
    [{'seq': 8, 'batch': 2}, {'seq': 16, 'batch': 2}]
    """
    if not given:
        return []
    if not single:
        raise InputError("--dynamic is for one plan of one batch: leave out --pareto and --global-batch")
    found: dict[str, list[int]] = {}
    for text in given:
        name, equals, values = text.partition("=")
        if name not in NAMES or not equals:
            raise InputError(f"--dynamic {text}: give sizes, as seq=1024,4096 or batch=8")
        if name in found:
            raise InputError(f"--dynamic names {name} twice: give all its sizes at once, as {name}=8,16")
        sizes = [value.strip() for value in values.split(",")]
        if wrong := [size for size in sizes if not size.isdigit() or int(size) < 1]:
            raise InputError(f"--dynamic {text}: {wrong[0]!r} is no size, a whole number from 1")
        found[name] = [int(size) for size in sizes]
    return [dict(zip(found, values, strict=True)) for values in product(*found.values())]


def with_other_sizes(plan: Plan, sizes: Sequence[Sizes], time_limit_s: float | None, stage: Callable[[str], None]) -> Plan:
    """The plan with what is predicted for each of the sizes, as training plans them when such batches come."""
    from autopar.ir.plan import OtherSize

    found = []
    for one in sizes:
        try:
            found.append(at_other_size(plan, one, time_limit_s, stage))
        except AutoparError as error:
            found.append(OtherSize(sizes=one, reason=str(error)))
    return plan.model_copy(update={"other_sizes": tuple(found)})


def at_other_size(plan: Plan, sizes: Sizes, time_limit_s: float | None, stage: Callable[[str], None]) -> OtherSize:
    """The best plan around the parameters as they rest, of the model with inputs of other sizes."""
    from autopar.api import LIMIT_S, find_plan
    from autopar.ir.plan import OtherSize
    from autopar.tracer import trace

    assert plan.origin is not None, "the plan was just made"
    resized = plan.model_copy(update={"origin": plan.origin.model_copy(update=sizes)})
    made = again(resized, Path("the plan"), stage)
    stage(f"planning for {', '.join(f'{name} {size}' for name, size in sizes.items())}")
    loaded = made.loaded
    program = trace(loaded.model, loaded.args, dict(loaded.kwargs), name=plan.model, precision=plan.precision)
    resting = {name: plan.state[name].placement for name, s in program.state.items() if s.kind == "parameter"}
    found = find_plan(
        program,
        plan.mesh,
        resting,
        memory=plan.budget_bytes,
        micro_batches=plan.micro_batches,
        cache=False,
        hardware=made.hardware,
        optimizer=plan.optimizer,
        time_limit_s=time_limit_s or LIMIT_S,
        gap=1e-3,
        overlap=plan.overlap,
        constraints=plan.constraints,
    )
    return OtherSize(sizes=sizes, step_time_s=found.step_time_s, peak_bytes=found.peak_bytes)
