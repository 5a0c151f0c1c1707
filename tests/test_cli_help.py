"""`--help` of every command: examples, docs/commands.md, and nothing slow imported; completion of shells."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from autopar.cli import app
from autopar.demo import arguments as demo_arguments

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "commands.md"
SHARED = "Options of several commands"
SLOW = ("torch", "sympy", "numpy", "pulp", "highspy", "transformers", "networkx", "matplotlib", "autopar.render")
EXAMPLE = re.compile(r"\b[Aa]s \S")


def commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Each command with its name, as "hardware show"."""
    for name, found in (group or typer.main.get_command(app)).commands.items():
        if hasattr(found, "commands"):
            yield from commands(found, (*path, name))
        else:
            yield " ".join((*path, name)), found


COMMANDS = dict(commands())
each_command = pytest.mark.parametrize("name", COMMANDS)


def options(name: str) -> dict[str, Any]:
    """Long names, but for --help."""
    if name == "demo":
        return dict.fromkeys(("--steps", "--memory", "--out", "--trace"))
    parameters = [each for each in COMMANDS[name].params if each.param_type_name == "option"]
    return {max(each.opts, key=len): each for each in parameters if "--help" not in each.opts}


def test_the_options_of_the_demo() -> None:
    """It reads them itself."""
    assert set(vars(demo_arguments([]))) == {name[2:] for name in options("demo")}


@each_command
def test_each_option_has_help_with_an_example(name: str) -> None:
    if name == "demo":
        return
    assert COMMANDS[name].help
    for parameter in COMMANDS[name].params:
        assert parameter.help, parameter.name
        assert getattr(parameter, "is_flag", False) or EXAMPLE.search(parameter.help), f"{parameter.name}: {parameter.help}"


def test_help_of_all_commands_imports_nothing_slow() -> None:
    code = (
        "import sys\nfrom autopar.cli import app\n"
        f"for name in {[*COMMANDS, 'hardware', '']!r}:\n"
        "    try:\n        app([*name.split(), '--help'])\n    except SystemExit as end:\n        assert not end.code, name\n"
        f"print('imported:', *sorted(set({SLOW!r}) & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert len(re.findall(r"^[Uu]sage: ", shown, re.MULTILINE)) == len(COMMANDS) + 2
    assert shown.splitlines()[-1] == "imported:"


@cache
def sections() -> dict[str, str]:
    """Of the page: heading -> text."""
    parts = re.split(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {title.strip("` ").removeprefix("autopar "): text for title, text in zip(parts[1::2], parts[2::2], strict=True)}


@each_command
def test_the_page_has_the_command_with_an_example_and_its_exit_codes(name: str) -> None:
    assert name in sections(), f"docs/commands.md has no section: ## `autopar {name}`"
    text = sections()[name]
    blocks = re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert any(
        line.startswith(f"autopar {name} ") or line == f"autopar {name}" for block in blocks for line in block.splitlines()
    )
    assert re.search(r"^Exit: ", text, re.MULTILINE), "a line 'Exit: …' is missing"


@each_command
def test_the_page_has_every_option_and_no_other(name: str) -> None:
    own, shared = (set(re.findall(r"--[a-z][a-z-]*", sections().get(title, ""))) for title in (name, SHARED))
    missing = set(options(name)) - own - shared
    assert not missing, f"docs/commands.md does not mention these options of autopar {name}: {sorted(missing)}"
    named = set(re.findall(r"`(--[a-z][a-z-]*)[^`]*`", sections().get(name, "").replace("```", "")))
    assert not named - set(options(name)), "options that it does not have"


def test_the_page_has_no_other_command() -> None:
    told = {title for title in sections() if f"## `autopar {title}`" in PAGE.read_text(encoding="utf-8")}
    assert told <= set(COMMANDS)
    everywhere = {option for name in COMMANDS for option in options(name)}
    assert set(re.findall(r"`(--[a-z][a-z-]*)[^`]*`", sections()[SHARED])) <= everywhere


def completed(line: str, shell: str = "bash") -> list[str]:
    """What a shell gets for a line that ends where the cursor is."""
    words = line.split(" ")
    variables = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_TYPER_COMPLETE_ARGS": line}
    variables |= {"_AUTOPAR_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    code = "import sys; sys.argv[0] = 'autopar'; from autopar.cli import main; main()"
    environment = {**os.environ, **variables, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("autopar sw", {"sweep"}),
        ("autopar hardware ", {"list", "show", "calibrate"}),
        ("autopar plan --hardware h1", {"h100-pcie", "h100-sxm"}),
        ("autopar sweep m.py:f --hardware cpu,h20", {"cpu,h200"}),
        ("autopar hardware show mi", {"mi300x"}),
        ("autopar profile --hardware l4", {"l40s"}),
        ("autopar plan --optimizer ada", {"adam", "adamw"}),
        ("autopar plan --dtype bf", {"bfloat16"}),
        ("autopar plan --min-", {"--min-micro-batch"}),
        ("autopar show nothing-like-a", set()),
    ],
)
def test_completion(line: str, expected: set[str]) -> None:
    assert set(completed(line)) == expected


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_of_other_shells(shell: str) -> None:
    found = completed("autopar plan --hardware h1", shell)
    assert {"h100-pcie", "h100-sxm"} <= set(re.findall(r"[a-z0-9-]+", " ".join(found)))


@pytest.mark.parametrize(
    ("shell", "file"),
    [("bash", ".bash_completions/autopar.sh"), ("zsh", ".zfunc/_autopar"), ("fish", ".config/fish/completions/autopar.fish")],
)
def test_completion_installs(shell: str, file: str, tmp_path: Path) -> None:
    changes = {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    code = "import sys; sys.argv[0] = 'autopar'; from autopar.cli import main; main()"
    environment = {**os.environ, **changes, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-c", code, "--install-completion", shell]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert f"{shell} completion installed" in done.stdout
    assert "_AUTOPAR_COMPLETE" in (tmp_path / file).read_text()
