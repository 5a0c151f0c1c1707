"""What `verify` found, as a table: the worst difference of each kind of tensor, and the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from autopar.render import new_table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from autopar.verification import Report

WORST = 5
"""Tensors that are named where runs differ."""


def report_renderables(report: Report) -> list[RenderableType]:
    """The worst tensors are named if anything differs."""
    title = f"{report.plan.model} on {report.plan.mesh} against one device, {report.steps} steps"
    table = new_table(title, ("tensors", {"overflow": "fold"}), "compared", "largest relative error")
    for kind in dict.fromkeys(t.kind for t in report.tensors):
        errors = [t.relative_error for t in report.tensors if t.kind == kind]
        table.add_row(kind, str(len(errors)), f"{max(errors):.2e}")
    if not report.ok:
        table.add_section()
        for t in sorted(report.tensors, key=lambda t: -t.relative_error)[:WORST]:
            table.add_row(f"{t.name} ({t.kind})", "", f"{t.relative_error:.2e}")
    verdict = "equal" if report.ok else "NOT equal"
    return [table, Text(f"{verdict}: largest relative error {report.max_relative_error:.2e}")]
