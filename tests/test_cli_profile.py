"""`autopar profile`: what it prints and writes for a small model, and that every mistake is one message and exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sympy
from typer.testing import CliRunner, Result

from autopar.cli import app

MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, fixed=False):
        super().__init__()
        self.fixed = fixed
        self.embed = nn.Embedding(32, 8)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(3))
        self.head = nn.Linear(8, 32, bias=False)

    def forward(self, tokens, labels):
        hidden = self.embed(tokens)
        if self.fixed:
            hidden = hidden.view(tokens.shape[0], 16, 8)
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        return {"loss": nn.functional.cross_entropy(self.head(hidden).flatten(0, 1), labels.flatten())}

def net(batch=4, seq=16, fixed=False):
    tokens = torch.zeros(batch, seq, dtype=torch.int64)
    return Net(fixed), {"tokens": tokens, "labels": tokens}

def fixed(batch=4, seq=16):
    return net(batch, seq, fixed=True)

def rows(batch=4):
    return nn.Linear(8, 2), {"input": torch.zeros(batch, 8)}
"""
PARAMETERS = 32 * 8 + 3 * (8 * 16 + 16 + 16 * 8 + 8) + 8 * 32
FORWARD = 2 * (3 * (8 * 16 + 16 * 8) + 8 * 32)
"""FLOPs per token."""


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "models.py").write_text(MODULE)
    return str(tmp_path / "models.py")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["profile", *arguments])


def dumped(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json", "-")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def line(text: str, start: str) -> str:
    """The first line whose text, without the frame, starts so."""
    return next(words for raw in text.splitlines() if (words := raw.strip("│ ")).startswith(start))


def test_figures_are_printed_at_the_example_sizes(file: str) -> None:
    result = run(f"{file}:net", "--batch", "2", "--seq", "8")
    assert result.exit_code == 0, result.output
    assert "Net, batch 2, seq 8" in result.stdout
    assert line(result.stdout, "parameters") == f"parameters      {PARAMETERS / 1000:.2f}k, {4 * PARAMETERS / 1024:.3g} KiB"
    assert f"forward {2 * 8 * FORWARD / 1000:.3g} kFLOP" in line(result.stdout, "work")
    assert "by the roofline of cpu" in line(result.stdout, "step time")
    assert "tokens/s" in line(result.stdout, "throughput")
    assert "layers.* × 3" in result.stdout
    assert "grows" not in result.stdout
    assert "\x1b" not in result.stdout


def test_formulas_are_printed_for_open_dims(file: str) -> None:
    result = run(f"{file}:net", "--dynamic", "batch,seq")
    assert result.exit_code == 0, result.output
    assert line(result.stdout, "FLOPs forward").split("  ")[-1].strip() == f"{FORWARD / 1000:.3g} kFLOP·batch·seq"
    assert "grows as" in result.stdout


def test_ops_and_depth(file: str) -> None:
    shallow, deep = run(f"{file}:net", "--depth", "0"), run(f"{file}:net", "--depth", "9", "--ops")
    assert "layers.*" not in shallow.stdout.partition("modules")[2].partition("region types")[0]
    assert "    0    " in deep.stdout
    assert "ops that take longest" in deep.stdout
    assert "bound by" in deep.stdout
    assert "ops that take longest" not in shallow.stdout


def test_a_budget_opens_the_dims_and_answers_with_the_largest_sizes(file: str) -> None:
    data = dumped(f"{file}:net", "--batch", "1", "--seq", "8", "--memory", "200KiB")
    assert data["dynamic"] == ["batch", "seq"]
    assert data["sizes"] == {"batch": 1, "seq": 8}
    answers = {dim: found["size"] for dim, found in data["budget"]["largest"].items()}
    assert answers["seq"] == pytest.approx(8 * answers["batch"], abs=7)
    batch = answers["batch"]

    def peak(batch: int) -> int:
        return int(dumped(f"{file}:net", "--batch", str(batch), "--seq", "8")["peak"]["bytes"])

    assert peak(batch) <= 200 * 1024 < peak(batch + 1)
    shown = run(f"{file}:net", "--batch", "1", "--seq", "8", "--memory", "200KiB").stdout
    assert f"within 200 KiB  batch up to {batch} at seq 8" in shown


def test_a_budget_that_not_even_one_fits(file: str) -> None:
    assert "not even batch 1 or seq 1 fits" in run(f"{file}:net", "--memory", "1KiB").stdout


def test_a_dim_that_the_model_fixes_is_left_out_of_the_answer_and_said(file: str) -> None:
    result = run(f"{file}:fixed", "--memory", "1MiB")
    assert result.exit_code == 0, result.output
    assert "batch up to" in result.stdout
    assert "seq up to" not in result.stdout
    assert "note: largest batch and seq not found: dim 'seq'" in result.stderr


def test_inputs_that_are_no_tokens_have_no_seq(file: str) -> None:
    data = dumped(f"{file}:rows", "--memory", "1MiB")
    assert data["dynamic"] == ["batch"]
    assert data["tokens"] == {"formula": "batch", "value": 4, "unit": "samples"}


def test_json_has_formulas_and_numbers_that_agree(file: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "profile.json"
    result = run(f"{file}:net", "--dynamic", "batch,seq", "--batch", "3", "--hardware", "h100-sxm", "--json", str(path))
    assert result.exit_code == 0, result.output
    assert f"wrote {path}" in result.stderr
    data = json.loads(path.read_text())
    assert (data["format"], data["version"], data["hardware"]) == ("autopar-profile", 1, "h100-sxm")
    assert data["sizes"] == {"batch": 3, "seq": 16}
    for name, figure in data["figures"].items():
        assert sympy.sympify(figure["formula"]).subs(data["sizes"]) == figure["value"], name
    assert data["figures"]["forward_flops"]["value"] == 3 * 16 * FORWARD
    assert (
        data["figures"]["peak_bytes"]["value"]
        == data["peak"]["bytes"]
        == sum(part["value"] for part in data["peak"]["parts"].values())
    )
    forward = [op["flops"] for op in data["ops"] if op["phase"] == "forward"]
    assert sum(forward) == data["figures"]["forward_flops"]["value"]
    assert data["seconds"]["step_s"] > 0
    assert next(row["calls"] for row in data["modules"] if row["path"] == "layers.*") == 3


def test_the_course_of_memory_in_json_keeps_the_peak(file: str) -> None:
    data = dumped(f"{file}:net")
    course = data["timeline"]
    levels = [*course["bytes"], course["bytes"][-1] + course["optimizer_step_bytes"]]
    assert max(levels) == data["peak"]["bytes"]
    resting = sum(course["resting"].values())
    parts = [resting + sum(sizes) for sizes in zip(*course["parts"].values(), strict=True)]
    assert parts == course["bytes"]


def test_optimizer_and_precision_are_passed_on(file: str) -> None:
    adam, sgd = dumped(f"{file}:net"), dumped(f"{file}:net", "--optimizer", "sgd", "--precision", "compute=bfloat16")
    assert adam["figures"]["optimizer_bytes"]["value"] > 8 * PARAMETERS
    assert sgd["figures"]["optimizer_bytes"]["value"] == 0
    assert sgd["precision"] == {"parameters": None, "compute": "bfloat16", "reduce": None}
    assert sgd["figures"]["parameter_bytes"]["value"] == 6 * PARAMETERS


@pytest.mark.parametrize("name", ["memory.png", "memory.svg"])
def test_plot(file: str, tmp_path: Path, name: str) -> None:
    result = run(f"{file}:net", "--memory", "100KiB", "--plot", str(tmp_path / name))
    assert result.exit_code == 0, result.output
    start = (tmp_path / name).read_bytes()[:8]
    assert start == (b"\x89PNG\r\n\x1a\n" if name.endswith("png") else b"<?xml ve")


MISTAKES = {
    "no such dim": (["{file}:net", "--dynamic", "width"], "'width' is none of batch, seq"),
    "a dim that the model fixes": (
        ["{file}:fixed", "--dynamic", "seq"],
        "dim 'seq' cannot be dynamic: the model fixes it to 16",
    ),
    "a dim that no input has": (["{file}:rows", "--dynamic", "batch,seq", "--seq", "4"], "takes no 'seq'"),
    "hardware": (["{file}:net", "--hardware", "h999"], "one of a100-40gb, a100-80gb, b200, cpu, h100-pcie"),
    "optimizer": (["{file}:net", "--optimizer", "lion"], "unknown optimizer 'lion': use one of"),
    "precision": (["{file}:net", "--precision", "compute=int8"], "compute='int8' is no floating-point dtype"),
    "part of precision": (["{file}:net", "--precision", "weights=float32"], "'weights' is none of parameters"),
    "bytes": (["{file}:net", "--memory", "80 gigs"], "'80 gigs' is no byte count"),
    "size": (["{file}:net", "--batch", "0"], "batch 0: must be at least 1"),
    "size of an open dim": (["{file}:net", "--batch", "-3", "--dynamic", "batch"], "batch -3: must be at least 1"),
    "picture": (["{file}:net", "--plot", "memory.txt"], "its name must end in one of .png, .svg, .pdf"),
    "folder for JSON": (["{file}:net", "--json", "{folder}"], "is a folder: give a file, as"),
    "file that cannot be written": (["{file}:net", "--json", "{file}/x.json"], "cannot write"),
    "no such model": (["nonsense"], "name it as package.module:function"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_message_and_exit_code_2(name: str, file: str, tmp_path: Path) -> None:
    arguments, message = MISTAKES[name]
    result = run(*(argument.format(file=file, folder=tmp_path) for argument in arguments))
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_help_imports_nothing_slow() -> None:
    code = (
        "import sys\nfrom autopar.cli import app\n"
        "try:\n    app(['profile', '--help'])\nexcept SystemExit as e:\n    assert not e.code\n"
        "print(*sorted({'torch', 'sympy', 'numpy', 'matplotlib', 'autopar.render_profile'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.startswith("Usage:")
    assert shown.splitlines()[-1] == ""


def test_a_config_whose_code_looks_at_its_mask(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}
    path = tmp_path / "bert.json"
    path.write_text(
        json.dumps({"model_type": "bert", "architectures": ["BertForMaskedLM"], "max_position_embeddings": 32} | sizes)
    )
    data = dumped(str(path), "--memory", "10MiB", "--seq", "8", "--batch", "2")
    assert data["budget"]["largest"]["seq"]["size"] == 32
    assert data["budget"]["largest"]["batch"]["size"] > 2
