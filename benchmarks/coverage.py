"""Which models work: every model of the zoo on every mesh, traced, planned, emitted, and equal to the serial run in float64.

    python -m benchmarks.coverage                                   # the zoo on four meshes
    python -m benchmarks.coverage --models llama,resnet --meshes 2,2x2 --forced tensor
    python -m benchmarks.coverage --models more --meshes 2x2        # 216 more classes of transformers
    python -m benchmarks.coverage --table                           # only write the table of what is known

Models are tiny, with random weights, and hardware is made up so that cutting pays (`tests/hardware_toy.py`): plans of tiny
models on real hardware would cut nothing, and prove nothing. `--forced` adds rows in which the first axis must cut the batch,
the sequence, or what tensor parallelism cuts. Every row is a line of JSON; one that succeeded is not run again, unless with
`--again`. Exit code 1 if a row of this run is not equal.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import autopar
from autopar.api import plan_program
from autopar.errors import AutoparError, ConstraintError
from autopar.ir.mesh import MeshSpec
from autopar.ir.plan import Plan
from autopar.ir.program import Program
from autopar.ops.rule import WHOLE
from autopar.ops.units import fitted, is_getitem, is_size
from autopar.tracer import trace
from autopar.verification import verify
from benchmarks.coverage_table import cell, document
from tests.hardware_toy import toy_hardware
from tests.zoo import ZOO
from tests.zoo_more import MORE
from tests.zoo_plain import PLAIN
from tests.zoo_science import SCIENCE

MESHES = ("2", "4", "2x2", "2x4")
FORCED = ("batch", "tensor", "sequence")
BATCH, SEQ = 8, 16
FIXED_SEQ = frozenset({"whisper"})
"""Their positions are learned: the zoo's own size is the only one."""
TIME_LIMIT_S, GAP = 20.0, 0.02
Row = dict[str, Any]
Case = tuple[nn.Module, dict[str, torch.Tensor]]


def of_zoo(name: str) -> Callable[[], Case]:
    return lambda: ZOO[name].build(batch=BATCH, seq=0 if name in FIXED_SEQ else SEQ)


FURTHER: dict[str, Callable[[], Case]] = {name: functools.partial(setup.build, batch=BATCH) for name, setup in MORE.items()}
NAMED = {"falcon": "FalconForCausalLM", "detr": "DetrForObjectDetection"}
MODELS: dict[str, Callable[[], Case]] = {
    **{name: of_zoo(name) for name in ZOO},
    **{name: FURTHER[of] for name, of in NAMED.items()},
    **SCIENCE,
    **PLAIN,
}


def kept_whole(program: Program) -> Counter[str]:
    """Ops none of whose loops may be cut, though they have some, by name."""
    found: Counter[str] = Counter()
    for call in program.calls:
        for node in program.regions[call.region].graph.nodes:
            if node.op != "call_function" or is_getitem(node) or is_size(node):
                continue
            signature = fitted(node)
            if signature.sizes and all(WHOLE in marks for marks in signature.marks.values()):
                found[str(node.target)] += 1
    return found


def roles(plan: Plan) -> Counter[str]:
    """How many units cut what, on any axis; "units" has all, "cut" those that cut anything."""
    found: Counter[str] = Counter()
    for region in plan.regions.values():
        for unit in region.units.values():
            cut = {role for role in unit.roles if role is not None}
            found.update({"units", *cut, *(("cut",) if cut else ())})
    return found


def forcing(role: str, mesh: MeshSpec) -> Iterator[autopar.Constraints]:
    """Pins that make the first axis cut this, from the most to the least that is asked for."""
    axis = mesh.names[0]
    for selector in ("**", "kind=matmul", "kind=attention"):
        yield autopar.Constraints(pins=[f"{selector}: {role}={axis}"])


def planned(program: Program, mesh: MeshSpec, force: str) -> tuple[Plan, str]:
    """The plan, and the pin that it obeys; raises the last refusal."""
    options: dict[str, Any] = {"memory": None, "hardware": toy_hardware(), "time_limit_s": TIME_LIMIT_S, "gap": GAP}
    if not force:
        return plan_program(program, mesh, **options)[0], ""
    refusal: AutoparError | None = None
    for wanted in forcing(force, mesh):
        try:
            return plan_program(program, mesh, constraints=wanted, **options)[0], str(wanted.pins[0])
        except ConstraintError as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def measure(model: str, mesh: str, force: str) -> Row:
    """One row: how far it came, and what it found."""
    row: Row = {"stage": "traced"}
    began = time.monotonic()
    try:
        module, kwargs = (MODELS | FURTHER)[model]()
        program = trace(module, (), kwargs, name=model)
        row["kept_whole"] = dict(kept_whole(program))
        row |= {"trace_s": time.monotonic() - began, "stage": "planned"}
        plan, row["pin"] = planned(program, MeshSpec.of(mesh), force)
        row |= {"roles": dict(roles(plan)), "gap": plan.gap, "plan_s": time.monotonic() - began, "stage": "emitted"}
        report = verify(module, mesh, kwargs=kwargs, plan=plan)
        worst = report.tensors[0]
        row |= {"stage": "equal" if report.ok else "unequal", "error": report.max_relative_error}
        row["worst"] = f"{worst.kind} of {worst.name}"
    except ConstraintError as error:
        row |= {"stage": "refused", "failure": str(error)}
    except Exception as error:  # whatever it is, it is a row of the table
        row["failure"] = f"{type(error).__name__}: {error}"
    return row | {"seconds": time.monotonic() - began}


def measured(job: tuple[str, str, str]) -> Row:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dict(zip(("model", "mesh", "forced"), job, strict=True)) | measure(*job)


def known(path: Path) -> dict[tuple[str, str, str], Row]:
    rows = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return {(row["model"], row["mesh"], row["forced"]): row for row in rows}


def run(jobs: Iterable[tuple[str, str, str]], processes: int) -> Iterator[Row]:
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, maxtasksperchild=20) as pool:
        yield from pool.imap_unordered(measured, jobs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--meshes", default=",".join(MESHES))
    parser.add_argument("--forced", default="", help="of batch, tensor, sequence, with commas; all three: all")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/coverage.json"))
    given = parser.parse_args()
    rows = known(given.output)
    forced = FORCED if given.forced == "all" else tuple(filter(None, given.forced.split(",")))
    models = list(FURTHER) if given.models == "more" else given.models.split(",")
    jobs = [(model, mesh, force) for model in models for mesh in given.meshes.split(",") for force in ("", *forced)]
    todo = [j for j in jobs if given.again or rows.get(j, {}).get("stage") not in ("equal", "refused")]
    bad = 0
    for row in () if given.table else run(todo, given.processes):
        rows[row["model"], row["mesh"], row["forced"]] = row
        bad += row["stage"] not in ("equal", "refused")
        print(
            row["model"],
            row["mesh"],
            row["forced"],
            cell(row),
            row.get("failure", "")[:200],
            f"{row['seconds']:.1f} s",
            flush=True,
        )
        given.output.write_text("".join(json.dumps(rows[key]) + "\n" for key in sorted(rows)))
    given.output.with_suffix(".md").write_text(document(list(rows.values()), FURTHER.keys()))
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
