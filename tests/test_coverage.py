"""Models of many kinds, each trained on a mesh under a plan that cuts it: a part of benchmarks/coverage.py.

Networks of plain torch are in tests/test_plain_models.py, which asks the same of them and more.
"""

from __future__ import annotations

import pytest

from benchmarks.coverage import MODELS, measure
from benchmarks.coverage_table import cell, document
from tests.zoo_plain import PLAIN


@pytest.mark.slow
@pytest.mark.parametrize("model", [name for name in MODELS if name not in PLAIN])
def test_trains_as_the_serial_run_does(model: str) -> None:
    row = measure(model, "2x2", "")
    assert row["stage"] == "equal", row
    assert row["roles"].get("cut"), "a plan that cuts nothing proves nothing"


@pytest.mark.slow
@pytest.mark.parametrize(("model", "mesh"), [("encoder", "2x4"), ("segformer", "2x4")])
def test_batches_of_one_per_device_copy_less_than_was_profiled(model: str, mesh: str) -> None:
    """What a product copies of larger batches it reads where it lies here: backward reads the operand, not the copy."""
    row = measure(model, mesh, "")
    assert row["stage"] == "equal", row


def test_a_pin_forces_or_is_refused() -> None:
    forced = measure("mlp", "2", "tensor")
    assert forced["stage"] == "equal"
    assert forced["roles"]["tensor"]
    assert forced["pin"]
    refused = measure("mlp", "2", "sequence")
    assert refused["stage"] == "refused"
    assert "sequence" in refused["failure"]


def test_page_tells_what_does_not_work() -> None:
    head = {"model": "mlp", "mesh": "2", "forced": "", "seconds": 1.0}
    equal = head | {"stage": "equal", "error": 1e-15, "roles": {"units": 4, "cut": 3}, "kept_whole": {"aten.sort.default": 2}}
    broken = head | {"mesh": "4", "stage": "planned", "failure": "SolverError: no time"}
    assert (cell(equal), cell(broken), cell(None)) == ("equal 75%", "not planned", "")
    page = document([equal, broken])
    assert "| mlp | equal 75% | not planned |" in page
    assert "- mlp on 4: SolverError: no time" in page
    assert "| `aten.sort.default` | mlp |" in page


def test_further_classes_are_listed_by_name() -> None:
    head = {"mesh": "2x2", "forced": "", "seconds": 1.0, "stage": "equal", "error": 1e-15}
    rows = [head | {"model": name} for name in ("mlp", "Mine", "Yours")]
    page = document(
        [*rows, head | {"model": "Broken", "stage": "unequal", "worst": "loss", "error": 0.5}], ("Mine", "Yours", "Broken")
    )
    assert "| mlp | equal |" in page
    assert "2 of 3 are equal, the largest error is 1.0e-15.\n\nMine, Yours." in page
    assert "- Broken on 2x2: loss, 5.0e-01" in page
