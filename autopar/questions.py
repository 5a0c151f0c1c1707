"""Questions about a plan, asked from Python: the known ways beside it, its units' other strategies, and wishes planned anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from autopar.hardware import Hardware
from autopar.ir.plan import Plan
from autopar.planning import compare as comparing
from autopar.planning import explain as explaining
from autopar.planning.compare import Comparison
from autopar.planning.explain import Explained, WhyNot
from autopar.planning.planner import Progress, silent
from autopar.planning.question import Question, ask
from autopar.solver.baselines import BASELINES
from autopar.timelines import hardware_of


def compare(
    model: nn.Module,
    plan: Plan,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    ways: Sequence[str] = tuple(BASELINES),
    hardware: str | Hardware | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """The plan beside DDP, ZeRO, tensor and sequence parallelism on the same mesh, each with every checkpointing policy.

    `args`/`kwargs` as for `plan` (those of one micro-batch), `hardware` that of the plan if left out. Nothing runs; each way's
    graphs are emitted and counted. Raises PlanError if the plan is for another program.

    >>> # print(autopar.compare(model, plan, kwargs=batch).best.name)
    """
    return comparing.compare(question(model, plan, args, kwargs, hardware, progress), ways)


def explain(
    model: nn.Module,
    plan: Plan,
    asked: str,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    hardware: str | Hardware | None = None,
    progress: Progress | None = None,
) -> list[Explained]:
    """What the units that are `asked` for ("mlp.up_proj", "op=linear", a unit's name) could do instead, and at what cost.

    Each other strategy is priced with all else of the plan as it is. Raises InputError, with close names, if nothing is meant.
    """
    return explaining.explain(question(model, plan, args, kwargs, hardware, progress), asked)


def why_not(
    model: nn.Module,
    plan: Plan,
    wish: str,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    hardware: str | Hardware | None = None,
    progress: Progress | None = None,
) -> WhyNot:
    """The plan searched again with a wish more ("mlp.up_proj: tensor=gpu", as pins; a bare placement is the result's).

    `.plan` is None, and `.reason` says why, if there is no such plan within the budget. Raises ConstraintError for what is no
    rule.
    """
    return explaining.why_not(question(model, plan, args, kwargs, hardware, progress), wish)


def question(
    model: nn.Module,
    plan: Plan,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None,
    hardware: str | Hardware | None,
    progress: Progress | None,
) -> Question:
    return ask(model, plan, args, dict(kwargs or {}), hardware_of(plan, hardware), progress or silent)
