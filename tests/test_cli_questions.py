"""Plans are questioned from the command line with nothing but their file: they say how their model is built."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

import autopar
from autopar.cli import app
from autopar.ir.plan import Plan
from tests.small_plan import small_plan

MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, x, y):
        return nn.functional.mse_loss(self.down(self.up(x).relu()), y)

def net(batch=64):
    return Net(), {"x": torch.zeros(batch, 64), "y": torch.zeros(batch, 64)}
"""


TABLE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(5, 32), nn.Linear(32, 5)

    def forward(self, tokens):
        return nn.functional.cross_entropy(self.head(self.table(tokens)), tokens)

def build():
    return Net(), {"tokens": torch.randint(5, (64,))}
"""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("questions")
    (folder / "models.py").write_text(MODULE)
    result = run(
        "plan", f"{folder / 'models.py'}:net", "--mesh", "gpu=4", "--batch", 32, "--memory", "1MiB", "-o", folder / "plan.json"
    )
    assert result.exit_code == 0, result.output
    return folder / "plan.json"


def test_a_plan_says_how_it_was_made(path: Path) -> None:
    origin = Plan.load(path).origin
    assert origin is not None
    assert origin.model.endswith("models.py:net")
    assert (origin.batch, origin.seq, origin.hardware, origin.global_batch) == (32, None, "cpu", None)
    assert origin.versions["autopar"] == autopar.__version__


class TestCompare:
    def test_json_has_the_plan_first(self, path: Path) -> None:
        result = run("compare", path, "--json", "--ways", "ddp,fsdp")
        assert result.exit_code == 0, result.output
        found, plan = json.loads(result.stdout), Plan.load(path)
        assert [way["name"] for way in found["ways"]] == ["this plan", *["ddp"] * 3, *["fsdp"] * 3]
        assert found["ways"][0]["step_time_s"] == plan.step_time_s
        assert all(way["clock_s"] > 0 for way in found["ways"])

    def test_tables_say_who_is_best(self, path: Path) -> None:
        result = run("compare", path)
        assert result.exit_code == 0, result.output
        assert "the best of the known ways that fit is" in result.stdout
        assert "on clock" in result.stdout
        assert "no place here: hsdp, tp+sp, 2d, ulysses, ep" in result.stdout

    def test_unknown_ways_are_named(self, path: Path) -> None:
        result = run("compare", path, "--ways", "dpp")
        assert (result.exit_code, "'dpp' is none of ddp, zero1" in result.stderr) == (2, True)


class TestExplain:
    def test_where_the_time_goes(self, path: Path) -> None:
        result = run("explain", path)
        assert result.exit_code == 0, result.output
        assert "up_linear" in result.stdout
        assert "on the clock of its graphs a step takes" in result.stdout

    def test_a_module(self, path: Path) -> None:
        result = run("explain", path, "up", "--json")
        (one,) = json.loads(result.stdout)
        assert (one["unit"], one["op"], one["path"]) == ("up_linear", "aten.linear.default", "up")
        assert sum(a["chosen"] for a in one["alternatives"]) == 1
        assert "chosen" in run("explain", path, "up").stdout

    def test_many_units_are_one_table(self, path: Path) -> None:
        assert "next best" in run("explain", path, "**").stdout

    def test_an_unknown_module_names_what_is_there(self, path: Path) -> None:
        result = run("explain", path, "upp")
        assert (result.exit_code, "no module 'upp'" in result.stderr, "up" in result.stderr) == (2, True, True)

    def test_why_not_writes_the_plan(self, path: Path, tmp_path: Path) -> None:
        output = tmp_path / "other.json"
        result = run("explain", path, "--why-not", "up: tensor=gpu", "-o", output)
        assert result.exit_code == 0, result.output
        assert "pin 'up: tensor=gpu' costs" in result.stdout
        other = Plan.load(output)
        assert other.constraints.pins == ("up: tensor=gpu",)
        assert other.origin == Plan.load(path).origin

    def test_why_not_exits_with_1_where_nothing_can_be(self, path: Path) -> None:
        result = run("explain", path, "--why-not", "up: S(5) on gpu")
        assert (result.exit_code, "there is no such plan: " in result.stdout) == (1, True)
        answer = json.loads(run("explain", path, "--why-not", "up: S(5) on gpu", "--json").stdout)
        assert answer["changes"] is None

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["up", "--why-not", "up: tensor=gpu"], "one at a time"),
            (["-o", "x.json"], "is for the plan that --why-not finds"),
            (["--why-not", "up tensor"], "is not of the form"),
            (["--why-not", "up: tensor=node"], "names no axis"),
        ],
    )
    def test_bad_input(self, path: Path, options: list[str], message: str) -> None:
        result = run("explain", path, *options)
        assert (result.exit_code, message in result.stderr.replace("\n", " ")) == (2, True), result.output


class TestVerify:
    def test_a_plan_needs_nothing_else(self, path: Path) -> None:
        result = run("verify", path)
        assert result.exit_code == 0, result.output
        assert "equal: largest relative error" in result.stdout

    def test_inputs_are_those_that_the_function_makes(self, tmp_path: Path) -> None:
        """Of a table of 5 rows no other is asked for; a plan in mixed precision says so itself."""
        (tmp_path / "table.py").write_text(TABLE)
        plan = tmp_path / "plan.json"
        made = run("plan", f"{tmp_path / 'table.py'}:build", "--mesh", "2", "--precision", "compute=bfloat16", "-o", plan)
        assert made.exit_code == 0, made.output
        result = run("verify", plan)
        assert result.exit_code == 0, result.output

    def test_what_is_no_file_of_ours_says_so(self, tmp_path: Path) -> None:
        (tmp_path / "torn.json").write_text('{"format": "autopar-plan"')
        assert "is no JSON" in run("verify", tmp_path / "torn.json").stderr
        assert "No such file" in run("verify", tmp_path / "none.json").stderr

    def test_what_a_plan_says_is_not_said_again(self, path: Path) -> None:
        result = run("verify", path, "--mesh", "2")
        assert (result.exit_code, "leave out --mesh" in result.stderr) == (2, True)

    def test_a_model_needs_a_mesh(self, path: Path) -> None:
        result = run("verify", f"{path.parent / 'models.py'}:net")
        assert (result.exit_code, "needs a mesh" in result.stderr) == (2, True)

    @pytest.mark.slow
    def test_a_config_is_verified_on_a_reduced_model(self, tmp_path: Path) -> None:
        config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 256, "n_head": 4, "n_layer": 4}
        (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 1001, "n_positions": 128}))
        plan = tmp_path / "plan.json"
        made = run("plan", tmp_path / "config.json", "--mesh", "2x2", "--batch", 8, "--seq", 128, "-o", plan)
        assert made.exit_code == 0, made.output
        result = run("verify", plan, "--steps", 2)
        assert result.exit_code == 0, result.output
        assert "verified on a reduced model" in result.stderr
        assert "2 of 4 repeated layers, input_ids [4, 16]" in result.stderr


class TestOtherSizes:
    def test_batches_of_other_sizes_are_planned_around_the_parameters(self, path: Path, tmp_path: Path) -> None:
        """A batch of the same size gives the same plan; one that does not fit, and one that nothing divides, say so."""
        output, net = tmp_path / "plan.json", f"{path.parent / 'models.py'}:net"
        options = ("--mesh", "gpu=4", "--batch", 32, "--memory", "1MiB", "--dynamic", "batch=32,64,100000")
        result = run("plan", net, *options, "-o", output)
        assert result.exit_code == 0, result.output
        assert "other sizes, with parameters resting as they do here" in result.stdout
        plan = Plan.load(output)
        same, twice, large = plan.other_sizes
        assert same.step_time_s == pytest.approx(plan.step_time_s, rel=1e-3)
        assert twice.step_time_s is not None
        assert twice.step_time_s > plan.step_time_s
        assert (large.sizes, large.step_time_s, "GiB" in large.reason or "MiB" in large.reason) == (
            {"batch": 100000},
            None,
            True,
        )

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--dynamic", "length=5"], "give sizes, as seq=1024,4096"),
            (["--dynamic", "batch=5,x"], "'x' is no size"),
            (["--dynamic", "batch=5", "--dynamic", "batch=6"], "names batch twice"),
            (["--dynamic", "batch=5", "--pareto"], "is for one plan of one batch"),
        ],
    )
    def test_bad_input(self, path: Path, options: list[str], message: str) -> None:
        result = run("plan", f"{path.parent / 'models.py'}:net", "--mesh", "4", *options)
        assert (result.exit_code, message in result.stderr.replace("\n", " ")) == (2, True), result.output


class TestWithoutOrigin:
    @pytest.fixture
    def silent(self, path: Path, tmp_path: Path) -> Path:
        Plan.load(path).model_copy(update={"origin": None}).save(tmp_path / "silent.json")
        return tmp_path / "silent.json"

    def test_the_model_must_be_named(self, silent: Path) -> None:
        result = run("compare", silent)
        assert (result.exit_code, "name it with --model" in result.stderr) == (2, True)

    def test_and_then_its_sizes_are_those_of_the_inputs(self, silent: Path, path: Path) -> None:
        result = run("explain", silent, "up", "--model", f"{path.parent / 'models.py'}:net")
        assert result.exit_code == 0, result.output

    @pytest.mark.parametrize(
        ("moved", "option"), [({"model": "gone.py:net"}, "--model"), ({"hardware": "gone.json"}, "--hardware")]
    )
    def test_what_has_moved_can_be_named(self, path: Path, tmp_path: Path, moved: dict[str, str], option: str) -> None:
        plan = Plan.load(path)
        assert plan.origin is not None
        origin = plan.origin.model_copy(update=moved)
        plan.model_copy(update={"origin": origin}).save(tmp_path / "moved.json")
        result = run("explain", tmp_path / "moved.json")
        assert (result.exit_code, f"{option} says where it is now" in result.stderr.replace("\n", " ")) == (2, True)

    def test_another_model_is_refused(self, path: Path) -> None:
        (path.parent / "other.py").write_text(MODULE.replace("256", "128"))
        result = run("compare", path, "--model", f"{path.parent / 'other.py'}:net")
        assert (result.exit_code, "was made for another program" in result.stderr) == (2, True)


class TestShow:
    def test_modules(self, path: Path) -> None:
        shown = run("show", path, "--module", "up").stdout
        assert "up_linear" in shown
        assert "down_linear" not in shown
        assert "up.weight" in shown

    def test_unknown_modules_name_close_ones(self, path: Path) -> None:
        result = run("show", path, "--module", "dwn")
        assert (result.exit_code, "Did you mean down?" in result.stderr) == (2, True)

    def test_json(self, path: Path) -> None:
        found = json.loads(run("show", path, "--json").stdout)
        assert {row["unit"] for row in found["units"]} >= {"up_linear", "down_linear"}
        assert found["figures"]["memory_bytes"]
        assert "regions" not in found

    def test_plans_without_modules_say_so(self, tmp_path: Path) -> None:
        small_plan().save(tmp_path / "old.json")
        result = run("show", tmp_path / "old.json", "--module", "up")
        assert (result.exit_code, "does not say which modules" in result.stderr) == (2, True)


class TestShown:
    def test_tables_on_terminals_and_in_notebooks(self) -> None:
        plan = small_plan()
        console = Console(width=140, record=True, file=io.StringIO())
        console.print(plan)
        text = console.export_text()
        assert "layer type" in text
        html = plan._repr_html_()
        assert html.startswith("<pre")
        assert "layer type" in html
        assert repr(plan).startswith("<Plan of ")

    def test_rows_and_the_graph(self, path: Path) -> None:
        plan = Plan.load(path)
        rows = plan.table()
        assert [row["unit"] for row in rows] == [unit for region in plan.regions.values() for unit in region.units]
        assert {len(row) for row in rows} == {len(rows[0])}
        assert [row["module"] for row in plan.table("down")] == ["down"]
        graph = plan.to_networkx()
        region = next(iter(plan.regions))
        assert graph.has_edge((region, "x"), (region, "up_linear"))
        assert graph.nodes[region, "up_linear"]["what"] == "unit"
        assert graph.nodes[region, "x"]["what"] == "tensor"
