"""A sweep as a picture: samples per second against the budget, a line per mesh, a panel per hardware, batch and sequence.

Where there is one budget, the meshes are side by side instead. Crosses at the bottom are settings without a plan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autopar.bytes import human
from autopar.planning.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Panel = tuple[str, int | None, int | None]
COLORS = ("#4c5f7a", "#b98a4a", "#6aa784", "#cf6f5e", "#8fa6c4", "#7d6a9c", "#444444", "#e0b36a")
ACROSS = 4
"""Panels beside each other, at most."""

ASIDE = 0.05
"""Between meshes at the same budget, so that none is behind another; of the distance of two budgets."""


def plot_sweep(runs: Sequence[Run], path: Path) -> None:
    """Write the picture; its name's ending says which kind."""
    from matplotlib.figure import Figure

    panels = panels_of(runs)
    across = min(len(panels), ACROSS)
    down = math.ceil(len(panels) / across)
    figure = Figure(figsize=(max(4.2 * across, 6), 3.6 * down), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharex=True)
    flat = [axes for row in grid for axes in row]
    for number, (axes, (panel, own)) in enumerate(zip(flat, panels.items(), strict=False)):
        draw(axes, own, budgets_of(runs), meshes_of(runs))
        axes.set_ylim(0, 1.08 * highest(runs, panel[0]))
        if number % across == 0:
            axes.set_ylabel("samples/s, predicted" if has_rates(runs) else "steps/s, predicted")
        axes.set_title(name_of(panel), loc="left", fontsize=10, fontweight="bold")
    for axes in flat[len(panels) :]:
        axes.set_visible(False)
    if len(budgets_of(runs)) > 1:
        meshes = meshes_of(runs)
        handles = [flat[0].plot([], [], "o-", color=color(meshes, mesh), label=mesh)[0] for mesh in meshes]
        figure.legend(handles=handles, title="mesh", frameon=False, loc="outside right upper")
    figure.suptitle(runs[0].setting.model, x=0.01, ha="left", fontweight="bold")
    figure.savefig(path, dpi=150)


def panels_of(runs: Sequence[Run]) -> dict[Panel, list[Run]]:
    found: dict[Panel, list[Run]] = {}
    for run in runs:
        found.setdefault((run.setting.hardware, run.setting.batch, run.setting.seq), []).append(run)
    return found


def name_of(panel: Panel) -> str:
    hardware, batch, seq = panel
    return ", ".join([hardware, *(f"{name} {size}" for name, size in (("batch", batch), ("seq", seq)) if size is not None)])


def meshes_of(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(run.setting.mesh for run in runs))


def budgets_of(runs: Sequence[Run]) -> list[float]:
    """Smallest first; infinite where there is no limit."""
    return sorted({budget(run) for run in runs})


def budget(run: Run) -> float:
    return math.inf if run.setting.memory_bytes is None else run.setting.memory_bytes


def color(meshes: Sequence[str], mesh: str) -> str:
    return COLORS[meshes.index(mesh) % len(COLORS)]


def draw(axes: Axes, runs: Sequence[Run], budgets: Sequence[float], meshes: Sequence[str]) -> None:
    """One panel: positions are places in the list of budgets, or of meshes where there is one budget."""
    if len(budgets) > 1:
        for mesh in meshes:
            own = sorted((run for run in runs if run.setting.mesh == mesh), key=budget)
            aside = ASIDE * (meshes.index(mesh) - (len(meshes) - 1) / 2)
            series(axes, own, [budgets.index(budget(run)) + aside for run in own], color(meshes, mesh), "o-")
        ticks(axes, ["no limit" if math.isinf(size) else human(size) for size in budgets], "memory per device")
    else:
        for mesh in meshes:
            own = [run for run in runs if run.setting.mesh == mesh]
            series(axes, own, [meshes.index(mesh)] * len(own), color(meshes, mesh), "o")
        ticks(axes, meshes, "mesh")
    axes.spines[["top", "right"]].set_visible(False)


def series(axes: Axes, runs: Sequence[Run], places: Sequence[float], shade: str, marker: str) -> None:
    pairs = list(zip(places, runs, strict=True))
    found = [(x, y) for x, run in pairs if (y := rate(run)) is not None]
    without = [(x, 0.0) for x, run in pairs if rate(run) is None]
    for points, shape in ((found, marker), (without, "x")):
        if points:
            axes.plot(*zip(*points, strict=True), shape, color=shade, markersize=6, linewidth=1.5, clip_on=False)


def rate(run: Run) -> float | None:
    """Samples per second, or steps where the inputs have no batch."""
    if run.samples_per_s is not None:
        return run.samples_per_s
    return 1 / run.step_time_s if run.step_time_s else None


def highest(runs: Sequence[Run], hardware: str) -> float:
    """Panels of one hardware have one scale: another one may be a thousand times as fast."""
    return max((found for run in runs if run.setting.hardware == hardware and (found := rate(run)) is not None), default=1.0)


def has_rates(runs: Sequence[Run]) -> bool:
    return any(run.samples_per_s is not None for run in runs) or all(run.step_time_s is None for run in runs)


def ticks(axes: Axes, labels: Sequence[str], what: str) -> None:
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlim(-0.4, len(labels) - 0.6)
    axes.set_xlabel(what)
