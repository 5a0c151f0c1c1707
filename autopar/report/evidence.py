"""What a report is made of: the plan, and where its model is at hand, what its graphs and their clock say. All plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autopar.errors import HardwareError
from autopar.hardware import Hardware, load
from autopar.ir.mesh import MeshSpec
from autopar.ir.plan import Plan
from autopar.report.anatomy import RegionFacts, anatomy
from autopar.report.memory import StepMemory, memory_of_step
from autopar.report.tracks import Tracks, tracks

if TYPE_CHECKING:
    from autopar.planning.compare import Comparison
    from autopar.planning.question import Question


@dataclass(frozen=True, kw_only=True)
class Inside:
    """What only the model's graphs say."""

    memory: StepMemory
    tracks: Tracks
    anatomy: Mapping[str, RegionFacts]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """`front`: the plans of a Pareto file, of which `plan` is the one at `point` (from 0). `missing`: why there is no
    `inside`; `uncompared`: why no `comparison`; `remedy`: the command that would have it. `hardware` is None if its file is
    not here."""

    plan: Plan
    front: tuple[Plan, ...] = ()
    point: int = 0
    front_complete: bool = False
    hardware: Hardware | None = None
    inside: Inside | None = None
    comparison: Comparison | None = None
    missing: str = ""
    uncompared: str = ""
    remedy: str = ""
    version: str = ""


def known_hardware(name: str, mesh: MeshSpec) -> Hardware | None:
    """None if there is no such file (any more), or if it has not the links that the mesh names."""
    try:
        found = load(name)
        found.axis_links(mesh)
    except HardwareError:
        return None
    return found


def inside(question: Question) -> Inside:
    """Emits the plan's graphs, runs the clock, and counts the memory; raises PlanError where the plan cannot be emitted."""
    emitted, timeline = question.emitted, question.timeline
    question.progress("counting memory over the step")
    return Inside(
        memory=memory_of_step(emitted, timeline),
        tracks=tracks(timeline, [(call.region, call.path or call.region) for call in emitted.program.calls]),
        anatomy=anatomy(emitted, timeline),
    )
