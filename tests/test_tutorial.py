"""The tutorial is run from top to bottom, and prints what it says."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tutorial.md"
FENCE = re.compile(r'^```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$', re.MULTILINE | re.DOTALL)
PROGRAMS = {"autopar": "-m autopar.cli", "torchrun": "-m torch.distributed.run"}
ANYTHING = "…"


@dataclass(frozen=True, kw_only=True)
class Block:
    """`python` to run, or a file of that title; `sh` to run; `text` that the block before prints."""

    language: str
    title: str | None
    text: str


def blocks(page: str) -> list[Block]:
    return [Block(**match.groupdict()) for match in FENCE.finditer(page)]


def matches(printed: str, expected: str) -> bool:
    """Whether all is said, in order, but for spaces at ends of lines; `…` is anything, whole lines too."""

    def lines(text: str) -> str:
        return "\n".join(line.rstrip() for line in text.strip().splitlines())

    pattern = ".*".join(re.escape(part) for part in lines(expected).split(ANYTHING))
    return re.fullmatch(pattern, lines(printed), re.DOTALL) is not None


def run_shell(command: str, folder: Path) -> str:
    """Programs of this environment, whatever the PATH; fails with what was said."""
    functions = "\n".join(f'{name}() {{ "{sys.executable}" {how} "$@"; }}' for name, how in PROGRAMS.items())
    paths = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "140", "PYTHONPATH": paths}
    shell = ["bash", "-euo", "pipefail", "-c", f"{functions}\n{command}"]
    done = subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def run_page(page: str, folder: Path) -> Iterator[tuple[Block, str]]:
    """Each block of expected text, with what the block before it printed."""
    names: dict[str, Any] = {}
    printed = ""
    for block in blocks(page):
        if block.language == "text":
            yield block, printed
        elif block.title is not None:
            (folder / block.title).write_text(block.text)
        elif block.language == "sh":
            printed = run_shell(block.text, folder)
        elif block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(block.text, str(PAGE), "exec"), names)
            printed = out.getvalue()
        else:
            raise AssertionError(f"a block that nobody runs: {block}")


@pytest.mark.slow
def test_the_tutorial_prints_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "model", raising=False)
    compared = 0
    for block, printed in run_page(PAGE.read_text(), tmp_path):
        assert matches(printed, block.text), f"expected:\n{block.text}\nprinted:\n{printed}"
        compared += 1
    assert compared >= 8
    sys.modules.pop("model")


def test_a_page_that_says_something_else_is_noticed(tmp_path: Path) -> None:
    page = "```python\nprint('one'); print(2)\n```\n\n```text\n{}\n```\n"
    for said, right in (("one\n2", True), ("one\n…", True), ("…2", True), ("one", False), ("one\n3", False), ("2\none", False)):
        ((block, printed),) = run_page(page.format(said), tmp_path)
        assert matches(printed, block.text) == right, said


def test_files_of_a_page_are_written_and_commands_are_run(tmp_path: Path) -> None:
    page = '```python title="a.py"\nx = 1\n```\n\n```sh\ncat a.py\n```\n\n```text\nx = 1\n```\n'
    ((block, printed),) = run_page(page, tmp_path)
    assert matches(printed, block.text)
    with pytest.raises(AssertionError, match="no-such-file"):
        list(run_page("```sh\ncat no-such-file\n```\n", tmp_path))
