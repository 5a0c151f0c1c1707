"""The page: one HTML file with everything in it, which asks nothing of any network."""

from __future__ import annotations

from importlib import resources

from autopar.report.assumptions import assumptions_panel
from autopar.report.evidence import Evidence
from autopar.report.front_panel import front_panel
from autopar.report.html import Markup, tag
from autopar.report.memory_panel import memory_panel
from autopar.report.mesh import mesh_panel
from autopar.report.model import model_panel
from autopar.report.time_panel import time_panel
from autopar.report.verdict import verdict
from autopar.report.ways_panel import ways_panel

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Browsers refuse whatever the page might ask for."""

PANELS = {
    "mesh": ("Mesh", mesh_panel),
    "memory": ("Memory", memory_panel),
    "time": ("Time", time_panel),
    "model": ("Model", model_panel),
    "ways": ("Known ways", ways_panel),
    "front": ("Time against memory", front_panel),
    "assumptions": ("Assumptions", assumptions_panel),
}
"""By the name of their place on the page: their title in its list of contents, and what makes them."""


def page(evidence: Evidence) -> str:
    """The text of the file."""
    made = {name: found for name, (_, make) in PANELS.items() if (found := make(evidence)) is not None}
    contents = tag("nav", (tag("a", PANELS[name][0], href=f"#{name}") for name in made), aria_label="contents")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{evidence.plan.model} on {evidence.plan.mesh} {evidence.plan.hardware}: autopar report"),
        tag("style", asset("style.css")),
    )
    tip = tag("div", "", id="tip", role="status", hidden=True)
    body = tag("body", verdict(evidence, contents), tag("main", made.values()), tip, tag("script", asset("script.js")))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def asset(name: str) -> Markup:
    return Markup(resources.files("autopar.report").joinpath(name).read_text(encoding="utf-8"))
