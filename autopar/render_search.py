"""What a search over settings tried, and fronts of plans, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from autopar.bytes import human
from autopar.ir.pareto import Pareto
from autopar.ir.plan import Plan, TriedSetting

if TYPE_CHECKING:
    from rich.console import RenderableType

REASON_COLUMNS = 70


def tried_table(plan: Plan) -> Table:
    """Every setting with its bound, its plan, and what came of it; the chosen one first, then by what is known of them."""
    from autopar.render import new_table

    batches = any(t.micro_batches > 1 for t in plan.tried)
    columns = ["mesh", *(["micro-batches"] if batches else []), "at least", "step time", "peak", "outcome"]
    table = new_table(f"settings tried ({len(plan.tried)})", *columns)
    for column in table.columns[1:-1]:
        column.justify = "right"
    table.columns[-1].overflow = "fold"
    for tried in sorted(plan.tried, key=order):
        cells = [str(tried.mesh), *([str(tried.micro_batches)] if batches else [])]
        cells += [seconds(tried.lower_bound_s), seconds(tried.step_time_s)]
        cells += [human(tried.peak_bytes) if tried.peak_bytes is not None else "–"]
        table.add_row(*cells, outcome(tried), style="bold" if tried.outcome == "chosen" else None)
    return table


def other_sizes_table(plan: Plan) -> Table:
    """Batches of other sizes, planned around the parameters as they rest."""
    from autopar.render import new_table

    names = list(dict.fromkeys(name for other in plan.other_sizes for name in other.sizes))
    table = new_table("other sizes, with parameters resting as they do here", *names, "step time", "peak")
    for column in table.columns:
        column.justify = "right"
    table.add_column("", overflow="fold")
    for other in plan.other_sizes:
        peak = "–" if other.peak_bytes is None else human(other.peak_bytes)
        cells = (*(str(other.sizes.get(name, "")) for name in names), seconds(other.step_time_s), peak)
        table.add_row(*cells, Text(shortened(other.reason)), style="dim" if other.reason else None)
    return table


def order(tried: TriedSetting) -> tuple[bool, float, float]:
    unknown = float("inf")
    return tried.outcome != "chosen", tried.step_time_s or unknown, tried.lower_bound_s or unknown


def outcome(tried: TriedSetting) -> str:
    return f"{tried.outcome}: {shortened(tried.reason)}" if tried.reason else tried.outcome


def shortened(reason: str) -> str:
    return reason if len(reason) <= REASON_COLUMNS else reason[: REASON_COLUMNS - 1] + "…"


def seconds(value: float | None) -> str:
    from autopar.seconds import human_s

    return "–" if value is None else human_s(value)


def front_table(front: Pareto) -> Table:
    """One row per plan, the smallest first, with what the memory of each buys against the one before."""
    from autopar.render import new_table

    first = front.plans[0]
    title = f"{first.model} on {first.mesh}: {len(front.plans)} plans"
    table = new_table(title, "plan", "peak", "step time", "against the smallest", "redone", "gap")
    for column in table.columns:
        column.justify = "right"
    for number, plan in enumerate(front.plans, 1):
        work = plan.figures.forward_flops + plan.figures.backward_flops
        redone = plan.figures.redone_flops / work if work else 0.0
        gain = plan.step_time_s / first.step_time_s - 1
        share = f"{gain:+.1%}" if number > 1 else "–"
        table.add_row(str(number), human(plan.peak_bytes), seconds(plan.step_time_s), share, f"{redone:.1%}", f"{plan.gap:.2%}")
    return table


def front_renderables(front: Pareto) -> list[RenderableType]:
    """The table, and what else there is to know."""
    found: list[RenderableType] = [front_table(front)]
    if not front.complete:
        found.append(Text("Smaller budgets may have plans too: that the first one is the smallest is not proven."))
    return [*found, *(Text(f"note: {note}") for note in front.notes)]
