"""What two plans say differently, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from autopar.bytes import human
from autopar.plan_diff import PARTS, Change, Value
from autopar.render import human_flops, human_s, new_console, new_table

if TYPE_CHECKING:
    from rich.console import Console

MISSING = "–"


def print_changes(found: Sequence[Change], names: tuple[str, str], console: Console | None = None) -> None:
    """A table for each part of the plans that differs; `names` are what the plans are called."""
    console = console or new_console()
    if not found:
        console.print("the plans decide and predict the same")
    for part in PARTS:
        own = [change for change in found if change.part == part]
        if not own:
            continue
        numbers = any(change.unit for change in own)
        table = new_table(part, ("", {"overflow": "fold"}), *((name, {"overflow": "fold"}) for name in names))
        if numbers:
            table.add_column("change", justify="right")
        for change in own:
            name = change.name if change.times == 1 else f"{change.name} × {change.times}"
            cells = (Text(text(value, change.unit)) for value in (change.before, change.after))
            table.add_row(Text(name), *cells, *([share(change)] if numbers else []))
        console.print(table)
        console.print()


def text(value: Value | None, unit: str) -> str:
    if value is None:
        return MISSING
    if isinstance(value, str) or not unit:
        return str(value)
    return {"s": human_s, "bytes": human, "flops": human_flops}[unit](value)


def share(change: Change) -> str:
    """
    >>> share(Change(part="figures", name="step time", before=2.0, after=1.5, unit="s"))
    '-25.0 %'
    """
    before, after = change.before, change.after
    if not isinstance(before, int | float) or not isinstance(after, int | float) or not before:
        return ""
    return f"{100 * (after - before) / abs(before):+.1f} %"
