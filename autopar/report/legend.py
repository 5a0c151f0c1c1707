"""Colours by meaning: the same class of the style sheet wherever an axis, a placement or a purpose of memory is shown."""

from __future__ import annotations

from collections.abc import Sequence

from autopar.ir.placement import INVARIANT, PARTIAL, REPLICATE, Placement, State
from autopar.ir.region_view import state_text
from autopar.report.html import Content, Markup, tag

AXIS_COLOURS = 4
"""So many mesh axes have a colour of their own; further ones begin again."""

STATES = {
    REPLICATE: ("replicated", "whole; its gradient is a sum over"),
    INVARIANT: ("invariant", "whole, and its gradient too, on"),
    PARTIAL: ("partial", "a summand; the value is the sum over"),
}


def axis_class(axis: int) -> str:
    return f"ax{axis % AXIS_COLOURS}"


def axis_chip(axis: int, *content: Content) -> Markup:
    return tag("span", *content, class_=f"chip {axis_class(axis)}")


def state_class(state: State, axis: int) -> str:
    return axis_class(axis) if isinstance(state, int) else f"state-{state}"


def state_words(state: State, name: str) -> str:
    """In words: "dim 0 is cut over gpu"."""
    if isinstance(state, int):
        return f"dim {state} is cut over {name}"
    word, meaning = STATES[state]
    return f"{word}: {meaning} {name}"


def placement_chip(placement: Placement, names: Sequence[str]) -> Markup:
    """One cell per mesh axis, in mesh order."""
    cells = [
        tag("span", state_text(state), class_=f"cell {state_class(state, axis)}") for axis, state in enumerate(placement.states)
    ]
    words = "; ".join(state_words(state, name) for state, name in zip(placement.states, names, strict=True))
    return tag("span", cells, class_="placement", title=f"[{placement}] {words}")


def legend(names: Sequence[str]) -> Markup:
    """What the cells of placements mean."""
    shards = [(state_cell(0, axis), f"cut over {name}") for axis, name in enumerate(names)]
    whole = [(state_cell(state, 0), word) for state, (word, _) in STATES.items()]
    entries = [tag("li", cell, " ", word) for cell, word in (*shards, *whole)]
    return tag("ul", entries, class_="legend", aria_label="what placements mean")


def state_cell(state: State, axis: int) -> Markup:
    text = "S(d)" if isinstance(state, int) else state
    return tag("span", tag("span", text, class_=f"cell {state_class(state, axis)}"), class_="placement")


def swatches(entries: Sequence[tuple[str, str]]) -> Markup:
    """(class, words) each with its colour."""
    return tag("ul", (tag("li", tag("span", "", class_=f"swatch {c}"), words) for c, words in entries), class_="legend")
