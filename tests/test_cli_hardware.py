"""`autopar hardware`: what it prints, what it writes, and that every mistake is one message and exit code 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from autopar.cli import app
from autopar.hardware import INTRA_NODE, Hardware, known, load, to_json
from autopar.hardware import calibrate as calibration
from autopar.ir.conversion import COLLECTIVES

ROOT = Path(__file__).parent.parent


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["hardware", *arguments])


@pytest.fixture
def calibrated(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Calibration that answers at once; the calls of it."""
    calls: list[dict[str, Any]] = []

    def calibrate(name: str, **options: Any) -> Hardware:
        options.pop("progress")("matmul float32, 8 x 8")
        calls.append({"name": name, **options})
        return load("cpu")

    monkeypatch.setattr(calibration, "calibrate", calibrate)
    return calls


def test_list() -> None:
    result = run("list")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[3:]] == list(known())
    assert any("989 TFLOP/s" in line and "3.35 TB/s" in line and "NVLink 4" in line for line in lines)
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize("name", known())
def test_show(name: str) -> None:
    result = run("show", name)
    assert result.exit_code == 0, result.output
    words = " ".join(result.stdout.split())
    found = load(name)
    for dtype in found.peak_flops_per_s:
        assert f"peak rate, {dtype}" in words
    assert found.sources["memory_bytes"][:40] in words
    assert all(kind in words for kind in COLLECTIVES)
    assert "2(n-1)/n" in words


def test_show_names_the_algorithm_of_each_link(tmp_path: Path) -> None:
    data = json.loads(to_json(load("cpu")))
    data["links"]["intra_node"]["algorithms"]["all_reduce"] = "tree"
    (tmp_path / "tree.json").write_text(json.dumps(data))
    assert "all_reduce tree 2 log2 n 2 100 µs" in " ".join(run("show", str(tmp_path / "tree.json")).stdout.split())


def test_show_json_is_a_file_to_copy(tmp_path: Path) -> None:
    shown = run("show", "h100-pcie", "--json").stdout
    (tmp_path / "copy.json").write_text(shown)
    assert load(tmp_path / "copy.json") == load("h100-pcie")


def test_calibrate_writes_what_was_measured(calibrated: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    result = run("calibrate", "-o", str(path), "--device", "cpu", "--quick", "--like", "cpu")
    assert result.exit_code == 0, result.output
    assert calibrated == [{"name": "mine", "device_type": "cpu", "mesh": None, "like": "cpu", "quick": True}]
    assert load(path) == load("cpu")
    assert "matmul float32, 8 x 8" in result.stderr
    assert f"wrote {path}" in result.stderr
    assert "peak rate, float32" in result.stdout


def test_calibrate_overwrites_when_told(calibrated: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text("precious")
    assert run("calibrate", "-o", str(path)).exit_code == 2
    assert path.read_text() == "precious"
    assert calibrated == []
    assert run("calibrate", "-o", str(path), "--force").exit_code == 0
    assert load(path) == load("cpu")


def test_only_the_first_process_speaks(
    calibrated: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    result = run("calibrate", "-o", str(tmp_path / "mine.json"))
    assert (result.exit_code, result.output) == (0, "")
    assert not (tmp_path / "mine.json").exists()
    failed = run("calibrate", "-o", str(tmp_path))
    assert (failed.exit_code, failed.output) == (2, "")


MISTAKES = {
    "no output": (["calibrate"], "Missing option '--output'"),
    "file that exists": (["calibrate", "-o", "{occupied}"], "exists: give another file with -o, or --force"),
    "folder": (["calibrate", "-o", "{folder}"], "is a folder: give a file"),
    "no such folder": (["calibrate", "-o", "{folder}/no/mine.json"], "is no folder: make it first"),
    "unknown device": (["calibrate", "-o", "{new}", "--device", "tpu"], "no device 'tpu': give one of cpu, cuda"),
    "mesh without torchrun": (["calibrate", "-o", "{new}", "--device", "cpu", "--mesh", "2x2"], "start with `torchrun"),
    "unknown like": (["calibrate", "-o", "{new}", "--device", "cpu", "--like", "h999"], "no hardware 'h999'"),
    "like of another type": (
        ["calibrate", "-o", "{new}", "--device", "cpu", "--like", "h200"],
        "--like h200 describes a cuda device",
    ),
    "unknown hardware": (["show", "h999"], "no hardware 'h999' (FileNotFoundError): give one of a100-40gb"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_message_and_exit_code_2(name: str, tmp_path: Path) -> None:
    (tmp_path / "occupied.json").write_text("{}")
    names = {"folder": str(tmp_path), "occupied": str(tmp_path / "occupied.json"), "new": str(tmp_path / "new.json")}
    arguments, message = MISTAKES[name]
    result = run(*(argument.format(**names) for argument in arguments))
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert not (tmp_path / "new.json").exists()


def test_help_imports_nothing_slow() -> None:
    code = (
        "import sys\nfrom autopar.cli import app\n"
        "try:\n    app(['hardware', 'calibrate', '--help'])\nexcept SystemExit as e:\n    assert not e.code\n"
        "print(*sorted({'torch', 'numpy', 'autopar.hardware', 'autopar.render'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "Usage:" in shown
    assert shown.splitlines()[-1] == ""


@pytest.mark.slow
def test_calibrate_quickly_for_real(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    command = [sys.executable, "-m", "autopar.cli", "hardware", "calibrate", "--quick", "-o", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert set(load(path).fit) >= {"float32", "bfloat16", "memory"}
    assert "matmul float32, 256 x 256" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "mesh"), [pytest.param(2, None, marks=pytest.mark.exhaustive), (4, "data=2,tensor=2")])
def test_calibrate_under_torchrun(processes: int, mesh: str | None, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["-m", "autopar.cli", "hardware", "calibrate", "--quick", "--device", "cpu", "-o", str(path)]
    done = subprocess.run(
        [*command, *(["--mesh", mesh] if mesh else [])],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"wrote {path}") == 1
    found = load(path)
    assert found.devices_per_node == processes
    axes = ["data", "tensor"] if mesh else ["gpu"]
    assert {name for name in found.fit if name.startswith("links.")} == {f"links.{a}.{k}" for a in axes for k in COLLECTIVES}
    assert set(found.links[INTRA_NODE].figures) == set(COLLECTIVES)
    assert [axis for axis in axes if axis in found.links] == (axes if mesh else [])
    assert found.sources[f"links.{INTRA_NODE}"].startswith(f"measured: along {axes[-1]}")


@pytest.mark.slow
def test_a_mesh_of_the_wrong_size_under_torchrun(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "autopar.cli"]
    done = subprocess.run(
        [*command, "hardware", "calibrate", "--mesh", "2x4", "-o", str(tmp_path / "mine.json")],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=ROOT,
    )
    assert done.returncode != 0
    assert done.stderr.count("error: mesh 2x4 has 8 devices, torchrun started 2 processes") == 1
    assert not (tmp_path / "mine.json").exists()
