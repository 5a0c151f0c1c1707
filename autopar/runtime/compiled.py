"""Graphs are compiled before a module is handed out, on all ranks at once, and none goes on before all are ready.

So no collective waits for a rank that still compiles: ranks wait in the job's store, whose limit is that of the process group,
and each knows if another one failed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from torch.distributed.device_mesh import DeviceMesh

from autopar.codegen.backend import Backend, Build, Inductor, eager, require_compiler
from autopar.codegen.emit import Emitted
from autopar.codegen.executor import Executor
from autopar.codegen.lean import lean
from autopar.errors import RankError
from autopar.runtime.agreement import FAILURE, agree

logger = logging.getLogger("autopar")


def build_of(backend: Backend) -> Build:
    """What makes graphs run; what it has compiled is kept for later programs of a module. Collective for "inductor"."""
    if backend == "eager":
        return eager
    with together("a compiler"):
        require_compiler()
    return Inductor()


def prepared(emitted: Emitted, mesh: DeviceMesh, build: Build) -> Emitted:
    """The emitted program, with all graphs of a training step compiled if `build` compiles. Collective then."""
    if not isinstance(build, Inductor):
        return replace(emitted, build=build)
    ready = replace(lean(emitted), build=build)
    began_s, before = time.monotonic(), len(build.compilations)
    with together("compiled graphs"):
        Executor(ready, {name: mesh.get_group(name).group_name for name in emitted.plan.mesh.names}, ())
    logger.info(
        "Inductor compiled %d graphs of %s, for %d calls of its regions, in %.1f s",
        len(build.compilations) - before,
        emitted.program.name,
        2 * len(emitted.program.calls),
        time.monotonic() - began_s,
    )
    return ready


@contextmanager
def together(about: str) -> Iterator[None]:
    """What is inside succeeds on all ranks, or an error is raised on all: where it failed its own, elsewhere RankError."""
    try:
        yield
    except Exception as error:
        with suppress(RankError):
            agree({FAILURE: f"{type(error).__name__}: {error}"})
        raise
    agree({"about": about})
