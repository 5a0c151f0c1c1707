"""What values look like on a terminal and in a notebook: they ask for it here, and how to draw them is registered elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from functools import singledispatch
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

VIEWS = "autopar.views"
"""Where all are registered. Loaded when something is first looked at: drawing stands above all that is drawn."""

HTML_COLUMNS = 140


@singledispatch
def renderables(value: Any) -> list[RenderableType]:
    """The parts of a value, for rich; raises TypeError where nobody said how it looks."""
    raise TypeError(f"a {type(value).__name__} has no tables")


class Shown:
    """`rich.print(value)` prints its tables, and a notebook shows them."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        import_module(VIEWS)
        yield from renderables(self)

    def _repr_html_(self) -> str:
        """The same tables as HTML with the styles inside, for notebooks."""
        import io

        from rich.console import Console

        console = Console(file=io.StringIO(), record=True, width=HTML_COLUMNS, force_jupyter=False)
        console.print(self)
        return console.export_html(inline_styles=True, code_format=HTML)


HTML = '<pre style="white-space:pre;overflow-x:auto;line-height:normal;font-family:monospace">{code}</pre>'
