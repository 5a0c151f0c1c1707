"""README and docs name commands, options, functions, targets and files that exist."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

import autopar
import autopar.errors
import autopar.ops
from autopar.cli import app
from autopar.demo import arguments

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)(?: [^\n]*)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page: Path, language: str) -> list[str]:
    return [text for name, text in BLOCK.findall(page.read_text()) if name == language]


def commands(text: str) -> list[list[str]]:
    """Words of each line that calls autopar."""
    lines = (line.removeprefix("! ") for line in text.splitlines())
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("autopar ")]


def parse(words: list[str]) -> None:
    """Raise what click raises for an unknown command, an unknown option or a missing argument."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    if command.name == "demo":
        arguments(words)
    else:
        command.make_context(command.name, list(words))


@each_page
def test_commands_in_blocks_parse(page: Path) -> None:
    for words in (words for text in blocks(page, "") + blocks(page, "sh") for words in commands(text)):
        parse(words)


@each_page
def test_commands_in_the_text_exist(page: Path) -> None:
    group: Any = typer.main.get_command(app)
    for name in re.findall(r"`autopar (\w+)[^`]*`", page.read_text()):
        assert name in group.commands, name


@pytest.mark.parametrize(
    "line", ["autopar fly", "autopar plan --mesh 8", "autopar show plan.json --mash 2", "autopar demo --x"]
)
def test_wrong_commands_do_not_parse(line: str) -> None:
    with pytest.raises((Exception, SystemExit)):
        parse(commands(line)[0])


@each_page
def test_calls_have_the_arguments_that_functions_take(page: Path) -> None:
    for text in blocks(page, "python"):
        for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
            if (
                isinstance(call.func, ast.Attribute)
                and isinstance(call.func.value, ast.Name)
                and call.func.value.id == "autopar"
            ):
                known = inspect.signature(getattr(autopar, call.func.attr)).parameters
                assert {keyword.arg for keyword in call.keywords} <= set(known), ast.unparse(call)


@each_page
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = {name for text in blocks(page, "") for name in re.findall(r"^make (\w+)", text, re.MULTILINE)}
    assert asked <= targets


@each_page
def test_links_and_paths_exist(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (page.parent / link).exists(), link
    for path in re.findall(r"`((?:autopar|solver|profiler|codegen|tests|examples|docs)/[\w./-]*\w)`", text):
        assert (ROOT / path).exists(), path


def test_the_reference_has_every_public_name() -> None:
    shown = set(re.findall(r"^::: autopar\.([\w.]+)$", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE))
    public = set(autopar.__all__) - {"__version__", "ops"} | {f"ops.{name}" for name in autopar.ops.__all__}
    assert public - shown == set()


def test_each_error_has_its_causes() -> None:
    titles = re.findall(r"^## (\w+)$", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE)
    assert set(autopar.errors.__all__) - {"AutoparError"} == set(titles)


def test_each_page_is_in_the_map() -> None:
    """In docs/index.md, which people read on disk; that the site's menu has it, the build of the site says."""
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", (ROOT / "docs" / "index.md").read_text()))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"} == linked


def test_each_example_is_on_its_page() -> None:
    linked = set(re.findall(r"\]\(\.\./examples/([\w-]+\.py)\)", (ROOT / "docs" / "examples.md").read_text()))
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == linked
