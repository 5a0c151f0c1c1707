"""Mesh specs: every spelling gives the same mesh, and every malformed one an error that names it."""

import pytest

from autopar.errors import MeshError
from autopar.ir.mesh import MeshSpec


@pytest.mark.parametrize("given", ["2x4", " 2 x 4", (2, 4), [2, 4], MeshSpec((2, 4)), "node=2,gpu=4"])
def test_all_spellings_of_a_mesh_are_equal(given: object) -> None:
    mesh = MeshSpec.of(given)  # type: ignore[arg-type]
    assert mesh == MeshSpec(sizes=(2, 4), names=("node", "gpu"))
    assert (mesh.devices, len(mesh), str(mesh)) == (8, 2, "2x4")


def test_one_number_is_one_axis() -> None:
    assert MeshSpec.of("8") == MeshSpec.of(8) == MeshSpec((8,), ("gpu",))


def test_axes_keep_the_names_that_they_are_given() -> None:
    assert MeshSpec.of("data=2,tensor=4").names == ("data", "tensor")
    assert MeshSpec.of("data=2,tensor=4") != MeshSpec.of("2x4")
    assert MeshSpec.of("2x2x2").names == ("rack", "node", "gpu")


def test_an_axis_may_name_its_link() -> None:
    mesh = MeshSpec.of("data=8@infiniband-ndr, tensor=8@nvlink")
    assert (mesh.sizes, mesh.names, mesh.links) == ((8, 8), ("data", "tensor"), ("infiniband-ndr", "nvlink"))
    assert MeshSpec.of("data=8,tensor=8@nvlink").links == (None, "nvlink")
    assert MeshSpec.of("data=8,tensor=8").links == MeshSpec.of("8x8").links == ()


def test_meshes_that_differ_in_links_only_run_the_same_plans() -> None:
    mesh = MeshSpec.of("data=8@infiniband,tensor=8")
    assert mesh == MeshSpec.of("data=8,tensor=8")
    assert hash(mesh) == hash(MeshSpec.of("data=8,tensor=8"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("2x", "'2x' is not of the form"),
        ("data=2,4", "'data=2,4' is not of the form"),
        ("", "'' is not of the form"),
        ("data=2@,tensor=4", "is not of the form .*data=2@infiniband"),
        ("2x4@nvlink", "'2x4@nvlink' is not of the form"),
        ("0x2", r"mesh \(0, 2\): every axis needs at least one device"),
        ((), r"mesh \(\): every axis"),
        ("2x2x2x2", "name its axes"),
        ("a=2,a=4", r"needs 2 different axis names, got \('a', 'a'\)"),
        (2.5, "2.5 is no mesh"),
    ],
)
def test_malformed_meshes_are_refused(given: object, message: str) -> None:
    with pytest.raises(MeshError, match=message):
        MeshSpec.of(given)  # type: ignore[arg-type]


def test_names_and_sizes_must_be_as_many() -> None:
    with pytest.raises(MeshError, match="needs 2 different axis names"):
        MeshSpec((2, 4), ("data",))


def test_links_must_be_as_many_as_axes() -> None:
    with pytest.raises(MeshError, match="needs a link per axis"):
        MeshSpec((2, 4), links=("nvlink",))
