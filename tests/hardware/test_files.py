"""The shipped files, and what a user gets for a wrong one."""

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from autopar.errors import HardwareError
from autopar.hardware import COST_MODEL_VERSION, INTRA_NODE, known, load, shipped_links, to_json
from autopar.ir.conversion import ALL_REDUCE

NAMES = (
    *("a100-40gb", "a100-80gb", "b200", "cpu", "h100-pcie", "h100-sxm"),
    *("h200", "l40s", "mi300x", "rtx-4090"),
)


def shipped(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(resources.files("autopar.hardware").joinpath(f"{name}.json").read_text())
    return data


def figures(data: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Paths of all numbers in the file except the version, and of what is said by name: the algorithms of links."""
    for key, value in data.items():
        if isinstance(value, dict) and key != "algorithms":
            yield from figures(value, f"{prefix}{key}.")
        elif (isinstance(value, int | float) and key != "version") or key == "algorithms":
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
    with pytest.raises(HardwareError, match=r"no hardware 'h300'.*a100-80gb, b200, cpu, .*JSON file"):
        load("h300")


def test_links_are_no_hardware() -> None:
    with pytest.raises(HardwareError, match="no hardware 'links'"):
        load("links")


def test_every_shipped_link_has_sources() -> None:
    data = shipped("links")
    assert unsourced(data) == []
    assert all(f"links.{key}.{figure}" in data["sources"] for key in data["links"] for figure in ("bytes_per_s", "latency_s"))
    assert set(shipped_links().links) == set(data["links"])


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_read_again(name: str, tmp_path: Path) -> None:
    path = tmp_path / "again.json"
    path.write_text(to_json(load(name)))
    assert load(path) == load(name)


@pytest.mark.parametrize(("better", "worse"), [("h200", "h100-sxm"), ("b200", "h200"), ("a100-80gb", "a100-40gb")])
def test_newer_devices_have_more_of_everything(better: str, worse: str) -> None:
    new, old = load(better), load(worse)
    assert new.peak_bytes_per_s > old.peak_bytes_per_s
    assert new.memory_bytes > old.memory_bytes
    assert all(new.peak_flops_per_s[dtype] >= old.peak_flops_per_s[dtype] for dtype in ("bfloat16", "float16", "tf32", "int8"))
    assert all(new.links[key].bytes_per_s >= link.bytes_per_s for key, link in old.links.items())


@pytest.mark.parametrize("name", [name for name in NAMES if name != "cpu"])
def test_rates_of_gpus_are_dense_and_in_order(name: str) -> None:
    """Half of a figure with 2:4 sparsity is the dense one: a doubled bfloat16 rate would be above the 8-bit one."""
    rates = load(name).peak_flops_per_s
    assert rates["float64"] <= rates["float32"] <= rates["tf32"] < rates["bfloat16"] == rates["float16"] < rates["int8"]
    assert rates["bfloat16"] == pytest.approx(2 * rates["tf32"], rel=0.02)
    assert rates["int8"] / rates["bfloat16"] == pytest.approx(4 if name == "rtx-4090" else 2, rel=0.02)
    eight_bit = [rate for dtype, rate in rates.items() if dtype.startswith("float8")]
    assert len(eight_bit) == (0 if name.startswith("a100") else 2)
    assert all(rate == pytest.approx(2 * rates["bfloat16"], rel=0.02) for rate in eight_bit)


@pytest.mark.parametrize(
    ("name", "matmul_s", "stream_s", "all_reduce_s"),
    [
        ("h100-sxm", 1e15 / 692.3e12 + 5e-6, 1e9 / 2.8475e12 + 5e-6, 14 * 1.9e-6 + 1.75 * 1e9 / 360e9),
        ("a100-80gb", 1e15 / 234e12 + 5e-6, 1e9 / 1.73315e12 + 5e-6, 14 * 1.9e-6 + 1.75 * 1e9 / 240e9),
        ("cpu", 1e15 / 19.2e9 + 5e-6, 1e9 / 9.6e9 + 5e-6, 14 * 1e-4 + 1.75 * 1e9 / 1e9),
    ],
)
def test_times_of_single_ops_and_collectives(name: str, matmul_s: float, stream_s: float, all_reduce_s: float) -> None:
    """Raise COST_MODEL_VERSION before changing these. They have been the same since model 1; 2 adds copies to
    conversions, 3 lets small reductions of gradients share their latency."""
    hardware = load(name)
    assert COST_MODEL_VERSION == 3
    assert hardware.time_s(1e15, 0, "bfloat16") == pytest.approx(matmul_s, rel=1e-12)
    assert hardware.time_s(0, 1e9, "bfloat16") == pytest.approx(stream_s, rel=1e-12)
    assert hardware.links[INTRA_NODE].collective_s(ALL_REDUCE, 1e9, 8) == pytest.approx(all_reduce_s, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "JSON"),
        ("{}", "device_type: "),
        (json.dumps(shipped("cpu") | {"version": 99}), "cost model 99"),
        (json.dumps(shipped("cpu") | {"devices_per_node": 0}), "positive"),
        (json.dumps(shipped("cpu") | {"launch_s": "soon"}), "launch_s: "),
        (json.dumps(shipped("cpu") | {"bandwith": 3}), "bandwith: "),
        (json.dumps(shipped("cpu") | {"links": {"intra_node": {"name": "a"}}}), r"links.intra_node.bytes_per_s: "),
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
