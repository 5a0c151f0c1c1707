"""docs/plan.schema.json is the form of plan files: that of the code, and that of the plans which it writes.

After a change of the form: REGOLD=1 python -m pytest tests/test_plan_schema.py
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import autopar
from tests.small_plan import small_plan

PATH = Path(__file__).parents[1] / "docs" / "plan.schema.json"


def schema_of_the_code() -> dict[str, Any]:
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **autopar.Plan.model_json_schema()}


def written() -> Any:
    return json.loads(PATH.read_text())


def plan_file() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(small_plan().to_json())
    return data


def test_the_file_is_that_of_the_code() -> None:
    if os.environ.get("REGOLD"):
        PATH.write_text(json.dumps(schema_of_the_code(), indent=1) + "\n")
    assert written() == schema_of_the_code(), "REGOLD=1 python -m pytest tests/test_plan_schema.py writes it anew"


def test_it_is_a_schema_that_a_plan_file_obeys() -> None:
    jsonschema.Draft202012Validator.check_schema(written())
    jsonschema.validate(plan_file(), written())


@pytest.mark.parametrize(
    "where",
    [
        ("step_time_s",),
        ("figures", "collectives"),
        ("regions", "h.*", "units"),
        ("mesh", "sizes"),
        ("inputs", "input_ids", "shape"),
    ],
    ids=".".join,
)
def test_it_refuses_a_plan_file_without_a_part(where: tuple[str, ...]) -> None:
    data = plan_file()
    *path, name = where
    functools.reduce(lambda part, key: part[key], path, data).pop(name)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, written())


def test_it_refuses_fields_that_nobody_knows_and_placements_that_are_no_text() -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**plan_file(), "more": 1}, written())
    data = plan_file()
    next(iter(data["state"].values()))["placement"] = ["S(0)"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, written())
