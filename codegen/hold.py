"""What a plan predicts, held against what its graphs are counted to: a figure that does not belong to it is refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from autopar.bytes import human
from autopar.codegen.accept import refused
from autopar.codegen.emit import Emitted
from autopar.codegen.measure import Counted, measure
from autopar.ir.plan import Plan, PlannedCollective

Wrong = Iterator[tuple[str, str]]


def hold(emitted: Emitted, *, peak: bool = True) -> Counted:
    """The figures of the emitted graphs; raises PlanError, naming the field, where the plan says others.

    FLOPs and collectives are compared exactly, and so is the peak. `peak=False` where graphs were emitted for other kernels
    than those that the plan was counted with (another device type): these may need other scratch.
    """
    counted = measure(emitted)
    for field, reason in (*idle(emitted), *differences(emitted.plan, counted, peak=peak)):
        raise refused(field, reason)
    return counted


def idle(emitted: Emitted) -> Wrong:
    """What the plan says runs again in backward, although nothing there needs it."""
    for name, region in emitted.regions.items():
        for i, (keep, halves) in enumerate(zip(emitted.plan.regions[name].classes, region.classes, strict=True)):
            for unit in keep.redone:
                if unit not in halves.redone:
                    yield f"regions.{name}.classes.{i}.redone", f"nothing in backward needs {unit} again"
            for c in keep.reconverted:
                if (c.tensor, c.before, c.after) not in halves.reconverted:
                    moves = f"{c.tensor} [{c.before}] -> [{c.after}]"
                    yield f"regions.{name}.classes.{i}.reconverted", f"nothing in backward needs {moves} again"


def differences(plan: Plan, counted: Counted, *, peak: bool = True) -> Wrong:
    """Every figure of the plan that is not what was counted."""
    figures = plan.figures
    for what in ("forward_flops", "backward_flops", "redone_flops"):
        if (said := getattr(figures, what)) != (there := getattr(counted, what)):
            yield f"figures.{what}", f"{said}, but its graphs do {there}"
    yield from other_collectives(figures.collectives, counted.collectives)
    if peak and plan.peak_bytes != counted.peak_bytes:
        yield "peak_bytes", f"{plan.peak_bytes:.0f}, but its graphs need {counted.peak_bytes} ({counted.peak_where})"
    if peak and plan.budget_bytes is not None and counted.peak_bytes > plan.budget_bytes:
        need = f"{human(counted.peak_bytes)} ({counted.peak_where})"
        yield "budget_bytes", f"{human(plan.budget_bytes)}, but its graphs need {need}"


def other_collectives(planned: Iterable[PlannedCollective], counted: Iterable[PlannedCollective]) -> Wrong:
    def by_name(found: Iterable[PlannedCollective]) -> dict[tuple[str, str, str], tuple[int, int]]:
        return {(c.kind, c.axis, c.phase): (c.count, c.bytes) for c in found}

    said, there = by_name(planned), by_name(counted)
    for kind, axis, phase in sorted({*said, *there}):
        (count, size), (real, real_size) = (found.get((kind, axis, phase), (0, 0)) for found in (said, there))
        if (count, size) != (real, real_size):
            yield (
                "figures.collectives",
                f"{count} {kind} on {axis} in {phase} of {size} bytes in all, but its graphs have {real} of {real_size}",
            )
