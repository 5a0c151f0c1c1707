"""Which mesh shapes a number of devices can have.

Axes are ordered, the outermost (slowest link) first: 4x2 and 2x4 are different meshes where only the inner axis stays within
a node. What link an axis has follows from the node size (`Hardware.axis_links`): an axis is on the link inside nodes if it
and all axes inside of it fill no more than a node, on the link between nodes otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator

from autopar.errors import InputError, MeshError
from autopar.ir.mesh import MeshSpec

MOST_AXES = 3


def mesh_shapes(devices: int, most_axes: int = MOST_AXES) -> tuple[MeshSpec, ...]:
    """All meshes of so many devices with 1 to `most_axes` axes, none of size 1 unless there is one device; few axes first.

    >>> [str(mesh) for mesh in mesh_shapes(12)]
    ['12', '2x6', '3x4', '4x3', '6x2', '2x2x3', '2x3x2', '3x2x2']
    """
    if isinstance(devices, bool) or not isinstance(devices, int) or devices < 1:
        raise InputError(f"{devices!r} devices: give a whole number, at least 1")
    if not 1 <= most_axes <= MOST_AXES:
        raise InputError(f"meshes of up to {most_axes} axes: give 1 to {MOST_AXES}")
    if devices == 1:
        return (MeshSpec((1,)),)
    return tuple(MeshSpec(sizes) for axes in range(1, most_axes + 1) for sizes in factorizations(devices, axes))


def factorizations(number: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Ordered products of so many factors above 1.

    >>> list(factorizations(8, 2))
    [(2, 4), (4, 2)]
    """
    if parts == 1:
        if number > 1:
            yield (number,)
        return
    for first in range(2, number // 2 + 1):
        if number % first == 0:
            yield from ((first, *rest) for rest in factorizations(number // first, parts - 1))


def one_or_all(mesh: MeshSpec | None, devices: int | None, most_axes: int = MOST_AXES) -> tuple[MeshSpec, ...]:
    """The mesh itself, or all shapes of so many devices; raises MeshError unless exactly one of them is given."""
    if (mesh is None) == (devices is None):
        given = "neither" if mesh is None else "both"
        raise MeshError(
            f"{given} of mesh and devices given: give the mesh (as 8x8), or the number of devices to find the best one for"
        )
    return (mesh,) if mesh is not None else mesh_shapes(devices or 0, most_axes)
