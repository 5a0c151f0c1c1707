"""Plans that were found before, as files in the user's cache folder: searching is most of a start.

An entry is named by all that a plan depends on (`autopar.planning.key`) and holds one plan as JSON under its digest.
What does not read as it was written is ignored, with a notice, and written anew. The folder is bounded: what was not used for
the longest time goes first.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from autopar.errors import PlanError
from autopar.ir.document import write_atomically
from autopar.ir.mesh import MeshSpec
from autopar.ir.plan import Plan
from autopar.planning.key import key_of
from autopar.planning.planner import Planner

logger = logging.getLogger("autopar")

LIMIT_BYTES = 128 * 2**20
HEADER = "autopar-cache 1 sha256 "
FOLDER_VARIABLE = "AUTOPAR_CACHE_DIR"


def cache_folder() -> Path | None:
    """`AUTOPAR_CACHE_DIR`, or `autopar` in the user's cache folder; None if the variable is set to nothing."""
    given = os.environ.get(FOLDER_VARIABLE)
    if given is not None:
        return Path(given).expanduser() if given else None
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "autopar"


@dataclass(frozen=True, kw_only=True)
class PlanCache:
    """A folder of plans, at most `limit_bytes` together. A folder that cannot be written to costs a notice, nothing else."""

    folder: Path
    limit_bytes: int = LIMIT_BYTES

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.plan"

    def get(self, key: str) -> Plan | None:
        """The plan, which counts as used now; None if there is none, or it is damaged."""
        path = self.path(key)
        try:
            header, _, text = path.read_text(encoding="utf-8").partition("\n")
            if header != HEADER + digest(text):
                raise PlanError("its content is not what was written")
            plan = Plan.from_json(text, "the plan in it")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError, PlanError) as error:
            logger.warning("ignored the cache entry %s, it is damaged (%s): the plan is searched again", path, error)
            return None
        with suppress(OSError):
            os.utime(path)
        return plan

    def put(self, key: str, plan: Plan) -> None:
        text = plan.to_json()
        try:
            write_atomically(self.path(key), f"{HEADER}{digest(text)}\n{text}")
            self.evict()
        except OSError as error:
            logger.warning("cannot keep the plan in %s: %s", self.folder, error.strerror)

    def evict(self) -> None:
        """Remove what was not used for the longest time until the rest is within the limit. Others may do so as well."""
        entries = []
        for path in self.folder.glob("*.plan"):
            with suppress(FileNotFoundError):
                status = path.stat()
                entries.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries)[:-1]:
            if total <= self.limit_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def remembered(
    planner: Planner, mesh: MeshSpec, budget_bytes: int | None, search: Callable[[], Plan], *, use: bool = True
) -> Plan:
    """The plan that was found before for just this, or else what `search` finds, which is kept."""
    folder = cache_folder() if use else None
    if folder is None:
        return search()
    cache, key = PlanCache(folder=folder), key_of(planner, mesh, budget_bytes)
    found = cache.get(key)
    if found is not None:
        with suppress(PlanError):
            found.require(planner.program, mesh)
            logger.info("the plan for %s on %s was found before: %s", planner.program.name, mesh, cache.path(key))
            return found
    plan = search()
    cache.put(key, plan)
    return plan
