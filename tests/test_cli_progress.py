"""What is said while a plan is searched: on a terminal one line with stage, figures and seconds, elsewhere nothing."""

from __future__ import annotations

import io
import re
import sys
import time

import pytest

from autopar.cli_options import stages
from autopar.hardware import load
from autopar.ir.mesh import MeshSpec
from autopar.planning.planner import Aims, Planner, so_far
from tests.planned import traced

FIGURES = re.compile(r"solving \(\S+ \S+ found, at least \S+ \S+, gap \d+\.\d %\)")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_has_what_is_found_and_proven() -> None:
    said: list[str] = []
    planner = Planner(traced("mlp").program, Aims(hardware=load("cpu")), progress=said.append)
    loosest = planner.loosest(MeshSpec.of("2"))
    plan = planner.find(MeshSpec.of("2"), loosest.peak_bytes * 0.9).plan
    assert any(FIGURES.fullmatch(line) for line in said), said
    last = [line for line in said if line.startswith("solving (")][-1]
    assert last == f"solving ({so_far(plan.step_time_s, plan.lower_bound_s)})"


def test_no_figures_where_there_are_none() -> None:
    assert so_far(None, 0.0) == ""
    assert so_far(0.0, 0.0) == "0 µs found"


def test_a_terminal_shows_one_line_with_the_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "30")
    with stages() as stage:
        stage("solving [2x4] (12.1 ms found, at least 11.9 ms, gap 1.7 %)")
        elsewhere = Terminal()
        monkeypatch.setattr(sys, "stderr", elsewhere)  # as tracing does
        time.sleep(0.3)
        monkeypatch.setattr(sys, "stderr", terminal)
    assert elsewhere.getvalue() == ""
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "solving [2x4] (12.1 ms…, 0 s" in shown
    assert all(len(line) <= 30 for line in re.split(r"[\r\n]+", shown))


def test_elsewhere_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    with stages() as stage:
        stage("solving")
    assert pipe.getvalue() == ""
