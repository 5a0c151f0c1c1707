"""Plan files: what is saved is loaded, what is damaged is refused with the field named, and a write is all or nothing."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autopar.errors import PlanError
from autopar.ir.document import write_atomically
from autopar.ir.plan import VERSION, Plan
from tests.small_plan import small_plan

Edit = Callable[[dict[str, Any]], object]


def test_a_saved_plan_loads_as_it_was(tmp_path: Path) -> None:
    plan = small_plan()
    plan.save(tmp_path / "new" / "plan.json")
    assert Plan.load(tmp_path / "new" / "plan.json") == plan
    assert Plan.from_json(plan.to_json()).to_json() == plan.to_json()


def load_edited(edit: Edit) -> Plan:
    data = json.loads(small_plan().to_json())
    edit(data)
    return Plan.from_json(json.dumps(data), "plan.json")


EDITS: list[tuple[Edit, str]] = [
    (
        lambda d: d.update(version=VERSION + 1),
        f"plan.json has plan version {VERSION + 1}, this autopar reads version {VERSION}",
    ),
    (lambda d: d.pop("version"), "plan.json has plan version None"),
    (lambda d: d.update(format="other"), "lacks format 'autopar-plan'"),
    (lambda d: d.pop("fingerprint"), "field fingerprint: Field required"),
    (lambda d: d.update(gap="small"), "field gap: Input should be a valid number"),
    (lambda d: d.update(colour="red"), "field colour: Extra inputs"),
    (lambda d: d["mesh"].update(sizes=["a"]), r"field mesh\.sizes\.0: "),
    (
        lambda d: d["boundaries"].update({next(iter(d["boundaries"])): "S(x)"}),
        r"field boundaries\.\w+: .*none of S\(dim\), R, I, P",
    ),
    (lambda d: first(d["state"]).update(placement="Q"), r"field state\..+\.placement: .*'Q'"),
    (lambda d: first(d["regions"])["converted"][0].pop("after"), r"field regions\..+\.converted\.0\.after: Field required"),
    (lambda d: first(d["regions"])["classes"][0].update(calls="two"), r"field regions\..+\.classes\.0\.calls: "),
    (lambda d: d["figures"]["collectives"][0].update(phase="later"), r"field figures\.collectives\.0\.phase: "),
]


def first(things: dict[str, Any]) -> Any:
    return next(iter(things.values()))


@pytest.mark.parametrize(("edit", "message"), EDITS, ids=[message[:40] for _, message in EDITS])
def test_an_edited_field_is_named(edit: Edit, message: str) -> None:
    assert load_edited(lambda d: None) == small_plan()
    with pytest.raises(PlanError, match=message):
        load_edited(edit)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "plan.json"
    text = small_plan().to_json()
    path.write_text(text[: int(len(text) * share)])
    with pytest.raises(PlanError, match=r"plan\.json is no JSON \(line \d+: "):
        Plan.load(path)


def test_files_that_are_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"cannot read plan .*none\.json: No such file"):
        Plan.load(tmp_path / "none.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match="is not text"):
        Plan.load(tmp_path / "binary.json")
    with pytest.raises(PlanError, match="is no autopar plan"):
        Plan.from_json("[1]")


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.json"
    write_atomically(path, "old")

    def interrupted(*names: object) -> None:
        assert len(os.listdir(tmp_path)) == 2, "the new text is in a file beside the old one by now"
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["plan.json"]
    write_atomically(path, "new")
    assert path.read_text() == "new"


def test_written_files_have_the_permissions_that_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "plan.json", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "plan.json").stat().st_mode & 0o777 == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
