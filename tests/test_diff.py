"""`autopar diff`: every difference of two plans is said once, in words that `autopar show` uses; equal plans have none."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from autopar.cli import app
from autopar.ir.pareto import Pareto
from autopar.ir.plan import Plan
from autopar.plan_diff import Change, changes
from tests.small_plan import DATA, costing, small_plan


def changed(*path: str | int, to: Any) -> Plan:
    """The small plan with one field replaced, or added."""
    data = copy.deepcopy(DATA)
    place: Any = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return Plan.model_validate(data)


def diff(*arguments: Path | str) -> Result:
    return CliRunner().invoke(app, ["diff", *map(str, arguments)])


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Two plans, the second of which takes less time and keeps less."""
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    costing(2.0 * 2**30, 0.4).save(one)
    costing(1.0 * 2**30, 0.5).save(other)
    return one, other


def test_a_plan_differs_in_nothing_from_itself(files: tuple[Path, Path]) -> None:
    assert changes(small_plan(), small_plan()) == []
    result = diff(files[0], files[0])
    assert (result.exit_code, result.stdout.strip()) == (0, "the plans decide and predict the same")
    assert json.loads(diff(files[0], files[0], "--json").stdout) == []


@pytest.mark.parametrize(
    ("path", "to", "expected"),
    [
        (("optimizer",), "sgd", {"part": "setting", "name": "optimizer", "before": "adamw", "after": "sgd"}),
        (("budget_bytes",), None, {"part": "setting", "name": "budget", "before": 2**30, "after": None, "unit": "bytes"}),
        (("step_time_s",), 0.02, {"part": "figures", "name": "step time", "before": 0.0132, "after": 0.02, "unit": "s"}),
        (
            ("figures", "time_s", "recomputation"),
            0.1,
            {"part": "figures", "name": "  recomputation", "before": 0.00004, "after": 0.1, "unit": "s"},
        ),
        (
            ("state", "wte.weight", "placement"),
            "I, I",
            {"part": "state at rest", "name": "wte.weight", "before": "I, S(1)", "after": "I, I"},
        ),
        (
            ("state", "h.2.ln.weight", "placement"),
            "S(0), I",
            {"part": "state at rest", "name": "h.2.ln.weight", "before": "I, I", "after": "S(0), I"},
        ),
        (
            ("boundaries", "wte_embedding"),
            "I, I",
            {"part": "between layers", "name": "wte_embedding", "before": "S(0), I", "after": "I, I"},
        ),
        (
            ("bucket_bytes",),
            {"gpu": 4096},
            {"part": "setting", "name": "buckets on gpu", "before": None, "after": 4096, "unit": "bytes"},
        ),
        (
            ("mesh", "links"),
            [None, "nvlink-4"],
            {"part": "setting", "name": "links", "before": None, "after": "by nodes, nvlink-4"},
        ),
        (
            ("regions", "h.*", "units", "add", "factors"),
            ["d0", None],
            {
                "part": "layers",
                "name": "h.*: add",
                "before": "node batch d0, gpu partial sums",
                "after": "node batch d0, gpu ·",
            },
        ),
        (
            ("regions", "end", "classes", 0, "kept_internals"),
            [],
            {
                "part": "layers",
                "name": "end: cross_entropy_loss",
                "before": "node batch b, gpu tensor c; inside",
                "after": "node batch b, gpu tensor c",
            },
        ),
    ],
)
def test_one_change_is_one_line(path: tuple[str | int, ...], to: Any, expected: dict[str, Any]) -> None:
    assert changes(small_plan(), changed(*path, to=to)) == [Change(**expected)]
    back = expected | {"before": expected["after"], "after": expected["before"]}
    assert changes(changed(*path, to=to), small_plan()) == [Change(**back)]


def test_equal_layers_that_change_alike_are_one_line() -> None:
    moved = {f"h.{i}.ln.weight": DATA["state"][f"h.{i}.ln.weight"] | {"placement": "S(0), I"} for i in range(1, 4)}
    found = changes(small_plan(), small_plan(state=DATA["state"] | moved))
    assert found == [Change(part="state at rest", name="h.*.ln.weight", before="I, I", after="S(0), I", times=3)]


def test_what_only_some_calls_do_says_which() -> None:
    classes = copy.deepcopy(DATA["regions"]["h.*"]["classes"])
    classes[2]["kept_internals"] = []
    (found,) = changes(small_plan(), changed("regions", "h.*", "classes", to=classes))
    assert found.name == "h.*: ln_layer_norm"
    assert found.before == "node batch b, gpu sequence s; redo in calls 0–1; inside in calls 2–3"
    assert found.after == "node batch b, gpu sequence s; redo in calls 0–1"


def test_other_models_differ_in_all_they_have() -> None:
    other = small_plan(model="Other", state={}, regions={})
    found = changes(small_plan(), other)
    assert {c.part for c in found} == {"setting", "state at rest", "layers"}
    assert all(c.after is None for c in found if c.part != "setting")
    assert sum(c.times for c in found if c.part == "state at rest") == len(DATA["state"])


def test_tables_say_by_how_much(files: tuple[Path, Path]) -> None:
    result = diff(*files)
    assert result.exit_code == 1
    lines = {line.split("  ")[0].strip(): line for line in result.stdout.splitlines()}
    assert "400 ms" in lines["step time"]
    assert lines["step time"].rstrip().endswith("+25.0 %")
    assert lines["peak"].rstrip().endswith("-50.0 %")
    found = json.loads(diff(*files, "--json").stdout)
    assert {"part": "figures", "name": "step time", "before": 0.4, "after": 0.5, "unit": "s", "times": 1} in found


def test_it_fits_a_narrow_terminal(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autopar.tables.PLAIN_WIDTH", 60)
    assert max(map(len, diff(*files).stdout.splitlines())) <= 60


def test_files_that_are_no_plan(files: tuple[Path, Path], tmp_path: Path) -> None:
    broken, front = tmp_path / "broken.json", tmp_path / "front.json"
    broken.write_text("{")
    Pareto(plans=(costing(1.0, 0.4), costing(2.0, 0.3)), complete=True).save(front)
    for path, message in ((tmp_path / "none.json", "none.json"), (broken, "broken.json"), (front, "has 2 plans")):
        for order in ((files[0], path), (path, files[0])):
            result = diff(*order)
            assert result.exit_code == 2
            assert result.stderr.startswith("error: ")
            assert message in result.stderr
