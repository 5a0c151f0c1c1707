"""The command line: what each command prints, and that every mistake is one message and exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import autopar
from autopar.cli import app
from autopar.errors import BudgetError, TraceError
from autopar.verification import Difference, Report
from tests.small_plan import small_plan

ROOT = Path(__file__).parent.parent
LLAMA = str(ROOT / "examples" / "configs" / "llama3-8b.json")

MODULE = """
import torch
from torch import nn

def linear(batch=4):
    return nn.Linear(8, 2), {"input": torch.zeros(batch, 8)}
"""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "models.py").write_text(MODULE)
    return f"{tmp_path / 'models.py'}:linear"


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    small_plan().save(tmp_path / "plan.json")
    return tmp_path / "plan.json"


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """`autopar.plan` that answers at once; the calls of it."""
    calls: list[dict[str, Any]] = []

    def plan(model: Any, mesh: Any, args: tuple[Any, ...], kwargs: dict[str, Any], **options: Any) -> Any:
        options["progress"]("solving")
        calls.append({"model": model, "mesh": mesh, "args": args, "kwargs": kwargs, **options})
        return small_plan()

    monkeypatch.setattr(autopar, "plan", plan, raising=False)
    return calls


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], list[dict[str, Any]]]:
    """Makes `autopar.verify` report this error; the calls of it."""

    def report_of(error: float) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []
        tensors = (
            Difference(name="loss", kind="loss", relative_error=error / 2),
            Difference(name="fc.weight", kind="weight", relative_error=error),
        )

        def verify(model: Any, mesh: Any, args: Any, kwargs: Any, **options: Any) -> Report:
            calls.append({"mesh": mesh, **options})
            return Report(plan=small_plan(), steps=2, tensors=tensors)

        monkeypatch.setattr(autopar, "verify", verify, raising=False)
        return calls

    return report_of


def test_version() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout.strip()) == (0, f"autopar {autopar.__version__}")


@pytest.mark.parametrize("command", [(), ("plan",), ("show",), ("verify",), ("profile",), ("hardware",), ("hardware", "show")])
def test_help(command: tuple[str, ...]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.stdout


def test_help_imports_nothing_slow() -> None:
    code = (
        "import sys\nfrom autopar.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit as e:\n    assert not e.code\n"
        "print(*sorted({'torch', 'sympy', 'numpy', 'pulp', 'transformers', 'pydantic', 'autopar.render'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.startswith("Usage:")
    assert shown.splitlines()[-1] == ""


def test_plan_passes_everything_on_and_writes_the_file(planned: list[dict[str, Any]], model: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "plan.json"
    result = run(
        *("plan", model, "--mesh", "data=2,tensor=4", "--hardware", "h100-sxm", "--memory", "1GiB", "--batch", "6"),
        *("--time-limit", "5", "--gap", "0.01", "--optimizer", "sgd", "-o", str(path)),
    )
    assert result.exit_code == 0, result.output
    (call,) = planned
    assert call["mesh"] == "data=2,tensor=4"
    assert call["kwargs"]["input"].shape == (6, 8)
    expected = {
        "memory": "1GiB",
        "hardware": "h100-sxm",
        "time_limit_s": 5.0,
        "gap": 0.01,
        "optimizer": "sgd",
        "name": "Linear",
    }
    assert {key: call[key] for key in expected} == expected
    assert call["name"] == "Linear"
    saved = autopar.Plan.load(path)
    assert saved.model_copy(update={"origin": None}) == small_plan()
    assert saved.origin is not None
    assert (saved.origin.model, saved.origin.batch, saved.origin.hardware) == (model, 6, "h100-sxm")
    assert "layer type h.* × 4" in result.stdout
    assert str(path) in result.stderr


def test_a_config_on_a_gpu_is_planned_in_bfloat16(planned: list[dict[str, Any]]) -> None:
    sizes = ("--mesh", "8", "--batch", "2", "--seq", "16")
    assert run("plan", LLAMA, "--hardware", "h100-sxm", *sizes).exit_code == 0
    assert run("plan", LLAMA, *sizes).exit_code == 0
    assert run("plan", LLAMA, *sizes, "--dtype", "float64").exit_code == 0
    dtypes = [str(next(call["model"].parameters()).dtype) for call in planned]
    assert dtypes == ["torch.bfloat16", "torch.float32", "torch.float64"]


def test_show(plan_file: Path) -> None:
    result = run("show", str(plan_file))
    assert result.exit_code == 0
    assert "TinyModel" in result.stdout
    assert "\x1b" not in result.stdout


def test_verify(verified: Callable[[float], list[dict[str, Any]]], model: str, plan_file: Path) -> None:
    calls = verified(1e-12)
    result = run("verify", model, "--mesh", "2x4", "--plan", str(plan_file), "--steps", "2", "--memory", "1MiB")
    assert result.exit_code == 0, result.output
    assert "equal: largest relative error 1.00e-12" in result.stdout
    expected = {"plan": small_plan(), "memory": "1MiB", "steps": 2, "hardware": "cpu", "constraints": autopar.Constraints()}
    expected |= {"precision": None}
    assert calls == [{"mesh": "2x4"} | expected]


def test_verify_exits_with_1_and_names_the_worst(verified: Callable[[float], list[dict[str, Any]]], model: str) -> None:
    verified(1e-3)
    result = run("verify", model, "--mesh", "2")
    assert result.exit_code == 1
    assert "NOT equal" in result.stdout
    assert "fc.weight (weight)" in result.stdout


def test_demo_gets_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    demo, got = ModuleType("autopar.demo"), []
    demo.main = lambda arguments: got.append(arguments) or 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "autopar.demo", demo)
    assert run("demo", "--steps", "5", "--out", "here", "--help").exit_code == 3
    assert got == [["--steps", "5", "--out", "here", "--help"]]


MISTAKES = {
    "unknown hardware": (
        ["plan", "{model}", "--mesh", "2", "--hardware", "h999"],
        "one of a100-40gb, a100-80gb, b200, cpu, h100-pcie",
    ),
    "unknown hardware to show": (["hardware", "show", "h999"], "one of a100-40gb, a100-80gb, b200, cpu, h100-pcie"),
    "missing model file": (["plan", "no/such.json", "--mesh", "2"], "cannot read 'no/such.json': No such file"),
    "missing python file": (["plan", "no/such.py:f", "--mesh", "2"], "no file 'no/such.py'"),
    "model of no known form": (["profile", "nonsense"], "name it as package.module:function"),
    "no such function": (["plan", "{file}:nope", "--mesh", "2"], "has no function 'nope'; it has linear"),
    "unknown link": (["plan", "{model}", "--mesh", "a=2@rope,b=2"], "no link 'rope': cpu has intra_node (gloo over loopback)"),
    "mesh syntax": (["plan", "{model}", "--mesh", "2y2"], "mesh '2y2' is not of the form 8, 2x4 or data=2,tensor=4"),
    "empty mesh axis": (["plan", "{model}", "--mesh", "0x2"], "every axis needs at least one device"),
    "byte syntax": (
        ["plan", "{model}", "--mesh", "2", "--memory", "70 gigs"],
        "'70 gigs' is no byte count: give bytes as",
    ),
    "byte syntax of verify": (["verify", "{model}", "--mesh", "2", "--memory", "-1"], "is no byte count: give bytes as 70GiB"),
    "dtype": (["plan", "{model}", "--mesh", "2", "--dtype", "int3"], "float64, float32, bfloat16, float16"),
    "option that the function lacks": (["plan", "{model}", "--mesh", "2", "--seq", "8"], "takes no 'seq': leave out --seq"),
    "missing plan": (["show", "no-plan.json"], "cannot read plan no-plan.json: No such file"),
    "missing plan to verify": (["verify", "{model}", "--mesh", "2", "--plan", "no-plan.json"], "cannot read plan no-plan.json"),
    "plan that is no JSON": (["show", "{torn}"], "is no JSON"),
    "plan that is something else": (["show", "{other}"], "is no autopar plan"),
    "plan of another version": (["show", "{old}"], "has plan version 999, this autopar reads version 1"),
    "damaged plan": (["show", "{damaged}"], "field mesh"),
    "folder as output": (["plan", "{model}", "--mesh", "2", "-o", "{folder}"], "is a folder: give a file"),
    "no mesh": (["plan", "{model}"], "neither of mesh and devices"),
    "no such command": (["plna"], "No such command 'plna'"),
    "no such option": (["show", "x", "--wide"], "No such option: --wide"),
    "time limit": (["plan", "{model}", "--mesh", "2", "--time-limit", "0"], "Invalid value for '--time-limit'"),
}


@pytest.fixture
def files(model: str, tmp_path: Path) -> dict[str, str]:
    text = small_plan().to_json()
    data = json.loads(text)
    (tmp_path / "torn.json").write_text(text[: len(text) // 2])
    (tmp_path / "other.json").write_text('{"weights": [1, 2]}')
    (tmp_path / "old.json").write_text(json.dumps(data | {"version": 999}))
    (tmp_path / "damaged.json").write_text(json.dumps(data | {"mesh": "round"}))
    names = {name: str(tmp_path / f"{name}.json") for name in ("torn", "other", "old", "damaged")}
    return names | {"model": model, "file": model.rpartition(":")[0], "folder": str(tmp_path)}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_message_and_exit_code_2(
    name: str, files: dict[str, str], planned: list[dict[str, Any]], verified: Callable[[float], list[dict[str, Any]]]
) -> None:
    verified(0.0)
    arguments, message = MISTAKES[name]
    result = run(*(argument.format(**files) for argument in arguments))
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert planned == []


@pytest.mark.parametrize(
    "error", [TraceError("model.py:7 branches on data"), BudgetError("the smallest budget is 3 GiB", smallest_bytes=3 * 2**30)]
)
def test_errors_of_the_stages_are_messages_too(model: str, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(autopar, "plan", fails, raising=False)
    result = run("plan", model, "--mesh", "2", "--memory", "1GiB")
    assert (result.exit_code, result.stderr) == (2, f"error: {error}\n")


def test_an_interrupt_is_130_and_leaves_the_old_plan(model: str, monkeypatch: pytest.MonkeyPatch, plan_file: Path) -> None:
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(autopar, "plan", interrupted, raising=False)
    before = plan_file.read_text()
    result = run("plan", model, "--mesh", "2", "-o", str(plan_file))
    assert result.exit_code == 130
    assert "Traceback" not in result.output
    assert plan_file.read_text() == before


def test_a_file_that_cannot_be_written(planned: list[dict[str, Any]], model: str, tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a file, not a folder")
    result = run("plan", model, "--mesh", "2", "-o", str(tmp_path / "occupied" / "plan.json"))
    assert result.exit_code == 2
    assert "cannot write" in result.stderr


def test_a_bug_of_ours_keeps_its_traceback(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise AssertionError("invariant")

    monkeypatch.setattr(autopar, "plan", broken, raising=False)
    result = run("plan", model, "--mesh", "2")
    assert isinstance(result.exception, AssertionError)


def test_the_installed_script_in_its_own_process() -> None:
    command = [sys.executable, "-m", "autopar.cli", "plan", "nonsense", "--mesh", "two"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith("error: mesh 'two'")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.slow
def test_llama_8b_on_64_gpus_is_planned_without_any(tmp_path: Path) -> None:
    arguments = ("--mesh", "8x8", "--hardware", "h100-sxm", "--memory", "70GiB", "--batch", "16", "--seq", "8192")
    path = tmp_path / "plan.json"
    command = [sys.executable, "-m", "autopar.cli", "plan", LLAMA, *arguments, "-o", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=500)
    assert done.returncode == 0, done.stderr
    plan = autopar.Plan.load(path)
    assert plan.mesh.sizes == (8, 8)
    assert plan.peak_bytes <= 70 * 2**30
    assert sum(c.calls for c in plan.regions["model.layers.*"].classes) == 32
    assert "layer type model.layers.* × 32" in done.stdout
    again = run("show", str(path))
    assert again.stdout == done.stdout
