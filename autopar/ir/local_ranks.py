"""All ranks of a mesh in one process, collectives included: how plans are proven without devices."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from autopar.ir.mesh import MeshLike, MeshSpec
from autopar.torch_private import active_modes, ranks_in_one_process

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
            register(type(active_modes()[-1]))
            yield devices
    finally:
        sys.excepthook = hook


TOGETHER: dict[str, Callable[..., Any]] = {}
"""What `runs_together` was told, until the first time that all ranks run in one process: the mode takes a while to import."""


def runs_together(op: str, body: Callable[..., Any]) -> None:
    """Where all ranks are in one process, run the body of this custom op once for all of them, since it communicates; other
    ops run rank after rank. Sizes inside may differ between ranks."""

    def dispatch(mode: Any, op: Any, types: Any, args: Any, kwargs: Any) -> Any:
        with type(mode)(mode.ranks):  # to enter this one again would leave it disabled
            return body(*args, **kwargs)

    TOGETHER[op] = dispatch


def register(mode: type) -> None:
    """Tell the mode of all ranks about ops that it does not know yet."""
    while TOGETHER:
        op, dispatch = TOGETHER.popitem()
        torch.library.register_torch_dispatch(op, mode, dispatch)
