"""Frames of pictures that are as wide as the page: shapes are SVG that is stretched, words are HTML, which is not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from autopar.report.html import Content, Markup, tag
from autopar.report.scale import percent, ticks
from autopar.seconds import human_s

SIDE = 1000
"""Shapes are drawn on a square of this side, and stretched."""


def frame(
    shapes: Iterable[Markup],
    over: Iterable[Markup],
    *,
    y: Sequence[tuple[float, str]],
    x: Sequence[tuple[float, str]],
    label: str,
    below: Content = None,
    class_: str = "plot",
    **attributes: Any,
) -> Markup:
    """`shapes` in SVG, `over` in HTML at per cents of the picture; ticks are (per cent from the left, or from below, text).
    `below`: a strip between the picture and the words of its axis."""
    grid = [tag("line", x1=0, x2=SIDE, y1=at_y(p), y2=at_y(p), class_="grid") for p, _ in y]
    svg = tag("svg", grid, shapes, viewBox=f"0 0 {SIDE} {SIDE}", preserveAspectRatio="none", role="img", aria_label=label)
    return tag(
        "div",
        tag("div", (tag("span", text, style=f"bottom:{p}%") for p, text in y), class_="yticks", aria_hidden="true"),
        tag("div", svg, over, class_="canvas"),
        tag("div", below, class_="below"),
        tag("div", (tag("span", text, style=f"left:{p}%") for p, text in x), class_="xticks", aria_hidden="true"),
        class_=class_,
        **attributes,
    )


def at_y(per_cent: float) -> float:
    """From below to from above."""
    return round(SIDE * (1 - per_cent / 100), 1)


def time_ticks(end_s: float, start_s: float = 0.0) -> list[tuple[float, str]]:
    """Round times from the start of a window, in per cent of it; none so near its end that its words would stand out."""
    whole = end_s - start_s
    return [(place, human_s(s) if s else "0") for s in ticks(whole) if (place := percent(s, whole)) < 96]


def over(text: Content, class_: str, *, left: float, bottom: float, **attributes: Any) -> Markup:
    """Something in HTML at a place of the picture."""
    return tag("span", text, class_=class_, style=f"left:{left}%;bottom:{bottom}%", **attributes)
