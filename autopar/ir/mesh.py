"""MeshSpec: the shape of a device mesh, without devices."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Union

from autopar.errors import MeshError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

DEFAULT_AXIS_NAMES = {1: ("gpu",), 2: ("node", "gpu"), 3: ("rack", "node", "gpu")}
NAMED_AXIS = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<size>\d+)(@(?P<link>[A-Za-z][\w.-]*))?")


@dataclass(frozen=True)
class MeshSpec:
    """Sizes and names of the mesh axes, outermost (slowest link) first.

    >>> MeshSpec.of("8x4")
    MeshSpec(sizes=(8, 4), names=('node', 'gpu'))
    >>> MeshSpec.of("data=2,tensor=4").names
    ('data', 'tensor')

    An axis may name its link, as `data=8@infiniband,tensor=8@nvlink-4`; the others have the hardware's own (None). Meshes that
    differ in links only are equal: links matter to who makes a plan, not to who runs it.
    """

    sizes: tuple[int, ...]
    names: tuple[str, ...] = ()
    links: tuple[str | None, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.sizes or any(size < 1 for size in self.sizes):
            raise MeshError(f"mesh {self.sizes}: every axis needs at least one device")
        if len(self.sizes) > 3 and not self.names:
            raise MeshError(f"mesh {self.sizes}: name its axes, as in 'a=2,b=2,c=2,d=2'")
        object.__setattr__(self, "names", self.names or DEFAULT_AXIS_NAMES[len(self.sizes)])
        if len(self.names) != len(self.sizes) or len(set(self.names)) != len(self.names):
            raise MeshError(f"mesh {self.sizes} needs {len(self.sizes)} different axis names, got {self.names}")
        if self.links and len(self.links) != len(self.sizes):
            raise MeshError(f"mesh {self.sizes} needs a link per axis, or none at all, got {self.links}")

    @classmethod
    def of(cls, mesh: MeshLike) -> MeshSpec:
        """From "8", "2x4", "data=2,tensor=4@nvlink", a tuple of sizes, a `DeviceMesh` or a `MeshSpec`; raises MeshError."""
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
        axes = [NAMED_AXIS.fullmatch(part) for part in text.split(",")]
        if all(axes):
            found = [axis for axis in axes if axis]
            links = tuple(axis["link"] for axis in found)
            return cls(tuple(int(a["size"]) for a in found), tuple(a["name"] for a in found), links if any(links) else ())
        raise MeshError(f"mesh {text!r} is not of the form 8, 2x4 or data=2,tensor=4 (with links: data=2@infiniband,tensor=4)")

    @property
    def devices(self) -> int:
        return math.prod(self.sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def __str__(self) -> str:
        return "x".join(map(str, self.sizes))


def require_device_mesh(mesh: object) -> None:
    """Raise MeshError for a mesh without devices behind it, with what it takes: so many processes, a DeviceMesh."""
    if hasattr(mesh, "mesh_dim_names"):
        return
    import torch.distributed as dist

    spec = MeshSpec.of(mesh)  # type: ignore[arg-type]
    processes = (
        dist.get_world_size() if dist.is_available() and dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))
    )
    if spec.devices != processes:
        raise MeshError(
            f"mesh {spec} has {spec.devices} devices, this job has {processes} process{'' if processes == 1 else 'es'}: start "
            f"it with `torchrun --nproc-per-node {spec.devices}`, or on several nodes, or choose a mesh of {processes}"
        )
    raise MeshError(
        f"{spec} is only the shape of a mesh: pass torch.distributed.device_mesh.init_device_mesh("
        f"'cuda', {spec.sizes}, mesh_dim_names={spec.names}), or 'cpu'"
    )


MeshLike = Union[str, int, tuple[int, ...], MeshSpec, "DeviceMesh"]
