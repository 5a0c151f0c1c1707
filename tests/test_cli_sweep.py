"""`autopar sweep`: every setting once, whatever interrupts it; what it prints, draws and saves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

import autopar
from autopar.cli import app
from autopar.cli_sweep import conclude
from autopar.planning.ledger import ledger
from autopar.planning.runs import Run, Setting
from autopar.planning.sweep import Sweep
from autopar.plot_sweep import plot_sweep
from autopar.render_sweep import print_sweep

MODULE = """
import os
import signal
import time
import torch
from torch import nn

class Squares(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))

    def forward(self, x):
        return self.layers(x).square().mean()

def squares(batch=8):
    return Squares(), {"x": torch.zeros(batch, 32)}

def dies(batch=8):
    if batch > 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return squares(batch)

def ends(batch=8):
    if batch > 8:
        os._exit(1)
    return squares(batch)

def slow(batch=8):
    time.sleep(3 * (batch > 8))
    return squares(batch)
"""
EIGHT = ("--meshes", "2,2x2", "--memory", "20KiB,none", "--batch", "8,16")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current one; its cache has no plans, so that all are searched."""
    (tmp_path / "models.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOPAR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["sweep", *arguments])


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def keys_of(path: Path) -> list[str]:
    return [json.dumps(line["setting"]) for line in lines_of(path)]


def test_a_sweep_and_the_same_again(folder: Path) -> None:
    (folder / "runs.jsonl").write_text('{"of": "somebody else"}\n')
    files = ("-o", "runs.jsonl", "--plot", "sweep.png", "--plans", "plans")
    result = run("models.py:squares", *EIGHT, *files, "--jobs", "2")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0].rstrip() == "models.py:squares, cpu"
    assert result.stdout.count("fits") == 4 == result.stdout.count("does not fit: needs")
    assert (folder / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    content = (folder / "runs.jsonl").read_bytes()
    other, *lines = lines_of(folder / "runs.jsonl")
    assert other == {"of": "somebody else"}
    assert len(lines) == 8
    assert_saved(folder, [line for line in lines if line["outcome"] == "fits"])
    again = run("models.py:squares", *EIGHT, *files, "--jobs", "2")
    assert (again.exit_code, again.stdout) == (0, result.stdout)
    assert (folder / "runs.jsonl").read_bytes() == content
    more = run("models.py:squares", "--meshes", "2", "--batch", "4,8", "-o", "runs.jsonl")
    assert more.exit_code == 0
    assert (folder / "runs.jsonl").read_bytes().startswith(content)
    assert len(lines_of(folder / "runs.jsonl")) == 10, "one is new"


def assert_saved(folder: Path, lines: list[dict[str, Any]]) -> None:
    """Plans as `autopar plan -o` writes them."""
    assert {Path(line["plan"]) for line in lines} == {path.relative_to(folder) for path in (folder / "plans").iterdir()}
    line = next(line for line in lines if line["setting"]["mesh"] == "2x2" and line["setting"]["batch"] == 16)
    command = ["plan", "models.py:squares", "--mesh", "2x2", "--batch", "16", "--no-cache", "-o", "alone.json"]
    assert CliRunner().invoke(app, command).exit_code == 0
    alone, saved = autopar.Plan.load("alone.json"), autopar.Plan.load(line["plan"])
    assert saved.origin is not None
    assert alone.origin is not None
    imported_here = alone.origin.model_copy(update={"versions": saved.origin.versions})
    assert saved == alone.model_copy(update={"origin": imported_here})
    assert saved.origin.model == "models.py:squares"
    assert line["versions"] == saved.origin.versions


@pytest.fixture
def started(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A sweep of 8 settings in its own process group, when the first of them is finished and others are not."""
    command = [sys.executable, "-m", "autopar.cli", "sweep", "models.py:slow", *EIGHT, "-o", "runs.jsonl", "--jobs", "2"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=folder
    )
    path, end = folder / "runs.jsonl", time.monotonic() + 120
    while not (path.exists() and path.read_bytes().count(b"\n") >= 1):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)
    yield process
    process.kill()
    process.communicate()


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]


def finish(folder: Path, before: bytes) -> None:
    """The sweep again: what was there stays, and every setting is there once."""
    result = run("models.py:slow", *EIGHT, "-o", "runs.jsonl", "--jobs", "2")
    assert result.exit_code == 0, result.output
    path = folder / "runs.jsonl"
    assert path.read_bytes().startswith(before)
    assert len(keys_of(path)) == len(set(keys_of(path))) == 8


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on(started: subprocess.Popen[str], folder: Path) -> None:
    workers = children(started.pid)
    assert len(workers) == 2
    started.send_signal(signal.SIGKILL)
    started.wait()
    end = time.monotonic() + 60
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < end, "its processes outlive it"
        time.sleep(0.05)
    path = folder / "runs.jsonl"
    before = path.read_bytes()
    assert before.count(b"\n") < 8
    path.write_bytes(before + before[:100])
    finish(folder, before)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_an_interrupt_leaves_what_is_there(started: subprocess.Popen[str], folder: Path) -> None:
    """The whole group gets it, as from a keyboard; meanwhile nobody else may write the file."""
    second = run("models.py:slow", *EIGHT, "-o", "runs.jsonl")
    assert (second.exit_code, second.stdout) == (2, "")
    assert "another sweep is writing runs.jsonl" in second.stderr
    os.killpg(started.pid, signal.SIGINT)
    stdout, stderr = started.communicate(timeout=60)
    assert started.returncode == 130, stderr
    done = len(lines_of(folder / "runs.jsonl"))
    assert done < 8
    assert stderr == f"interrupted: {done} of 8 settings are in runs.jsonl; the same command plans the others\n"
    assert f"{8 - done} of 8 settings are not finished" in stdout
    finish(folder, (folder / "runs.jsonl").read_bytes())


MISTAKES = {
    "no meshes": ((), "Missing option '--meshes'"),
    "mesh": (("--meshes", "8,2y4"), "mesh '2y4' is not of the form"),
    "memory": (("--meshes", "8", "--memory", "40"), "'40' has no unit"),
    "batch": (("--meshes", "8", "--batch", "8,x"), "--batch 'x' is no whole number: give some as 8,16"),
    "no batch": (("--meshes", "8", "--batch", "8,0"), "batch 0: must be at least 1"),
    "empty": (("--meshes", "8,,4"), "--meshes '8,,4' has an empty part"),
    "hardware": (("--meshes", "8", "--hardware", "cpu,h999"), "no hardware 'h999'"),
    "optimizer": (("--meshes", "8", "--optimizer", "lion"), "unknown optimizer 'lion'"),
    "dtype": (("--meshes", "8", "--dtype", "int3"), "unknown dtype 'int3'"),
    "precision": (("--meshes", "8", "--precision", "compute=int8"), "is no floating-point dtype"),
    "plot": (("--meshes", "8", "--plot", "sweep.txt"), "must end in one of .png"),
    "jobs": (("--meshes", "8", "--jobs", "0"), "Invalid value for '--jobs'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_message_and_leaves_no_file(name: str, folder: Path) -> None:
    arguments, message = MISTAKES[name]
    result = run("models.py:squares", *arguments, "-o", "runs.jsonl")
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert message in result.stderr
    assert not (folder / "runs.jsonl").exists()


def test_a_model_that_cannot_be_built_is_no_answer(folder: Path) -> None:
    result = run("models.py:nothing", "--meshes", "2,4", "-o", "runs.jsonl")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: models.py has no function 'nothing'; it has squares, dies, ends, slow\n"
    assert (folder / "runs.jsonl").read_bytes() == b""


def test_a_process_that_is_killed_has_no_line(folder: Path) -> None:
    result = run("models.py:dies", "--meshes", "2", "--batch", "16,8", "-o", "runs.jsonl", "--jobs", "1")
    assert result.exit_code == 1, result.output
    assert "error: the process that planned it" in result.stdout
    assert [line["setting"]["batch"] for line in lines_of(folder / "runs.jsonl")] == [8]


LOST = {
    "dies": "was killed by SIGKILL: allow it more memory, or fewer --jobs",
    "ends": "ended with exit code 1: what it printed may say why; the same command plans it again",
}


@pytest.mark.parametrize("function", LOST)
def test_how_a_process_ended_says_what_to_do(function: str, folder: Path) -> None:
    result = run(f"models.py:{function}", "--meshes", "2", "--batch", "16", "-o", "runs.jsonl", "--jobs", "1")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"error: the process that planned it {LOST[function]}\n"


def test_an_interrupt_counts_the_settings_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not one whose process was lost: it has no line."""
    settings = [Setting(model="m.py:f", mesh=mesh) for mesh in ("2", "4", "8")]
    path = tmp_path / "runs.jsonl"
    with ledger(path) as lines:
        made = Sweep(settings=settings, ledger=lines, make=partial(pytest.fail, "nothing is planned"), jobs=1)
        made.unanswered[settings[0].key] = Run(setting=settings[0], outcome="error", message="killed")
        lines.add(Run(setting=settings[1], outcome="impossible"))
        lines.add(Run(setting=Setting(model="another.py:f", mesh="2"), outcome="impossible"))
        with pytest.raises(typer.Exit):
            conclude(made, path, None, interrupted=True)
    assert "interrupted: 1 of 3 settings are in" in capsys.readouterr().err


def test_nothing_fits_is_exit_1(folder: Path) -> None:
    result = run("models.py:squares", "--meshes", "2", "--memory", "1KiB", "-o", "runs.jsonl", "--plot", "sweep.svg")
    assert result.exit_code == 1, result.output
    assert "does not fit: needs" in result.stdout
    assert (folder / "sweep.svg").exists()
    missing = run("models.py:squares", "--meshes", "2", "--memory", "1KiB", "-o", "runs.jsonl", "--plans", "plans")
    assert "note" not in missing.stderr


def fitting(setting: Setting, number: int) -> Run:
    figures = {"step_time_s": 0.01 * number, "samples_per_s": 80.0 * number, "peak_bytes": 2.0**20 * (9 - number)}
    return Run.model_validate({"setting": setting, "outcome": "fits", "status": "optimal", "gap": 0.001, **figures})


def examples() -> list[Run]:
    """Of everything one."""
    settings = [
        Setting(model="m.py:f", mesh=mesh, memory_bytes=memory, batch=batch)
        for batch in (8, 16)
        for mesh in ("8", "data=2,tensor=4")
        for memory in (2**30, None)
    ]
    runs = [fitting(setting, number) for number, setting in enumerate(settings, 1)]
    runs[1] = Run(setting=settings[1], outcome="does not fit", smallest_bytes=3 * 2**30, message="no plan fits")
    runs[2] = Run(setting=settings[2], outcome="impossible", message="axis tensor of mesh divides [nothing]")
    runs[3] = Run(setting=settings[3], outcome="error", message="RuntimeError: out of luck " + "and so on " * 20)
    return runs


def test_nothing_to_show() -> None:
    assert printed([], 60).strip() == "9 of 9 settings are not finished"


def printed(runs: list[Run], width: int) -> str:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    print_sweep(runs, 9, console)
    console.file.close()
    return console.export_text()


def test_the_table_marks_the_best_of_each_column() -> None:
    text = printed(examples(), 140)
    rows = [row for row in text.splitlines() if row[:1] not in ("", " ")]
    assert rows[0].rstrip() == "m.py:f, cpu"
    assert rows[1].split() == ["mesh", "memory", "batch", "step", "time", "samples/s", "peak", "gap", "outcome"]
    assert [row.split("  ")[0] for row in rows[3:11]] == ["8", "8", *["data=2,tensor=4"] * 2] * 2
    assert [row.count("*") for row in rows[3:11]] == [1, 0, 0, 0, 0, 0, 0, 2]
    assert "10 ms *" in rows[3]
    assert "640 *" in rows[10]
    assert "1 MiB *" in rows[10]
    assert "does not fit: needs 3 GiB" in rows[4]
    assert "impossible: axis tensor of mesh" in rows[5]
    assert "[nothing]" in text
    assert "…" in text
    assert rows[-1].rstrip() == "1 of 9 settings are not finished"


@pytest.mark.parametrize("width", [60, 80, 100])
def test_the_table_in_a_narrow_terminal(width: int) -> None:
    text = printed(examples(), width)
    assert max(map(len, text.splitlines())) <= width
    for words in ("10 ms *", "no limit", "needs 3 GiB", "impossible", "error", "data=2,ten", "sor=4"):
        assert words in text, words


@pytest.mark.parametrize("count", [1, 4, 8])
def test_pictures(count: int, tmp_path: Path) -> None:
    for runs in (examples()[:count], [run for run in examples() if run.setting.memory_bytes is None], examples()[1:4]):
        plot_sweep(runs, tmp_path / "sweep.png")
        assert (tmp_path / "sweep.png").read_bytes()[:4] == b"\x89PNG"
