"""`autopar report`: what it writes with a model at hand and without, and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from autopar.cli import app
from autopar.errors import PlanError
from autopar.ir.pareto import Pareto
from autopar.ir.plan import Plan
from tests.report.pages import front, read
from tests.small_plan import small_plan

MODULE = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self, hidden=16):
        super().__init__()
        self.up, self.down = nn.Linear(8, hidden), nn.Linear(hidden, 2)

    def forward(self, x):
        return {"loss": self.down(torch.relu(self.up(x))).pow(2).mean()}

def two(batch=8):
    return Two(), {"x": torch.zeros(batch, 8)}

def other(batch=8):
    return Two(hidden=32), {"x": torch.zeros(batch, 8)}
"""
SECTIONS = ["mesh", "memory", "time", "model", "ways", "assumptions"]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def sections(path: Path) -> list[str]:
    found = read(path.read_text(encoding="utf-8"))
    return [value for tag, name, value in found.attributes if tag == "section" and name == "id"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "models.py"
    path.write_text(MODULE)
    return path


@pytest.fixture(scope="module")
def made(models: Path) -> Path:
    """A plan from the command line."""
    path = models.parent / "plan.json"
    result = run("plan", f"{models}:two", "--mesh", "2x2", "--batch", "16", "--time-limit", "5", "--no-cache", "-o", path)
    assert result.exit_code == 0, result.output
    return path


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A plan that does not say how its model is built."""
    small_plan().save(tmp_path / "plan.json")
    return tmp_path / "plan.json"


def test_a_plan_with_its_model_has_everything(made: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "report.html"
    result = run("report", made, "-o", page)
    assert result.exit_code == 0, result.output
    assert f"wrote {page}" in result.stderr
    assert sections(page) == SECTIONS
    text = page.read_text()
    assert 'class="absent"' not in text
    assert f"({int(Plan.load(made).peak_bytes):,} bytes)" in text
    assert "ddp" in read(text).text


def test_no_compare_leaves_the_known_ways_out_and_says_so(made: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert run("report", made, "-o", page, "--no-compare").exit_code == 0
    found = read(page.read_text())
    assert f"--no-compare was given. autopar report {made} -o {page}" in found.text
    assert 'id="memory-plot"' in page.read_text()


def test_without_a_name_the_page_lies_beside_the_plan(bare: Path) -> None:
    assert run("report", bare).exit_code == 0
    assert bare.with_suffix(".html").exists()


def test_a_plan_alone_says_how_to_have_the_rest(bare: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    result = run("report", bare, "-o", page)
    assert result.exit_code == 0, result.output
    assert sections(page) == SECTIONS
    assert f"autopar report {bare} --model MODEL -o {page}" in read(page.read_text()).text


def test_a_model_that_is_gone_is_missing_and_one_that_was_named_must_do(made: Path, models: Path, tmp_path: Path) -> None:
    plan = json.loads(made.read_text())
    plan["origin"]["model"] = str(tmp_path / "gone.py:two")
    moved, page = tmp_path / "moved.json", tmp_path / "report.html"
    moved.write_text(json.dumps(plan))
    result = run("report", moved, "-o", page, "--no-compare")
    assert result.exit_code == 0, result.output
    assert "note: the page is made of the plan alone" in result.stderr
    assert "gone.py" in read(page.read_text()).text
    assert run("report", moved, "-o", page, "--no-compare", "--model", f"{models}:two").exit_code == 0
    assert 'id="memory-plot"' in page.read_text()
    result = run("report", moved, "-o", page, "--model", f"{models}:other")
    assert result.exit_code == 2
    assert "the plan was made for another program" in result.stderr


def test_a_front_is_reported_by_its_fastest_plan_or_by_the_one_that_was_asked_for(tmp_path: Path) -> None:
    path, page = tmp_path / "front.json", tmp_path / "report.html"
    Pareto(plans=front()).save(path)
    for options, said in (((), "point 3 of 3"), (("--point", "1"), "point 1 of 3")):
        assert run("report", path, "-o", page, *options).exit_code == 0
        assert said in read(page.read_text()).text
        assert "front" in sections(page)
    result = run("report", path, "-o", page, "--point", "4")
    assert result.exit_code == 2
    assert "has 3 plans: --point 4 is none of them" in result.stderr


def test_places_where_no_page_can_be(bare: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for output, said in (
        (tmp_path, f"is a folder: give a file for the page, as {tmp_path / 'report.html'}"),
        (bare, "is the plan itself: give another file for the page"),
        (tmp_path / "file" / "report.html", "cannot write"),
    ):
        result = run("report", bare, "-o", output)
        assert result.exit_code == 2, result.output
        assert said in result.stderr
    assert Plan.load(bare) == small_plan()


def test_files_that_are_no_plan(bare: Path, tmp_path: Path) -> None:
    newer = tmp_path / "newer.json"
    newer.write_text(json.dumps(json.loads(bare.read_text()) | {"version": 99}))
    for path, said in ((newer, "plan version 99, this autopar reads version 1"), (tmp_path / "none.json", "cannot read")):
        result = run("report", path, "-o", tmp_path / "report.html")
        assert result.exit_code == 2
        assert said in result.stderr
        assert isinstance(result.exception, SystemExit)
    with pytest.raises(PlanError):
        Plan.load(newer)
    assert not (tmp_path / "report.html").exists()
