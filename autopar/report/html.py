"""HTML as text, escaped where it is made: names of models and nodes are whatever people called them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from typing import Any, TypeAlias


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Content: TypeAlias = "str | int | float | Iterable[Content] | None"
VOID = frozenset({"meta", "br"})
"""Tags that have no content here."""


def html(content: Content) -> Markup:
    """Any content as HTML: text is escaped, markup stays, None is nothing, of several one after the other.

    >>> html(["a < b", None, tag("b", "&")])
    'a &lt; b<b>&amp;</b>'
    """
    if content is None:
        return Markup("")
    if isinstance(content, Markup):
        return content
    if isinstance(content, str | int | float):
        return Markup(escape(str(content)))
    return Markup("".join(map(html, content)))


def tag(name: str, /, *content: Content, **attributes: Any) -> Markup:
    """An element; of attributes, `_` stands for `-`, a last one is dropped, None and False leave it out, True has no value.

    >>> tag("a", "x", class_="k", data_n=1, hidden=True)
    '<a class="k" data-n="1" hidden>x</a>'
    """
    opened = f"<{name}{''.join(attribute(*pair) for pair in attributes.items())}>"
    return Markup(opened if name in VOID else f"{opened}{html(content)}</{name}>")


def attribute(name: str, value: Any) -> str:
    key = name.rstrip("_").replace("_", "-") if name not in ("viewBox", "preserveAspectRatio") else name
    if value is None or value is False:
        return ""
    return f" {key}" if value is True else f' {key}="{escape(str(value))}"'


def data(identifier: str, value: Any) -> Markup:
    """JSON for the page's script; nothing in it can end the element."""
    text = json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
    return Markup(f'<script type="application/json" id="{escape(identifier)}">{text}</script>')


def table(
    head: Iterable[Content], rows: Iterable[Iterable[Content]], *, caption: Content = None, class_: str | None = None
) -> Markup:
    """The first cell of each row names it; on narrow pages a table scrolls by itself."""
    names = list(head)
    lines = [tag("tr", tag("th", first, scope="row"), (tag("td", cell) for cell in rest)) for first, *rest in map(list, rows)]
    parts = [tag("caption", caption)] if caption else []
    parts += [tag("thead", tag("tr", (tag("th", name, scope="col") for name in names))), tag("tbody", lines)]
    return tag("div", tag("table", parts, class_=class_), class_="scroll", tabindex=0, role="region", aria_label="table")


def panel(identifier: str, title: str, *content: Content, lead: Content = None) -> Markup:
    """A section of the page with its heading, and a sentence that says what it shows."""
    heading = tag("h2", title, id=f"{identifier}-title")
    return tag(
        "section",
        heading,
        tag("p", lead, class_="lead") if lead else None,
        content,
        id=identifier,
        class_="panel",
        aria_labelledby=f"{identifier}-title",
    )


def absent(what: Content, why: Content, remedy: Content) -> Markup:
    """In the place of what is not there: why, and the command that would have it."""
    return tag("div", tag("p", what, " ", why), tag("p", tag("code", remedy)), class_="absent", role="note")
