"""What commands print where the output is a narrow terminal, without colours, no terminal, or read by nobody."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autopar.cli import app
from autopar.cli_options import read_constraints
from autopar.cli_sweep import settings_of
from autopar.planning.ledger import ledger
from autopar.planning.runs import Run
from tests.small_plan import small_plan

ROOT = Path(__file__).parent.parent
MODULE = """
import torch
from torch import nn

def linear(batch=4):
    return nn.Sequential(nn.Linear(8, 2)), {"input": torch.zeros(batch, 8)}
"""
PRINTING = {
    "show": ("show", "plan.json"),
    "diff": ("diff", "plan.json", "other.json"),
    "profile": ("profile", "models.py:linear", "--batch", "4", "--memory", "1MiB", "--ops"),
    "rules": ("rules", "aten.linear"),
    "hardware list": ("hardware", "list"),
    "hardware show": ("hardware", "show", "h100-sxm"),
    "sweep": ("sweep", "models.py:linear", "--meshes", "2,4", "--memory", "1GiB,none", "-o", "runs.jsonl"),
}
AS_WRITTEN = ("rules",)
"""Text that is not laid out for a width: a terminal breaks its lines."""

COLOR = re.compile(r"\x1b\[(?:\d+;)*(?:3\d|4\d|9\d|10\d)(?:;\d+)*m")
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With two plans that differ, a model, and a sweep that is finished."""
    folder = tmp_path_factory.mktemp("output")
    (folder / "models.py").write_text(MODULE)
    small_plan().save(folder / "plan.json")
    small_plan(status="optimal", hardware="a100-80gb", notes=["a note"]).save(folder / "other.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shared = {"precision": None, "optimizer": "adamw", "overlap": True, "gap": 1e-3, "time_limit_s": 60.0}
        limits = {"constraints": read_constraints(None, None, None)}
        settings = settings_of("models.py:linear", ["2,4"], ["cpu"], ["1GiB,none"], None, None, None, shared | limits)
        with ledger(Path("runs.jsonl")) as lines:
            for number, setting in enumerate(settings, 1):
                figures = {"step_time_s": 0.01 * number, "peak_bytes": 1e6 * number, "gap": 0.0}
                lines.add(Run.model_validate({"setting": setting, "outcome": "fits", "status": "optimal", **figures}))
    return folder


def environment(**changes: str) -> dict[str, str]:
    forced = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    own = {name: value for name, value in os.environ.items() if name not in forced}
    return own | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "TERM": "xterm-256color"} | changes


def on_terminal(arguments: tuple[str, ...], folder: Path, columns: int = 60, **changes: str) -> tuple[int, str]:
    """Exit code, and all that the terminal gets, errors too."""
    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    command = [sys.executable, "-m", "autopar.cli", *arguments]
    process = subprocess.Popen(command, stdin=other, stdout=other, stderr=other, cwd=folder, env=environment(**changes))
    os.close(other)
    text = b""
    try:
        while part := os.read(main, 1 << 16):
            text += part
    except OSError:
        pass  # as Linux says that the other end is closed
    os.close(main)
    return process.wait(), text.decode().replace("\r\n", "\n")


def printed(text: str) -> str:
    """Without what moves the cursor, styles, and lines that were written over."""
    return "\n".join(CONTROL.sub("", line).rpartition("\r")[2] for line in text.split("\n"))


@pytest.mark.parametrize("name", PRINTING)
def test_a_narrow_terminal_without_colours_loses_no_words(name: str, folder: Path) -> None:
    code, text = on_terminal(PRINTING[name], folder, NO_COLOR="1")
    assert code == (1 if name == "diff" else 0), text
    assert COLOR.findall(text) == []
    shown = printed(text)
    if name not in AS_WRITTEN:
        assert [line for line in shown.splitlines() if len(line) > 60] == []
    assert re.findall(r"\w+…", shown) == [], "words are cut off"


def test_a_terminal_has_colours(folder: Path) -> None:
    """Or the test before would see none in anything."""
    _, text = on_terminal(PRINTING["show"], folder)
    assert COLOR.findall(text)
    code, text = on_terminal(("show", "none.json"), folder)
    assert (code, bool(COLOR.findall(text))) == (2, True)


def test_errors_without_colours(folder: Path) -> None:
    code, text = on_terminal(("show", "none.json"), folder, NO_COLOR="1")
    assert (code, COLOR.findall(text)) == (2, [])
    assert printed(text).startswith("error: cannot read plan none.json")


@pytest.mark.parametrize("name", PRINTING)
def test_no_terminal_gets_plain_text(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for changed in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(changed, raising=False)
    result = CliRunner().invoke(app, PRINTING[name])
    assert result.exit_code == (1 if name == "diff" else 0), result.output
    assert result.stdout
    assert "\x1b" not in result.output


@pytest.mark.parametrize("name", [*PRINTING, "hardware show --json"])
def test_a_reader_that_has_gone_away(name: str, folder: Path) -> None:
    """The pipe is closed before a byte is read, which `head` comes to now and then; and not an answer, as 1 would be."""
    arguments = (*PRINTING["hardware show"], "--json") if name not in PRINTING else PRINTING[name]
    code, errors = unread(arguments, folder, environment())
    assert code == 141
    assert errors == ""


def unread(arguments: tuple[str, ...], folder: Path, variables: Mapping[str, str]) -> tuple[int, str]:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "autopar.cli", *arguments]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, cwd=folder, env=variables)
    os.close(writing)
    return done.returncode, done.stderr
