"""All ranks of a mesh in one process, collectives included: how plans are proven without devices."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from autopar.ir.mesh import MeshLike, MeshSpec
from autopar.torch_private import ranks_in_one_process

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@contextmanager
def local_ranks(mesh: MeshLike) -> Iterator[DeviceMesh]:
    """A CPU mesh whose ranks are all here; yields it.

    Tensors made inside hold one value per rank: `torch_private.rank_map` makes them, `by_rank` looks inside. Tensors made
    before are plain and mix freely as values that all ranks share.
    """
    spec = MeshSpec.of(mesh)
    hook = sys.excepthook  # every process group of torch puts one of its own around it
    try:
        with ranks_in_one_process(spec.sizes, spec.names) as devices:
            yield devices
    finally:
        sys.excepthook = hook
