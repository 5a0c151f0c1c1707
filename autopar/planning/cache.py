"""Plans that were found before: searching is most of a first start.

An entry is named by all that a plan depends on (`autopar.planning.key`) and holds one plan as JSON.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from autopar.cache.store import Store, cache_folder
from autopar.errors import PlanError
from autopar.ir.mesh import MeshSpec
from autopar.ir.plan import Plan
from autopar.planning.key import key_of
from autopar.planning.planner import Planner

logger = logging.getLogger("autopar")


@dataclass(frozen=True, kw_only=True)
class PlanCache(Store):
    """Plans among the entries of a folder."""

    suffix: str = ".plan"
    what: str = "the plan"

    def find(self, key: str) -> Plan | None:
        return self.get(key, lambda text: Plan.from_json(text, "the plan in it"))


def remembered(
    planner: Planner, mesh: MeshSpec, budget_bytes: int | None, search: Callable[[], Plan], *, use: bool = True
) -> Plan:
    """The plan that was found before for just this, or else what `search` finds, which is kept."""
    folder = cache_folder() if use else None
    if folder is None:
        return search()
    cache, key = PlanCache(folder=folder), key_of(planner, mesh, budget_bytes)
    found = cache.find(key)
    if found is not None:
        with suppress(PlanError):
            found.require(planner.program, mesh)
            logger.info("the plan for %s on %s was found before: %s", planner.program.name, mesh, cache.path(key))
            return found
    plan = search()
    cache.put(key, plan.to_json())
    return plan
