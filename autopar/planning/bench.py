"""Plans settings one after the other in one process: a model is traced and measured once, priced once per mesh."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from autopar.api import aims_of
from autopar.errors import (
    AutoparError,
    BudgetError,
    ConstraintError,
    HardwareError,
    InputError,
    MeshError,
    UnshardableError,
)
from autopar.ir.mesh import MeshSpec
from autopar.ir.plan import Plan
from autopar.ir.program import Program
from autopar.models import Loaded
from autopar.planning.batches import batch_of
from autopar.planning.cache import remembered
from autopar.planning.planner import Planner
from autopar.planning.runs import Run, Setting
from autopar.tracer import trace

IMPOSSIBLE = (UnshardableError, ConstraintError, HardwareError, MeshError)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """`plan` is the text of its file. `counts`: whether it is an answer, and not a mistake of the question's."""

    run: Run
    plan: str | None = None
    notices: tuple[str, ...] = ()
    counts: bool = True


@dataclass(kw_only=True)
class Opened:
    """A traced model, its batch, and planners by what they aim at."""

    program: Program
    batch: int | None
    notices: tuple[str, ...]
    planners: dict[str, Planner] = field(default_factory=dict)


@dataclass(kw_only=True)
class Bench:
    """`load` builds the model of a setting, `sign` writes into a plan how it was made, `versions` are those that decide what a
    plan is. `cache`: of plans that were found before.

    The last program is kept, with all that was found out about it.
    """

    load: Callable[[Setting], Loaded]
    sign: Callable[[Plan, Setting], Plan]
    versions: Callable[[], dict[str, str]]
    cache: bool = True
    last: tuple[object, Opened | AutoparError] | None = None

    def __call__(self, setting: Setting) -> Finished:
        """Raises nothing: whatever happens is what came of the setting."""
        began_s = time.monotonic()
        try:
            finished = self.plan(setting)
        except BudgetError as error:
            finished = refused(setting, "does not fit", error, smallest_bytes=error.smallest_bytes)
        except IMPOSSIBLE as error:
            finished = refused(setting, "impossible", error)
        except InputError as error:
            finished = Finished(run=Run(setting=setting, outcome="error", message=str(error)), counts=False)
        except AutoparError as error:
            finished = refused(setting, "error", error)
        except Exception as error:
            traceback.print_exc()
            finished = refused(setting, "error", error, message=f"{type(error).__name__}: {error}")
        run = finished.run.model_copy(update={"took_s": time.monotonic() - began_s, "versions": self.versions()})
        return replace(finished, run=run)

    def plan(self, setting: Setting) -> Finished:
        mesh = MeshSpec.of(setting.mesh)
        setting.constraints.require_axes(mesh.names)
        opened = self.opened(setting)
        planner, searched = self.planner(setting, opened), []

        def search() -> Plan:
            searched.append(setting)
            return planner.find(mesh, setting.memory_bytes).plan

        plan = self.sign(remembered(planner, mesh, setting.memory_bytes, search, use=self.cache), setting)
        run = Run(
            setting=setting,
            outcome="fits",
            status=plan.status,
            step_time_s=plan.step_time_s,
            lower_bound_s=plan.lower_bound_s,
            gap=plan.gap,
            samples_per_s=None if opened.batch is None else opened.batch / plan.step_time_s,
            peak_bytes=plan.peak_bytes,
            time_s=plan.figures.time_s,
            remembered=not searched,
        )
        return Finished(run=run, plan=plan.to_json(), notices=opened.notices)

    def opened(self, setting: Setting) -> Opened:
        """The traced model; an error of loading or tracing is that of all settings of the program."""
        if self.last is None or self.last[0] != setting.traced:
            try:
                self.last = None  # its memory, before the next one takes some
                self.last = setting.traced, open_model(self.load(setting), setting)
            except AutoparError as error:
                self.last = setting.traced, error
        found = self.last[1]
        if isinstance(found, AutoparError):
            raise found
        return found

    def planner(self, setting: Setting, opened: Opened) -> Planner:
        if setting.aims not in opened.planners:
            aims = aims_of(
                setting.hardware,
                setting.optimizer,
                setting.time_limit_s,
                setting.gap,
                setting.overlap,
                setting.constraints,
            )
            other = next(iter(opened.planners.values()), None)
            opened.planners[setting.aims] = Planner(opened.program, aims) if other is None else other.with_aims(aims)
        return opened.planners[setting.aims]


def open_model(loaded: Loaded, setting: Setting) -> Opened:
    program = trace(loaded.model, loaded.args, dict(loaded.kwargs), name=loaded.name, precision=setting.precision)
    batch = None
    with suppress(InputError):
        batch = batch_of(loaded.args, loaded.kwargs)
    return Opened(program=program, batch=batch, notices=loaded.notices)


def refused(setting: Setting, outcome: Any, error: Exception, **known: Any) -> Finished:
    return Finished(run=Run(setting=setting, outcome=outcome, **{"message": str(error)} | known))
