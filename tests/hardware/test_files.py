"""The shipped files, and what a user gets for a wrong one."""

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from autopar.errors import HardwareError
from autopar.hardware import known, load

NAMES = ("a100-80gb", "cpu", "h100-sxm")


def shipped(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(resources.files("autopar.hardware").joinpath(f"{name}.json").read_text())
    return data


def figures(data: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Paths of all numbers in the file, except the version."""
    for key, value in data.items():
        if isinstance(value, dict):
            yield from figures(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and key != "version":
            yield prefix + key


def unsourced(data: dict[str, Any]) -> list[str]:
    """Figures for which neither their own path nor an enclosing one has a source."""
    sources = set(data["sources"])
    return [p for p in figures(data) if not any(p == s or p.startswith(f"{s}.") for s in sources)]


def test_known() -> None:
    assert known() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_shipped_files_load_under_their_own_name(name: str) -> None:
    assert load(name).name == name


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_has_a_source_and_every_source_a_figure(name: str) -> None:
    data = shipped(name)
    paths = list(figures(data))
    assert unsourced(data) == []
    assert [s for s in data["sources"] if not any(p == s or p.startswith(f"{s}.") for p in paths)] == []


def test_a_missing_source_is_noticed() -> None:
    data = shipped("cpu")
    del data["sources"]["links.intra_node.latency_s"]
    assert unsourced(data) == ["links.intra_node.latency_s"]


def test_load_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(shipped("cpu") | {"name": "mine"}))
    assert load(path) == load(str(path))
    assert load(path).name == "mine"


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(HardwareError, match=r"no hardware 'h200'.*a100-80gb, cpu, h100-sxm.*JSON file"):
        load("h200")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "JSON"),
        ("{}", "device_type: "),
        (json.dumps(shipped("cpu") | {"version": 99}), "cost model 99"),
        (json.dumps(shipped("cpu") | {"devices_per_node": 0}), "positive"),
        (json.dumps(shipped("cpu") | {"launch_s": "soon"}), "launch_s: "),
        (json.dumps(shipped("cpu") | {"bandwith": 3}), "bandwith: "),
    ],
)
def test_malformed_file_names_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(HardwareError, match=f"(?s)bad.json.*malformed.*{message}.*compare"):
        load(path)


def test_a_directory_is_no_hardware(tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match="IsADirectoryError"):
        load(tmp_path)
