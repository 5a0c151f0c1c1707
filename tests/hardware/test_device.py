"""Roofline times against hand computation; which mesh axes stay inside a node."""

import dataclasses

import pytest
import torch

from autopar.errors import HardwareError
from autopar.hardware import INTER_NODE, INTRA_NODE, Hardware, Link, load
from autopar.ir.mesh import MeshSpec

TOY = Hardware(
    name="toy",
    device_type="cpu",
    peak_flops_per_s={"float32": 1000.0, "bfloat16": 4000.0},
    peak_bytes_per_s=200.0,
    efficiency={"matmul": 0.5, "memory": 0.25},
    launch_s=0.125,
    memory_bytes=64,
    devices_per_node=8,
    links={
        INTRA_NODE: Link(name="near", bytes_per_s=10.0, latency_s=0.0),
        INTER_NODE: Link(name="far", bytes_per_s=1.0, latency_s=0.0),
    },
    sources={},
)


def test_arithmetic_bound() -> None:
    assert TOY.time_s(1000.0, 10.0, torch.float32) == pytest.approx(1000 / 500 + 0.125)


def test_memory_bound() -> None:
    assert TOY.time_s(1000.0, 500.0, torch.float32) == pytest.approx(500 / 50 + 0.125)


def test_dtype_by_object_or_name() -> None:
    assert TOY.matmul_s(1000.0, torch.bfloat16) == TOY.matmul_s(1000.0, "bfloat16") == pytest.approx(0.5)


def test_dtype_without_a_rate_runs_as_float32() -> None:
    assert TOY.matmul_s(1000.0, torch.int64) == TOY.matmul_s(1000.0, torch.float32)


@pytest.mark.parametrize(
    ("mesh", "links"),
    [
        ("8", ["near"]),
        ("16", ["far"]),
        ("2x4", ["near", "near"]),
        ("8x8", ["far", "near"]),
        ("16x4", ["far", "near"]),
        ("4x2x4", ["far", "near", "near"]),
        ("2x2x8", ["far", "far", "near"]),
        ("4x3", ["far", "far"]),  # groups of 3 straddle nodes of 8
        ("2x3", ["near", "near"]),  # but 6 devices are all in one node
    ],
)
def test_axis_links(mesh: str, links: list[str]) -> None:
    assert [link.name for link in TOY.axis_links(MeshSpec.of(mesh))] == links


def test_an_axis_may_name_its_link() -> None:
    mesh = MeshSpec.of("data=8@pcie-4,tensor=8")
    assert [link.name for link in TOY.axis_links(mesh)] == ["PCIe 4", "near"]
    assert [link.name for link in TOY.axis_links(MeshSpec.of("data=2@far,tensor=4@intra_node"))] == ["far", "near"]


def test_links_of_its_own_are_found_before_shipped_ones() -> None:
    names = {hardware: load(hardware).link("nvlink").name for hardware in ("a100-80gb", "h100-sxm", "h100-pcie", "b200")}
    assert names == {"a100-80gb": "NVLink 3", "h100-sxm": "NVLink 4", "h100-pcie": "NVLink 4 bridge", "b200": "NVLink 5"}
    assert load("h100-sxm").link("infiniband") == load("h100-sxm").links[INTER_NODE]
    assert load("h100-sxm").link("NVLink_3").name == "NVLink 3"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nvlink", "link 'nvlink' on l40s may be nvlink-3 or nvlink-4 or nvlink-5: name one of them"),
        ("carrier-pigeon", r"no link 'carrier-pigeon': l40s has intra_node \(PCIe 4\), inter_node .*there are nvlink-3"),
        ("nv", "no link 'nv'"),
    ],
)
def test_unknown_and_ambiguous_links(name: str, message: str) -> None:
    with pytest.raises(HardwareError, match=message):
        load("l40s").axis_links(MeshSpec.of(f"a=2@{name},b=4"))


@pytest.mark.parametrize("mesh", ["2x2x2", "4x4", "8x4", "4x3", "2x3", "8x8", "2x4x8", "3x5"])
def test_axis_links_agree_with_counting_nodes(mesh: str) -> None:
    """The rule, against the ranks themselves: rank r is on node r // 8, a group along an axis strides over ranks."""
    spec = MeshSpec.of(mesh)
    ranks = torch.arange(spec.devices).reshape(spec.sizes)
    for axis, link in enumerate(TOY.axis_links(spec)):
        # An axis is nearby if each group of it and of all axes inside it sits on one node.
        groups = ranks.flatten(start_dim=axis).reshape(-1, ranks.flatten(start_dim=axis).shape[-1])
        nearby = all(len({int(r) // TOY.devices_per_node for r in group}) == 1 for group in groups)
        assert (link.name == "near") == nearby, f"axis {axis} of {mesh}"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("version", 1, "cost model 1"),
        ("peak_flops_per_s", {"bfloat16": 1.0}, "float32"),
        ("efficiency", {"matmul": 1.5, "memory": 0.5}, "at most 1"),
        ("efficiency", {"matmul": 0.5}, "memory"),
        ("links", {}, "intra_node"),
        ("memory_bytes", 0, "positive"),
        ("launch_s", -1.0, "negative"),
        ("skew_s", -1.0, "negative"),
        ("update_bytes_per_s", 0.0, "positive"),
        ("overlap", 1.5, "share, from 0 to 1, not 1.5"),
    ],
)
def test_impossible_hardware_is_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TOY, **{field: value})


def test_bfloat16_outruns_float32_on_gpus_and_nvlink_outruns_infiniband() -> None:
    for name in ("a100-80gb", "h100-sxm"):
        gpu = load(name)
        assert gpu.flops_per_s["bfloat16"] > 10 * gpu.flops_per_s["float32"]
        assert gpu.links[INTRA_NODE].bytes_per_s > 5 * gpu.links[INTER_NODE].bytes_per_s
