"""MeshSpec: the shape of a device mesh, without devices."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Union

from autopar.errors import MeshError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

DEFAULT_AXIS_NAMES = {1: ("gpu",), 2: ("node", "gpu"), 3: ("rack", "node", "gpu")}


@dataclass(frozen=True)
class MeshSpec:
    """Sizes and names of the mesh axes, outermost (slowest link) first.

    >>> MeshSpec.of("8x4")
    MeshSpec(sizes=(8, 4), names=('node', 'gpu'))
    >>> MeshSpec.of("data=2,tensor=4").names
    ('data', 'tensor')
    """

    sizes: tuple[int, ...]
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.sizes or any(size < 1 for size in self.sizes):
            raise MeshError(f"mesh {self.sizes}: every axis needs at least one device")
        if len(self.sizes) > 3 and not self.names:
            raise MeshError(f"mesh {self.sizes}: name its axes, as in 'a=2,b=2,c=2,d=2'")
        object.__setattr__(self, "names", self.names or DEFAULT_AXIS_NAMES[len(self.sizes)])
        if len(self.names) != len(self.sizes) or len(set(self.names)) != len(self.names):
            raise MeshError(f"mesh {self.sizes} needs {len(self.sizes)} different axis names, got {self.names}")

    @classmethod
    def of(cls, mesh: MeshLike) -> MeshSpec:
        """From "8", "2x4", "data=2,tensor=4", a tuple of sizes, a `DeviceMesh` or a `MeshSpec`; raises MeshError."""
        if isinstance(mesh, MeshSpec):
            return mesh
        if isinstance(mesh, str):
            return cls._parse(mesh)
        if isinstance(mesh, int):
            return cls((mesh,))
        if isinstance(mesh, tuple | list):
            return cls(tuple(mesh))
        if hasattr(mesh, "mesh_dim_names"):
            return cls(tuple(mesh.shape), tuple(mesh.mesh_dim_names or ()))
        raise MeshError(f"{mesh!r} is no mesh: give '2x4', a tuple of sizes, a MeshSpec or a DeviceMesh")

    @classmethod
    def _parse(cls, text: str) -> MeshSpec:
        text = text.replace(" ", "")
        if re.fullmatch(r"\d+(x\d+)*", text):
            return cls(tuple(int(n) for n in text.split("x")))
        if re.fullmatch(r"[A-Za-z_]\w*=\d+(,[A-Za-z_]\w*=\d+)*", text):
            pairs = [part.split("=") for part in text.split(",")]
            return cls(tuple(int(n) for _, n in pairs), tuple(name for name, _ in pairs))
        raise MeshError(f"mesh {text!r} is not of the form 8, 2x4 or data=2,tensor=4")

    @property
    def devices(self) -> int:
        return math.prod(self.sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def __str__(self) -> str:
        return "x".join(map(str, self.sizes))


MeshLike = Union[str, int, tuple[int, ...], MeshSpec, "DeviceMesh"]
