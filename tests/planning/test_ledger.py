"""The file of a sweep: no line is lost, doubled or half there, whatever happened to who wrote it."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import pytest

from autopar.errors import InputError
from autopar.ir.constraints import Constraints
from autopar.ir.mesh import MeshSpec
from autopar.planning.ledger import BEGINNING, ledger
from autopar.planning.runs import Run, Setting, combinations, digests, split

OTHER = '{"benchmark": "plan_time", "seconds": 3.5}\n'


def run(mesh: str = "2", step_time_s: float = 0.5) -> Run:
    return Run(setting=Setting(model="m.py:f", mesh=mesh), outcome="fits", step_time_s=step_time_s)


def written(path: Path, *runs: Run) -> bytes:
    with ledger(path) as lines:
        for each in runs:
            lines.add(each)
    return path.read_bytes()


def test_lines_are_read_again_and_others_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "runs.jsonl"
    path.parent.mkdir()
    path.write_text(OTHER)
    content = written(path, run("2"), run("4"))
    assert content.decode().startswith(OTHER)
    assert [json.loads(line)["setting"]["mesh"] for line in content.splitlines()[1:]] == ["2", "4"]
    with ledger(path) as lines:
        assert list(lines.runs.values()) == [run("2"), run("4")]
        assert lines.notes == []
    assert path.read_bytes() == content


def test_every_possible_torn_line_is_mended(tmp_path: Path) -> None:
    """Wherever the last line breaks off, the ones before stay, and it can be written again."""
    path = tmp_path / "runs.jsonl"
    content = written(path, run("2"), run("4"))
    first = content.splitlines(keepends=True)[0]
    assert content.startswith(BEGINNING)
    for end in range(len(first) + 1, len(content)):
        path.write_bytes(content[:end])
        with ledger(path) as lines:
            whole = end == len(content) - 1  # but for the line's end
            assert len(lines.runs) == 1 + whole
            assert bool(lines.notes) is not whole
            if not whole:
                lines.add(run("4"))
        assert path.read_bytes() == content


@pytest.mark.parametrize("text", ["import torch\nmodel = 1", OTHER + '{"benchmark": "pl', "notes\n", '[1, 2]\n{"a": 1}\n'])
def test_another_kind_of_file_is_refused_and_not_touched(tmp_path: Path, text: str) -> None:
    path = tmp_path / "model.py"
    path.write_text(text)
    with pytest.raises(InputError, match="give another file with -o"), ledger(path):
        pass
    assert path.read_text() == text


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    content = written(path, run("2"), run("4")).decode()
    path.write_text(content.replace('"outcome":"fits"', '"outcome":"perhaps"', 1))
    with pytest.raises(InputError, match=r"runs\.jsonl:1: field outcome"), ledger(path):
        pass
    with pytest.raises(InputError, match="is a folder"), ledger(tmp_path):
        pass


def test_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    with ledger(path), pytest.raises(InputError, match="another sweep is writing"), ledger(path):
        pass
    with ledger(path):
        pass


def test_no_room_for_a_line_leaves_no_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "runs.jsonl"
    content, write = written(path, run("2")), os.write

    def short(handle: int, data: bytes) -> int:
        return write(handle, data[:20])

    def full(handle: int, data: bytes) -> int:
        write(handle, data[:20])
        raise OSError(errno.ENOSPC, "No space left on device")

    for wrong in (short, full):
        with monkeypatch.context() as patch, ledger(path) as lines:
            patch.setattr(os, "write", wrong)
            with pytest.raises(InputError, match="what is finished is in it"):
                lines.add(run("4"))
        assert path.read_bytes() == content


def test_combinations() -> None:
    meshes = [MeshSpec.of(text) for text in split(["2,4", "node=2,gpu=2", "a=2,b=2@pcie-4"], "--meshes")]
    found = combinations(
        model="m", meshes=[*meshes, meshes[0]], hardware=["cpu"], memory=["1GiB", "1024MiB", "none"], seqs=[1, 2]
    )
    assert [setting.mesh for setting in found[::2][:4]] == ["2", "4", "2x2", "a=2,b=2@pcie-4"]
    assert [setting.memory_bytes for setting in found[:2]] == [2**30, None]
    assert len(found) == len({setting.key for setting in found}) == len({setting.plan_file() for setting in found}) == 16
    assert all(MeshSpec.of(setting.mesh) in meshes for setting in found)
    assert len({setting.traced for setting in found}) == 2
    with pytest.raises(InputError, match="empty part"):
        split(["8,"], "--batch")


NAMED = {
    "file": ("m.py:f", "m.py"),
    "config": ("small.json", "small.json"),
    "folder": ("small", "small/config.json"),
    "module": ("no_such_top:f", "no_such_top.py"),
    "package": ("nets:f", "nets/__init__.py"),
    "inner module": ("nets.deep.wide:f", "nets/deep/wide.py"),
    "namespace": ("spaces.wide:f", "spaces/wide.py"),
    "inner namespace": ("spaces.inner.wide:f", "spaces/inner/wide.py"),
}
"""How a model is named -> (its name, the file with it)."""


@pytest.mark.parametrize("how", NAMED)
def test_an_edited_model_is_another_setting(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found from the current folder as the model is, and not imported: packages here raise."""
    monkeypatch.chdir(tmp_path)
    model, file = NAMED[how]
    for package in (tmp_path / "nets", tmp_path / "nets" / "deep", tmp_path / "spaces"):
        package.mkdir()
        if package.name != "spaces":
            (package / "__init__.py").write_text("raise RuntimeError('imported')")
    keys = []
    for text in ("raise ValueError(1)", "raise ValueError(2)", "raise ValueError(2)"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
        (found,) = combinations(model=model, meshes=[MeshSpec.of("2")], hardware=["cpu"], memory=["none"])
        assert list(found.files) == [model]
        keys.append(found.key)
    assert keys[0] != keys[1] == keys[2]


def test_an_installed_module_is_found_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    assert digests("json.decoder:f", "cpu") == {"json.decoder:f": digests(f"{json.decoder.__file__}:f", "cpu").popitem()[1]}
    assert list(digests("unittest.test_of_nothing:f", "cpu")) == []
    (tmp_path / "xmlrpc").mkdir()  # no package: what is installed is what is imported
    assert list(digests("xmlrpc.server:f", "cpu")) == ["xmlrpc.server:f"]
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    "model", ["", ":f", "no_such_module:f", "os.path.nothing:f", "sys:f", "nowhere", "a..b:f", "__main__.x:f"]
)
def test_a_name_of_no_file_has_no_digest(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert digests(model, "cpu") == {}


def test_settings_come_back_from_text() -> None:
    limits = Constraints(pins=("model.layers.*: tensor=gpu",), recompute="never")  # type: ignore[arg-type]
    setting = Setting(model="m", mesh="2", constraints=limits, memory_bytes=5)
    again = Setting.model_validate_json(setting.key)
    assert again == setting
    assert again.key == setting.key


def test_a_changed_copy_is_another_setting() -> None:
    setting = Setting(model="m", mesh="2")
    before = setting.key
    assert setting.model_copy(update={"mesh": "4"}).key == Setting(model="m", mesh="4").key != before
