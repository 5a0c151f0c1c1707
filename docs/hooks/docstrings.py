"""What docstrings of this code have beyond Markdown: examples behind `>>>`, and pages of `docs/` by their name."""

from __future__ import annotations

import re
from typing import Any

import griffe

PROMPT = re.compile(r"(?:^[ \t]*(?:>>>|\.\.\.) .*\n?(?:^(?![ \t]*>>>)[ \t]*\S.*\n?)*)+", re.MULTILINE)
PAGE = re.compile(r"\bdocs/([\w-]+)\.md\b")


class Docstrings(griffe.Extension):
    """Examples become blocks of code, and `docs/planning.md` a link to that page."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = readable(obj.docstring.value)


def readable(text: str) -> str:
    text = PROMPT.sub(lambda match: f"```pycon\n{match[0].replace('>>> # ', '>>> ').rstrip()}\n```\n", text)
    return PAGE.sub(r"[\1](\1.md)", text)
