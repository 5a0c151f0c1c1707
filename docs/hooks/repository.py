"""Links from pages to files of the repository: each such file becomes a page of the site.

On disk a page links to `../examples/train.py`; on the site that file is a page of its own below `repository/`, and so is what
such a page links to in its turn. Pages keep the links that work on disk, and the site needs no address of a repository.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)(?=[)#])")
CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
"""Splits a page into text, code, text, ...: what looks like a link in code is none."""
FOLDER = "repository"
"""Where files that are no pages of `docs/` lie on the site."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every file that a page, or one of these, links to."""
    from mkdocs.structure.files import File

    root, docs = Path(config.config_file_path).parent, Path(config.docs_dir)
    open_ = [docs / file.src_uri for file in files if file.src_uri.endswith(".md")]
    seen = set(open_)
    while open_:
        page = open_.pop()
        for path in sorted(linked(page, root)):
            if path not in seen and path.is_file() and not path.is_relative_to(docs):
                seen.add(path)
                open_ += [path] if path.suffix == ".md" else []
                files.append(File.generated(config, site_path(path, root, docs), content=as_page(path, root)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at where things lie on the site."""
    root, docs = Path(config.config_file_path).parent, Path(config.docs_dir)
    here = page.file.src_uri
    source = root / here.removeprefix(f"{FOLDER}/") if here.startswith(f"{FOLDER}/") else docs / here

    def moved(match: re.Match[str]) -> str:
        path = Path(os.path.normpath(source.parent / match[1]))
        if not path.is_file() or path == docs or not path.is_relative_to(root):
            return match[1]  # mkdocs complains about those that lead nowhere
        return os.path.relpath(site_path(path, root, docs), os.path.dirname(here) or ".")

    return "".join(part if i % 2 else LINK.sub(moved, part) for i, part in enumerate(CODE.split(markdown)))


def linked(page: Path, root: Path) -> Iterator[Path]:
    """Files of the repository that a page links to."""
    if page.is_file():
        for match in LINK.finditer(CODE.sub("", page.read_text())):
            path = Path(os.path.normpath(page.parent / match[1]))
            if path.is_relative_to(root):
                yield path


def site_path(path: Path, root: Path, docs: Path) -> str:
    """Of a file, below the root of the site's sources."""
    if path.is_relative_to(docs):
        return path.relative_to(docs).as_posix()
    name = f"{FOLDER}/{path.relative_to(root).as_posix()}"
    return name if path.suffix == ".md" else f"{name}.md"


def as_page(path: Path, root: Path) -> str:
    if path.suffix == ".md":
        return path.read_text()
    language = {".py": "python", ".json": "json", ".yml": "yaml", ".toml": "toml"}.get(path.suffix, "text")
    return f"# {path.relative_to(root).as_posix()}\n\n````{language}\n{path.read_text().rstrip()}\n````\n"
