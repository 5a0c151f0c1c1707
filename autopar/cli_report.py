"""`autopar report`: a plan, or one of a front, as one HTML page that needs no network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autopar.cli_options import stages
from autopar.cli_origin import AgainOption, HardwareAgainOption, PlanArgument
from autopar.cli_plan import load_any, one_of, plans_of
from autopar.cli_question import ask
from autopar.errors import AutoparError, InputError

if TYPE_CHECKING:
    from autopar import Pareto, Plan
    from autopar.planning.question import Question
    from autopar.report.evidence import Evidence

OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="The page, as report.html; PLAN with .html at its end if left out."),
]


def report(
    path: PlanArgument,
    output: OutputOption = None,
    point: Annotated[
        int | None, typer.Option(metavar="N", help="Of several plans (--pareto) the Nth, as 2; the fastest if left out.")
    ] = None,
    no_compare: Annotated[
        bool, typer.Option("--no-compare", help="Leave out the comparison with the known ways, which takes longest.")
    ] = False,
    model: AgainOption = None,
    hardware: HardwareAgainOption = None,
) -> None:
    """Write a plan as one HTML page: verdict, mesh, memory and time over a step, every op's placement, known ways."""
    found = load_any(path)
    page_path = output or path.with_suffix(".html")
    check_output(page_path, path)
    number = len(plans_of(found)) if point is None else point
    plan = one_of(found, path, number)
    with stages() as stage:
        evidence = gather(
            Asked(path=path, output=page_path, model=model, hardware=hardware, compare=not no_compare), plan, stage
        )
        stage("writing the page")
        write(with_front(evidence, found, number), page_path)
    typer.echo(f"wrote {page_path}", err=True)


def check_output(output: Path, path: Path) -> None:
    """Raise for a page that cannot be, before anything slow happens."""
    if output.is_dir():
        raise InputError(f"{output} is a folder: give a file for the page, as {output / 'report.html'}")
    if output.resolve() == path.resolve():
        raise InputError(f"-o {output} is the plan itself: give another file for the page, as {path.with_suffix('.html')}")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line said."""

    path: Path
    output: Path
    model: str | None
    hardware: str | None
    compare: bool

    def again(self, model: str | None = None) -> str:
        """The command that would tell more."""
        named = f" --model {model or self.model}" if model or self.model else ""
        device = f" --hardware {self.hardware}" if self.hardware else ""
        return f"autopar report {self.path}{named}{device} -o {self.output}"


def gather(asked: Asked, plan: Plan, stage: Callable[[str], None]) -> Evidence:
    """All that can be found out; what cannot is missing, with its reason. Raises if a model was named that will not do."""
    import autopar
    from autopar.report.evidence import Evidence, inside, known_hardware

    device = known_hardware(asked.hardware or (plan.origin.hardware if plan.origin else plan.hardware), plan.mesh)
    evidence = Evidence(plan=plan, hardware=device, version=autopar.__version__, remedy=asked.again("MODEL"))
    if plan.origin is None and asked.model is None:
        return replace(evidence, missing="The plan does not say how its model is built.")
    try:
        question = ask(plan, asked.path, stage, asked.model, asked.hardware)
        evidence = replace(evidence, inside=inside(question), hardware=question.planner.aims.hardware)
    except AutoparError as error:
        if asked.model is not None or asked.hardware is not None:
            raise
        typer.echo(f"note: the page is made of the plan alone: {error}", err=True)
        return replace(evidence, missing=str(error))
    if not asked.compare:
        return replace(evidence, uncompared="--no-compare was given.", remedy=asked.again())
    return compared(evidence, question)


def compared(evidence: Evidence, question: Question) -> Evidence:
    """With the known ways, if they can be counted."""
    from autopar.planning.compare import compare

    try:
        return replace(evidence, comparison=compare(question))
    except AutoparError as error:
        typer.echo(f"note: the page has no comparison: {error}", err=True)
        return replace(evidence, uncompared=str(error))


def with_front(evidence: Evidence, found: Plan | Pareto, number: int) -> Evidence:
    """With the other plans of the file, if there are any."""
    from autopar import Pareto

    if not isinstance(found, Pareto):
        return evidence
    return replace(evidence, front=found.plans, point=number - 1, front_complete=found.complete)


def write(evidence: Evidence, output: Path) -> None:
    from autopar.ir.document import write_atomically
    from autopar.report.page import page

    try:
        write_atomically(output, page(evidence))
    except OSError as error:
        raise InputError(f"cannot write {output}: {error.strerror}: give another file with -o") from error
