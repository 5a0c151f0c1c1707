"""What two plans say differently, as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from autopar.bytes import human
from autopar.plan_diff import PARTS, Change, Value
from autopar.render import human_flops, new_table
from autopar.seconds import human_s

if TYPE_CHECKING:
    from rich.console import RenderableType

MISSING = "–"


def changes_renderables(found: Sequence[Change], names: tuple[str, str]) -> list[RenderableType]:
    """A table for each part of the plans that differs; `names` are what the plans are called."""
    if not found:
        return [Text("the plans decide and predict the same")]
    return [part for name in PARTS for part in part_renderables([c for c in found if c.part == name], name, names)]


def part_renderables(found: Sequence[Change], part: str, names: tuple[str, str]) -> Iterator[RenderableType]:
    if not found:
        return
    numbers = any(change.unit for change in found)
    table = new_table(part, ("", {"overflow": "fold"}), *((name, {"overflow": "fold"}) for name in names))
    if numbers:
        table.add_column("change", justify="right")
    for change in found:
        name = change.name if change.times == 1 else f"{change.name} × {change.times}"
        cells = (Text(text(value, change.unit)) for value in (change.before, change.after))
        table.add_row(Text(name), *cells, *([share(change)] if numbers else []))
    yield table
    yield Text()


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
