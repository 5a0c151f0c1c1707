"""What all tables are printed with: a console of the terminal's width, and one look."""

from __future__ import annotations

import errno
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 140
"""Columns where the output is a file or a pipe."""


class Output(Console):
    """Where the reader of the output has gone away, that is the error that it is, for who called to handle."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, "the reader of the output has gone away")


class Folding(Table):
    """Breaks what is too long for a column, where rich would cut it off."""

    def add_column(self, *header: Any, **options: Any) -> None:
        super().add_column(*header, **{"overflow": "fold"} | options)


def new_console() -> Console:
    """Of the terminal's width, or plain and 140 columns wide where the output is none."""
    console = Output()
    return console if console.is_terminal else Output(width=PLAIN_WIDTH)


def new_table(title: str, *columns: str | tuple[str, dict[str, str]]) -> Table:
    table = Folding(
        title=Text(title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in columns:
        name, options = (column, {}) if isinstance(column, str) else column
        table.add_column(name, **options)
    return table


def table_grid() -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    return grid
