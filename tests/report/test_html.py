"""Text that becomes HTML is escaped, wherever it comes from."""

from __future__ import annotations

import doctest
import json

import pytest

from autopar.report import html as made
from autopar.report import mesh, scale, tree, verdict
from autopar.report.html import Markup, data, html, tag
from autopar.report.page import page
from tests.report.pages import alone, read
from tests.small_plan import DATA, LAYER, STATE, small_plan

EVIL = "</script><img src=x onerror='alert(1)'>\"&"


@pytest.mark.parametrize("module", [made, mesh, scale, tree, verdict], ids=lambda module: module.__name__)
def test_examples_of_docstrings(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted > 0
    assert result.failed == 0


def test_text_and_attributes_are_escaped_and_markup_is_not() -> None:
    assert html(["<", Markup("<b>"), 1.5, None]) == "&lt;<b>1.5"
    assert read(tag("a", EVIL, title=EVIL)).tags == ["a"]
    assert read(tag("a", EVIL, title=EVIL)).of("title") == [EVIL]
    assert tag("rect", x=0, hidden=False, viewBox="0 0 1 1") == '<rect x="0" viewBox="0 0 1 1"></rect>'


def test_json_for_the_script_ends_no_element() -> None:
    text = data("d", {"name": EVIL})
    assert read(text).tags == ["script"]
    assert json.loads(text.partition(">")[2].rpartition("</")[0]) == {"name": EVIL}


def test_names_of_models_nodes_and_notes_are_text() -> None:
    """Everything that a plan takes from its model, with tags in it."""
    layer = LAYER | {"units": {f"{name}{EVIL}": unit for name, unit in LAYER["units"].items()}}
    changes = {
        "model": EVIL,
        "hardware": EVIL,
        "optimizer": EVIL,
        "peak_where": EVIL,
        "notes": [EVIL],
        "state": STATE | {f"h.0.{EVIL}": STATE["wte.weight"]},
        "inputs": {EVIL: DATA["inputs"]["input_ids"]},
        "regions": DATA["regions"] | {"h.*": layer},
        "origin": {"model": EVIL, "hardware": EVIL, "versions": {EVIL: EVIL}},
    }
    clean, found = read(page(alone())), read(page(alone(small_plan(**changes), missing=EVIL, remedy=EVIL)))
    assert "img" not in found.tags
    assert found.of("onerror") == []
    assert found.tags.count("script") == clean.tags.count("script")
    assert EVIL in found.words
