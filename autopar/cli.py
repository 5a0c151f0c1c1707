"""The command line. Imports of torch wait until a command needs them, so that help answers at once.

Every error that a user can mend is one message on stderr and exit code 2; 1 means that a comparison failed.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from autopar.cli_hardware import hardware_app
from autopar.cli_plan import diff, plan, show
from autopar.cli_profile import profile
from autopar.cli_question import compare, explain
from autopar.cli_report import report
from autopar.cli_sweep import sweep
from autopar.cli_verify import verify
from autopar.errors import AutoparError

WRONG, INTERRUPTED, UNREAD = 2, 130, 141
"""Exit codes, the last two as shells have them for signals. UNREAD: nobody reads the output any more, as after `head`."""


class Commands(TyperGroup):
    """Turns errors that a user can mend into one message."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except AutoparError as error:
            typer.secho("error: ", fg=None if os.environ.get("NO_COLOR") else "red", bold=True, err=True, nl=False)
            typer.echo(str(error), err=True)
            raise typer.Exit(WRONG) from error
        except KeyboardInterrupt as error:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from error
        except BrokenPipeError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the end
            raise typer.Exit(UNREAD) from error


HELP = {"no_args_is_help": True, "context_settings": {"help_option_names": ["-h", "--help"]}, "rich_markup_mode": None}
app = typer.Typer(cls=Commands, pretty_exceptions_enable=False, **HELP)  # type: ignore[arg-type]
app.add_typer(hardware_app, name="hardware")


def version(asked: bool) -> None:
    if asked:
        import autopar

        typer.echo(f"autopar {autopar.__version__}")
        raise typer.Exit


@app.callback()
def common(
    show_version: Annotated[bool, typer.Option("--version", callback=version, is_eager=True, help="Say it and exit.")] = False,
) -> None:
    """Plan the parallel training of an unmodified PyTorch model: sharding, collectives and recomputation in one ILP."""


app.command("plan")(plan)
app.command("show")(show)
app.command("diff")(diff)
app.command("compare")(compare)
app.command("explain")(explain)
app.command("report")(report)
app.command("sweep")(sweep)
app.command("verify")(verify)
app.command("profile")(profile)


@app.command()
def rules(
    name: Annotated[str | None, typer.Argument(metavar="[OP]", help="As aten.linear; all rows if left out.")] = None,
    mesh: Annotated[str, typer.Option("--mesh", help="Whose strategies to show, as 2x4.")] = "2x2",
) -> None:
    """The rule of an op: its factors, its strategies on a mesh and their conversions; or all rows of the table."""
    import autopar

    typer.echo(autopar.ops.explain(name, mesh))


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}, add_help_option=False
)
def demo(ctx: typer.Context) -> None:
    """Plan and train a small GPT-2 on local processes, and compare with the serial run (`autopar demo --help`)."""
    from autopar.demo import main as run_demo

    if code := run_demo(list(ctx.args)):
        raise typer.Exit(code)


def main() -> None:
    """Entry point of the `autopar` script."""
    app()


if __name__ == "__main__":
    main()
