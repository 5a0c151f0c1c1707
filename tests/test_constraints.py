"""Constraints from the outside: each visibly changes the plan as it says, by the plan's own JSON, and the plan still trains."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import autopar
from autopar.api import plan_program
from autopar.cli import app
from autopar.errors import BudgetError, ConstraintError, MeshError
from autopar.ir.mesh import MeshSpec
from autopar.planning import advice
from autopar.tracer import trace
from tests.hardware_toy import toy_hardware
from tests.models import VOCAB, mlp
from tests.planned import GAP, TIME_LIMIT_S, traced

LAYERS = {"llama": "model.layers.*", "gpt2": "transformer.h.*"}


def constrained(name: str, **fields: Any) -> autopar.Plan:
    """A plan on 2x2 under these constraints, as it comes back from its JSON."""
    return autopar.Plan.from_json(_constrained(name, autopar.Constraints(**fields)).to_json())


def _constrained(name: str, constraints: autopar.Constraints) -> autopar.Plan:
    options: dict[str, Any] = {"hardware": toy_hardware(), "gap": GAP, "time_limit_s": TIME_LIMIT_S}
    return plan_program(traced(name).program, MeshSpec.of("2x2"), constraints=constraints, **options)[0]


@lru_cache(maxsize=2)
def free(name: str) -> autopar.Plan:
    return _constrained(name, autopar.Constraints())


def roles(plan: autopar.Plan, axis: int, *, kind: str | None = None, path: str = "") -> set[str | None]:
    """What the units of the layers do on an axis, of those of a kind or whose names begin so."""
    (layer,) = (name for name in plan.regions if name.endswith("*"))
    units = plan.regions[layer].units.items()
    return {unit.roles[axis] for name, unit in units if kind in (None, unit.kind) and name.startswith(path)}


def everywhere(plan: autopar.Plan, axis: int, kinds: tuple[str, ...]) -> set[str | None]:
    return {u.roles[axis] for r in plan.regions.values() for u in r.units.values() if u.kind in kinds}


PRODUCTS = ("matmul", "attention", "embedding", "loss")


def test_without_constraints() -> None:
    plan = free("llama")
    assert plan.constraints == autopar.Constraints()
    assert "tensor" not in roles(plan, 1, kind="matmul", path="mlp"), "the tests below change this"
    assert any(isinstance(s, int) for t in plan.state.values() for s in t.placement.states)


def test_tensor_parallel_mlp() -> None:
    plan = constrained("llama", pins=["model.layers.*.mlp: tensor=gpu"])
    assert roles(plan, 1, kind="matmul", path="mlp") == {"tensor"}
    assert plan.constraints.pins == ("model.layers.*.mlp: tensor=gpu",)
    assert plan.step_time_s >= free("llama").step_time_s * (1 - GAP)
    assert plan.notes == ()


def test_every_product_cuts_the_batch() -> None:
    plan = constrained("gpt2", pins=["kind=matmul: batch=*", "kind=attention: batch=*", "kind=loss: batch=*"])
    assert {axis: roles(plan, axis, kind="matmul") for axis in (0, 1)} == {0: {"batch"}, 1: {"batch"}}
    assert roles(plan, 0, kind="attention") == {"batch"}


def test_what_is_banned_does_not_occur() -> None:
    plan = constrained("gpt2", bans=["**: batch=*", "kind=matmul: sequence=node"])
    for axis in (0, 1):
        assert "batch" not in {u.roles[axis] for r in plan.regions.values() for u in r.units.values()}
    assert "sequence" not in everywhere(plan, 0, ("matmul",))
    assert "batch" in {r for axis in (0, 1) for r in everywhere(free("gpt2"), axis, PRODUCTS)}, "it does when allowed"


def test_parameters_that_stay_whole() -> None:
    plan = constrained("gpt2", parameters="whole")
    assert {str(t.placement) for t in plan.state.values()} == {"I, I"}
    gathered = {
        c.tensor
        for r in plan.regions.values()
        for c in r.converted
        if "weight" in c.tensor and len(c.after.sharded_dims()) < len(c.before.sharded_dims())
    }
    assert not gathered


def test_parameters_that_rest_where_they_are_given() -> None:
    given = {"model.layers.*.mlp.*.weight": "S(0) on gpu, whole on node", "lm_head.weight": "S(1) on node"}
    plan = constrained("llama", parameters=given)
    mlp = {str(t.placement) for name, t in plan.state.items() if ".mlp." in name}
    assert mlp == {"I, S(0)"}
    assert plan.state["lm_head.weight"].placement.states[0] == 1
    assert plan.constraints.parameters == given


def test_rows_per_device() -> None:
    """8 rows and at least 8 of them on each device: nobody cuts the batch."""
    plan = constrained("gpt2", min_micro_batch=8)
    assert all("batch" not in u.roles for r in plan.regions.values() for u in r.units.values())
    plan = constrained("gpt2", min_micro_batch=4)
    assert max(u.roles.count("batch") for r in plan.regions.values() for u in r.units.values()) == 1


@pytest.mark.slow
def test_nothing_is_redone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an MLP with many rows the least memory takes recomputation; without, it takes more."""
    monkeypatch.setattr(advice, "what_would_help", lambda *_: ())
    model, kwargs = mlp(batch=4096, layers=8)
    program = trace(model, (), kwargs)

    def plan(memory: int, **fields: Any) -> autopar.Plan:
        # time enough to end: where it is cut short, two searches may find two least plans; on 2x2 all of them are
        options: dict[str, Any] = {"hardware": toy_hardware(), "gap": GAP, "time_limit_s": 30.0}
        constraints = autopar.Constraints(**fields)
        return plan_program(program, MeshSpec.of("4"), memory=memory, constraints=constraints, **options)[0]

    def smallest(**fields: Any) -> int:
        with pytest.raises(BudgetError) as caught:
            plan(1000, **fields)
        return int(caught.value.smallest_bytes)

    without, least = smallest(recompute="never"), smallest()
    assert least + 4096 < without
    assert not any(c.redone for r in plan(without + 4096, recompute="never").regions.values() for c in r.classes)
    assert any(c.redone for r in plan(least + 4096).regions.values() for c in r.classes)


@pytest.mark.parametrize(
    ("role", "pins"),
    [
        pytest.param("batch", ["kind=matmul: batch=node", "kind=attention: batch=node"], marks=pytest.mark.exhaustive),
        ("tensor", ["model.layers.*.mlp: tensor=gpu", "model.layers.*.self_attn kind=matmul: tensor=gpu"]),
        pytest.param("sequence", ["kind=matmul: sequence=gpu", "kind=attention: sequence=gpu"], marks=pytest.mark.slow),
    ],
)
def test_pinned_plans_equal_the_serial_run(role: str, pins: list[str]) -> None:
    case = traced("llama")
    options: dict[str, Any] = {"hardware": toy_hardware(), "gap": GAP, "time_limit_s": TIME_LIMIT_S, "steps": 2}
    report = autopar.verify(case.model, "2x2", kwargs=case.kwargs, constraints=autopar.Constraints(pins=pins), **options)
    assert role in everywhere(report.plan, 0 if role == "batch" else 1, ("matmul",))
    assert report.ok, report.tensors[:3]


def test_an_axis_that_the_mesh_lacks_is_seen_before_tracing() -> None:
    class Untraceable(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError("traced")

    wrong = autopar.Constraints(pins=["**: batch=gpus"])
    for call in (autopar.plan, autopar.verify):
        with pytest.raises(ConstraintError, match="names no axis of the mesh, which has node, gpu"):
            call(Untraceable(), "2x2", (torch.ones(2),), constraints=wrong)


@pytest.mark.parametrize("mesh", ["0", "8x0", (0,), 0, "data=0,tensor=2"])
def test_zero_devices(mesh: Any) -> None:
    with pytest.raises(MeshError, match="every axis needs at least one device"):
        autopar.plan(traced("gpt2").model, mesh, kwargs=traced("gpt2").kwargs)


@pytest.mark.parametrize(
    ("mesh", "processes", "message"),
    [
        ("2x4", None, "mesh 2x4 has 8 devices, this job has 1 process: start it with `torchrun --nproc-per-node 8`"),
        ((2, 4), "4", r"this job has 4 processes: .*choose a mesh of 4"),
        (
            "2x2",
            "4",
            r"only the shape of a mesh: pass .*init_device_mesh\('cuda', \(2, 2\), mesh_dim_names=\('node', 'gpu'\)\)",
        ),
    ],
)
def test_a_mesh_that_the_job_does_not_have(
    mesh: Any, processes: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if processes:
        monkeypatch.setenv("WORLD_SIZE", processes)
    with pytest.raises(MeshError, match=message):
        autopar.compile(torch.nn.Linear(2, 2), mesh)


MODULE = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
from tests.models import gpt2, mlp
"""


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "tiny.py").write_text(MODULE)
    return f"{tmp_path / 'tiny.py'}"


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments)


def test_the_command_line_with_a_file_and_options(model: str, tmp_path: Path) -> None:
    file, path = tmp_path / "constraints.yaml", tmp_path / "plan.json"
    file.write_text('pins:\n  - transformer.h.*.mlp: tensor=gpu\nbans: ["**: sequence=*"]\n')
    more = ("--pin", "kind=attention: batch=node", "--ban", "lm_head: tensor=node", "--min-micro-batch", "2")
    limits = ("--gap", "0.02", "--time-limit", "8")
    result = run("plan", f"{model}:gpt2", "--mesh", "2x2", "--constraints", str(file), *more, *limits, "-o", str(path))
    assert result.exit_code == 0, result.output
    data = json.loads(path.read_text())
    assert data["constraints"] == {
        "pins": ["transformer.h.*.mlp: tensor=gpu", "kind=attention: batch=node"],
        "bans": ["**: sequence=*", "lm_head: tensor=node"],
        "parameters": "free",
        "recompute": "free",
        "min_micro_batch": 2,
        "checkpoints": "honour",
    }
    units = data["regions"]["transformer.h.*"]["units"]
    assert {u["roles"][1] for n, u in units.items() if u["kind"] == "matmul" and n.startswith("mlp")} == {"tensor"}
    assert {u["roles"][0] for u in units.values() if u["kind"] == "attention"} == {"batch"}
    assert not any("sequence" in u["roles"] for r in data["regions"].values() for u in r["units"].values())
    assert VOCAB in data["state"]["transformer.wte.weight"]["shape"]
    shown = run("show", str(path)).stdout
    for line in ("pin 'transformer.h.*.mlp: tensor=gpu'", "ban 'lm_head: tensor=node'", "min_micro_batch 2"):
        assert line in shown


MISTAKES = {
    "malformed": (["--pin", "mlp"], "pin 'mlp' is not of the form SELECTOR: STATEMENT"),
    "axis": (["--pin", "mlp: tensor=gpus"], "names no axis of the mesh, which has node, gpu. Did you mean gpu?"),
    "role": (["--ban", "mlp: tensr=gpu"], "Did you mean tensor? Say a role on an axis (batch=AXIS,"),
    "placement": (["--pin", "mlp: out=Q on gpu"], "'Q' in 'out=Q on gpu' is no placement on an axis: use S(0)"),
    "module": (["--pin", "block.*: tensor=gpu"], "Did you mean blocks.*"),
    "contradiction": (
        ["--pin", "blocks.*: tensor=gpu", "--ban", "kind=matmul: tensor=gpu"],
        "pin 'blocks.*: tensor=gpu' and ban 'kind=matmul: tensor=gpu' contradict each other",
    ),
    "no file": (["--constraints", "no.yaml"], "cannot read constraints no.yaml: No such file"),
    "bad YAML": (["--constraints", "{bad}"], "line 1 is no YAML"),
    "rows": (["--min-micro-batch", "99"], "min_micro_batch 99 is more than the whole batch, 8 rows"),
    "budget": (["--memory", "70"], "'70' has no unit, did you mean 70GiB?"),
    "mesh": (["--mesh", "8x0"], "every axis needs at least one device"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_message_and_exit_code_2(name: str, model: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("pins: [a")
    arguments, message = MISTAKES[name]
    given = [argument.format(bad=tmp_path / "bad.yaml") for argument in arguments]
    result = run("plan", f"{model}:mlp", *([] if "--mesh" in given else ["--mesh", "2x2"]), *given)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
