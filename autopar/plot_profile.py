"""The memory of a training step as a picture: what rests below, what comes and goes above it, event by event."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autopar.bytes import human
from autopar.profile_view import View
from autopar.profiler.memory import KINDS, STEP, MemoryAt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LAYERS = (
    ("parameters", "parameters", "#4c5f7a"),
    ("compute copies", "copies to compute with", "#6f86a6"),
    ("buffers and inputs", "buffers and inputs", "#b9c4d2"),
    ("optimizer", "optimizer state", "#8fa6c4"),
    ("gradient buffers", "gradient buffers", "#b98a4a"),
    ("gradients", "gradients", "#e0b36a"),
    ("activations", "activations", "#6aa784"),
    ("temporaries", "temporaries", "#cf6f5e"),
)
"""From the bottom: key, label and colour of what is stacked."""

STEP_SHARE = 0.06
"""Of the width, for the optimizer's step, which is no sequence of events here."""

INVISIBLE = 2e-3
"""Layers that are nowhere a larger share of the peak are left out."""

FAR = 2.5
"""A budget that is more times the peak than this would squeeze the picture: it is named in the title instead."""


def plot_memory(view: View, path: Path) -> None:
    """Write the picture; its name's ending says which kind."""
    from matplotlib.figure import Figure

    memory = view.memory
    unit, name = scale(max(memory.peak_bytes, 1))
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    axes = figure.add_subplot()
    x, layers = stacks(memory)
    draw_layers(axes, view, x, {key: values / unit for key, values in layers.items()}, unit)
    top = draw_budget(axes, view, unit)
    axes.set_xlim(0, x[-1])
    axes.set_ylim(0, top * 1.12)
    draw_phases(axes, memory, x[-1])
    draw_peak(axes, memory, unit, x)
    axes.set_ylabel(f"memory ({name})")
    axes.set_xlabel("changes of memory, in order")
    axes.set_title(title(view), loc="left", fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def stacks(memory: MemoryAt) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Positions of the events, the end of the optimizer's step last, and the bytes of each layer at them."""
    count = len(memory.levels)
    x = np.append(np.arange(count), [count, count * (1 + STEP_SHARE) + 1])
    constant = dict(memory.split)
    constant["buffers and inputs"] = constant.pop("buffers") + constant.pop("inputs")
    layers = {key: np.full(len(x), size, dtype=float) for key, size in constant.items() if key not in KINDS}
    for kind in KINDS:
        course = memory.course[kind]
        layers[kind] = np.append(np.array(course, dtype=float), [course[-1]] * 2)
    layers["temporaries"][-2:] += memory.step_bytes
    return x, layers


def draw_layers(axes: Axes, view: View, x: np.ndarray, layers: dict[str, np.ndarray], unit: float) -> None:
    """What is the same all the time carries its size in the legend."""
    base = np.zeros(len(x))
    for key, label, color in LAYERS:
        values = layers[key]
        if values.max() < INVISIBLE * view.memory.peak_bytes / unit:
            continue
        size = view.memory.split.get(key)
        text = f"{label}, {human(size)}" if size and key not in KINDS else label
        axes.fill_between(x, base, base + values, step="post", color=color, linewidth=0, label=text)
        base = base + values
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)


def draw_budget(axes: Axes, view: View, unit: float) -> float:
    """The line, and the height that the picture needs."""
    peak, budget = view.memory.peak_bytes / unit, view.budget_bytes
    if budget is None or budget / unit > FAR * peak:
        return peak
    axes.axhline(budget / unit, color="#b02a2a", linestyle="--", linewidth=1.2)
    axes.annotate(
        f"budget {human(budget)}",
        (0, budget / unit),
        xytext=(5, 5),
        textcoords="offset points",
        color="#b02a2a",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
    )
    return max(peak, budget / unit)


def draw_phases(axes: Axes, memory: MemoryAt, end: float) -> None:
    """Named above the picture, divided by lines."""
    borders = (0, memory.forward_end, len(memory.levels), end)
    for start, stop, name in zip(borders, borders[1:], ("forward", "backward", "step"), strict=False):
        axes.axvspan(start, stop, color="#000000", alpha=0.05 if name == "backward" else 0.0, linewidth=0, zorder=0)
        axes.text((start + stop) / 2, 0.985, name, transform=axes.get_xaxis_transform(), ha="center", va="top", color="#444444")
        if start:
            axes.axvline(start, color="#444444", linewidth=0.6, linestyle=":")


def draw_peak(axes: Axes, memory: MemoryAt, unit: float, x: np.ndarray) -> None:
    at = float(x[-2]) if memory.phase == STEP else float(memory.peak_index)
    level = memory.peak_bytes / unit
    axes.plot([at], [level], marker="v", color="black", markersize=6, clip_on=False)
    left = at > 0.7 * x[-1]
    axes.annotate(
        f"peak {human(memory.peak_bytes)}",
        (at, level),
        xytext=(-8 if left else 8, 2),
        textcoords="offset points",
        ha="right" if left else "left",
        fontweight="bold",
    )


def title(view: View) -> str:
    text = f"{view.title}: memory of one training step"
    far = view.budget_bytes is not None and view.budget_bytes > FAR * view.memory.peak_bytes
    return f"{text} (budget {human(view.budget_bytes or 0)})" if far else text


def scale(largest: float) -> tuple[float, str]:
    """
    >>> scale(3 * 2**30), scale(5 * 2**20)
    ((1073741824.0, 'GiB'), (1048576.0, 'MiB'))
    """
    for power, name in ((40, "TiB"), (30, "GiB"), (20, "MiB")):
        if largest >= 2 ** (power if power < 40 else 41):
            return float(2**power), name
    return 1024.0, "KiB"
