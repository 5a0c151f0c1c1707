"""`autopar compare` and `explain`: questions about a plan, which build its model again but search nothing, or little."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autopar.cli_options import echo, stages
from autopar.cli_origin import AgainOption, HardwareAgainOption, PlanArgument, again
from autopar.cli_plan import one_plan, save
from autopar.errors import InputError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from autopar import Plan
    from autopar.planning.question import Question

Answer = tuple[Sequence[Any], "list[RenderableType]"]
"""What was found, and how it looks."""

JsonOption = Annotated[bool, typer.Option("--json", help="As JSON, with seconds and bytes.")]


def compare(
    path: PlanArgument,
    ways: Annotated[
        str | None, typer.Option("--ways", metavar="NAMES", help="Which of the known ones, as ddp,fsdp,2d; all if left out.")
    ] = None,
    model: AgainOption = None,
    hardware: HardwareAgainOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a plan beside DDP, ZeRO, tensor and sequence parallelism, each with no, selective and full checkpointing."""
    plan = one_plan(path)
    names = known_ways(ways)
    with stages() as stage:
        question = ask(plan, path, stage, model, hardware)
        from autopar.planning.compare import compare as beside

        found = beside(question, names)
    if as_json:
        echo_json(found)
    else:
        echo(found)


def explain(
    path: PlanArgument,
    asked: Annotated[
        str | None,
        typer.Argument(metavar="[MODULE or OP]", help='A unit\'s name, a module as "mlp.up_proj", op=linear, kind=norm.'),
    ] = None,
    why_not: Annotated[
        str | None,
        typer.Option(
            "--why-not", metavar="WISH", help='Plan again with it, as "mlp.up_proj: tensor=gpu"; exit 1 if impossible.'
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All strategies or costs, not only the first 12.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="With --why-not: a file for the plan found, as other.json.")
    ] = None,
    model: AgainOption = None,
    hardware: HardwareAgainOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say why a plan is so: what each other strategy would cost, what forbids it, and where the time goes."""
    if asked is not None and why_not is not None:
        raise InputError("ask for a module or --why-not, one at a time")
    if output is not None and why_not is None:
        raise InputError(f"-o {output} is for the plan that --why-not finds")
    plan = one_plan(path)
    with stages() as stage:
        question = ask(plan, path, stage, model, hardware)
        if why_not is not None:
            return say_why_not(question, why_not, output, as_json)
        found, parts = units(question, asked, everything) if asked is not None else dearest(question, everything)
    if as_json:
        echo_json(found)
    else:
        from autopar.render import print_all

        print_all(parts)


def units(question: Question, asked: str, everything: bool) -> Answer:
    from autopar.planning.explain import explain
    from autopar.render_question import explained_renderables

    found = explain(question, asked)
    return found, explained_renderables(found, everything)


def dearest(question: Question, everything: bool) -> Answer:
    from autopar.planning.costs import costs
    from autopar.planning.waits import waits
    from autopar.render_question import clock_lines, costs_renderables

    found = costs(question)
    return found, [*costs_renderables(question.plan, found, everything), *clock_lines(question, waits(question))]


def say_why_not(question: Question, wish: str, output: Path | None, as_json: bool) -> None:
    """Exit 1 if there is no such plan."""
    from autopar.plan_diff import changes
    from autopar.planning.explain import why_not

    answer = why_not(question, wish)
    other = answer.plan
    if as_json:
        figures = {} if other is None else {"step_time_s": other.step_time_s, "peak_bytes": other.peak_bytes}
        echo_json(
            {"pin": answer.pin, "reason": answer.reason, **figures, "changes": changes(answer.before, other) if other else None}
        )
    else:
        echo(answer)
    if other is None:
        raise typer.Exit(1)
    if output is not None:
        save(other, output)
        typer.echo(f"wrote {output}", err=True)


def ask(plan: Plan, path: Path, stage: Callable[[str], None], model: str | None, hardware: str | None) -> Question:
    """The plan with its program; raises InputError, PlanError."""
    made = again(plan, path, stage, model, hardware)
    from autopar.planning.question import ask as with_program

    return with_program(made.loaded.model, plan, made.loaded.args, made.loaded.kwargs, made.hardware, stage)


def known_ways(text: str | None) -> tuple[str, ...]:
    """Raises InputError for one that is not known."""
    from autopar.solver.baselines import BASELINES

    names = tuple(BASELINES) if text is None else tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in BASELINES:
            raise InputError(f"--ways: {name!r} is none of {', '.join(BASELINES)}")
    return names


def echo_json(found: Any) -> None:
    import json

    from pydantic import TypeAdapter

    typer.echo(json.dumps(TypeAdapter(Any).dump_python(found, mode="json"), indent=1))
