"""Step time against memory as a picture: a staircase, since a plan is the best for every budget up to the next one's peak.

Budgets that are proven to have no plan are shaded.
"""

from __future__ import annotations

from pathlib import Path

from autopar.bytes import human
from autopar.ir.pareto import Pareto
from autopar.plot_profile import scale

LINE, DOT = "#4c5f7a", "#b98a4a"


def plot_front(front: Pareto, path: Path) -> None:
    """Write the picture; its name's ending says which kind."""
    from matplotlib.figure import Figure

    unit, name = scale(front.plans[-1].peak_bytes)
    peaks = [plan.peak_bytes / unit for plan in front.plans]
    millis = [plan.step_time_s * 1e3 for plan in front.plans]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    room = max(peaks[-1] - peaks[0], 0.05 * peaks[-1])
    axes.step([*peaks, peaks[-1] + 0.15 * room], [*millis, millis[-1]], where="post", color=LINE, linewidth=1.5)
    axes.plot(peaks, millis, "o", color=DOT, markersize=7, clip_on=False)
    for number, (x, y, plan) in enumerate(zip(peaks, millis, front.plans, strict=True), 1):
        axes.annotate(f"{number}: {human(plan.peak_bytes)}", (x, y), xytext=(6, 6), textcoords="offset points", fontsize=9)
    if front.complete:
        axes.axvspan(peaks[0] - 0.1 * room, peaks[0], color="#b02a2a", alpha=0.08, linewidth=0)
    axes.set_xlim(peaks[0] - 0.1 * room, peaks[-1] + 0.15 * room)
    axes.set_xlabel(f"memory per device ({name})")
    axes.set_ylabel("predicted step time (ms)")
    first = front.plans[0]
    axes.set_title(f"{first.model} on {first.mesh}, {first.hardware}", loc="left", fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
