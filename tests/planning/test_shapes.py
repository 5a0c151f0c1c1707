"""All shapes of a number of devices, and which link their axes get."""

from __future__ import annotations

import math
from typing import Any

import pytest

from autopar.errors import InputError, MeshError
from autopar.hardware import INTER_NODE, INTRA_NODE, load
from autopar.ir.mesh import MeshSpec
from autopar.planning.shapes import factorizations, mesh_shapes, one_or_all


@pytest.mark.parametrize("devices", [1, 2, 12, 64, 97])
def test_shapes_are_all_ordered_products_once(devices: int) -> None:
    shapes = [mesh.sizes for mesh in mesh_shapes(devices)]
    axes = range(1, devices + 1)
    expected = {(a, b, devices // (a * b)) for a in axes for b in axes if devices % (a * b) == 0}
    wanted = {tuple(n for n in sizes if n > 1) for sizes in expected} - {()} or {(1,)}
    assert set(shapes) == wanted
    assert len(shapes) == len(set(shapes))
    assert [len(s) for s in shapes] == sorted(len(s) for s in shapes)


def test_sixty_four_devices_have_sixteen_shapes() -> None:
    assert len(mesh_shapes(64)) == 1 + 5 + 10
    assert [mesh.sizes for mesh in mesh_shapes(64, 1)] == [(64,)]


def test_factorizations_multiply_to_the_number() -> None:
    found = list(factorizations(360, 3))
    assert all(math.prod(sizes) == 360 and min(sizes) > 1 for sizes in found)
    assert list(factorizations(7, 2)) == []


@pytest.mark.parametrize(
    ("mesh", "within"),
    [
        ("64", "-"),
        ("8x8", "-n"),
        ("16x4", "-n"),
        ("4x16", "--"),
        ("32x2", "-n"),
        ("8x2x4", "-nn"),
        ("4x2x8", "--n"),
        ("2x2x16", "---"),
        ("4x4x4", "--n"),
        ("8", "n"),
        ("2x4", "nn"),
    ],
)
def test_an_axis_is_on_the_fast_link_if_it_and_all_inside_of_it_fit_in_a_node(mesh: str, within: str) -> None:
    """Nodes of 8, as H100 servers have."""
    hardware = load("h100-sxm")
    expected = [hardware.links[INTRA_NODE if letter == "n" else INTER_NODE] for letter in within]
    assert list(hardware.axis_links(MeshSpec.of(mesh))) == expected


@pytest.mark.parametrize(
    ("devices", "said"), [(0, "0 devices"), (-4, "-4 devices"), (2.0, "2.0 devices"), (True, "True devices")]
)
def test_wrong_numbers_of_devices(devices: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        mesh_shapes(devices)


def test_wrong_numbers_of_axes() -> None:
    with pytest.raises(InputError, match="up to 4 axes: give 1 to 3"):
        mesh_shapes(8, 4)


def test_either_a_mesh_or_a_number_of_devices() -> None:
    with pytest.raises(MeshError, match="neither of mesh and devices"):
        one_or_all(None, None)
    with pytest.raises(MeshError, match="both of mesh and devices"):
        one_or_all(MeshSpec((2,)), 2)
    assert one_or_all(MeshSpec((2,)), None) == (MeshSpec((2,)),)
    with pytest.raises(InputError, match="0 devices"):
        one_or_all(None, 0)
