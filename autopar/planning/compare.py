"""A plan beside the known ways to parallelize the same program on the same mesh, each counted on graphs of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import product

from autopar.hardware.link import Link
from autopar.ir.mesh import MeshSpec
from autopar.ir.plan import Plan
from autopar.ir.shown import Shown
from autopar.ir.timeline import step_on_clock_s
from autopar.planning.planner import realise
from autopar.planning.question import Question
from autopar.planning.simulate import simulate
from autopar.solver.baselines import BASELINES, CHECKPOINTS, Checkpoint, Drafts, Purposes, Tried, tries
from autopar.solver.problem import Problem

OURS = "this plan"
GAP, LIMIT_S = 1e-3, 60.0
"""For each small program of a known way."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to parallelize, as predicted per step: seconds, and bytes per device.

    `checkpoint` says what backward makes again: none, selective (norms and pointwise work, attention) or full (all of a
    layer); "as planned" for the plan itself. `purposes`: what each mesh axis is for. `step_time_s` is that of the cost model,
    which lets parameters and gradients travel beside the computation as far as it lasts; `clock_s` that of the way's own graphs
    on a clock, in the order in which they send and wait. `time_s` splits the step time as `Figures.time_s`, `sent_bytes` has
    what a device sends on each axis, `redone_flops` what runs twice.
    """

    name: str
    checkpoint: Checkpoint | str
    purposes: Purposes = ()
    step_time_s: float
    clock_s: float
    peak_bytes: float
    fits: bool
    sent_bytes: Mapping[str, float]
    time_s: Mapping[str, float]
    redone_flops: int


@dataclass(frozen=True, kw_only=True)
class Comparison(Shown):
    """`ways`: the plan first, then the known ones in their usual order. `absent` have no place here: no dim to cut so."""

    model: str
    mesh: MeshSpec
    hardware: str
    budget_bytes: int | None
    ways: tuple[Way, ...]
    absent: tuple[str, ...] = ()

    @property
    def ours(self) -> Way:
        return self.ways[0]

    @property
    def best(self) -> Way | None:
        """The fastest of the known ways that fit."""
        return min((way for way in self.ways[1:] if way.fits), key=lambda way: way.step_time_s, default=None)

    @property
    def best_on_clock(self) -> Way | None:
        """The known way that fits whose graphs take the least time on the clock."""
        return min((way for way in self.ways[1:] if way.fits), key=lambda way: way.clock_s, default=None)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a way becomes: its plan, and the seconds of a step on the clock of its graphs."""

    plan: Plan
    clock_s: float


def compare(
    question: Question, names: Iterable[str] = tuple(BASELINES), checkpoints: Iterable[Checkpoint] = CHECKPOINTS
) -> Comparison:
    """Each way with each checkpoint, whether it fits the plan's budget or not; of its variants the fastest that fits.

    Peaks and times on the clock are those of the emitted graphs, as the plan's are; ZeRO-1's are ZeRO-2's and, of the peak, as
    the solver estimates it, what whole gradients need beside that.
    """
    names, progress, plan = tuple(names), question.progress, question.plan
    progress("finding the known ways to parallelize")
    unlimited = replace(question.problem, budget_bytes=None)
    drafts, known = Drafts(unlimited, GAP, LIMIT_S), dict[int, Run]()
    _ = question.decided
    ways = [ours(question)]
    for name, checkpoint in product(names, checkpoints):
        best: Way | None = None
        for variant in sorted(tries(unlimited, name, checkpoint, drafts), key=lambda tried: tried.cost_s):
            progress(f"counting {name}, checkpoint {checkpoint}")
            if id(variant.solution) not in known:
                known[id(variant.solution)] = run(question, unlimited, variant)
            way = counted(question, variant, known[id(variant.solution)])
            best = way if best is None or way.fits or way.peak_bytes < best.peak_bytes else best
            if way.fits:
                break
        ways += [] if best is None else [best]
    there = {way.name for way in ways}
    return Comparison(
        model=plan.model,
        mesh=plan.mesh,
        hardware=plan.hardware,
        budget_bytes=plan.budget_bytes,
        ways=tuple(ways),
        absent=tuple(name for name in names if name not in there),
    )


def run(question: Question, unlimited: Problem, tried: Tried) -> Run:
    """Its graphs, emitted and put on the clock."""
    found = realise(question.priced.builder, unlimited, tried.solution)
    once_s = simulate(found.emitted, question.planner.aims.hardware).step_s
    return Run(plan=found.plan, clock_s=step_on_clock_s(found.plan, once_s))


def ours(question: Question) -> Way:
    found = Run(plan=question.plan, clock_s=question.clock_s)
    return way_of(question, found, OURS, "as planned", found.plan.peak_bytes)


def counted(question: Question, tried: Tried, found: Run) -> Way:
    """ZeRO-1 is run as ZeRO-2's plan, and needs whole gradients beside it."""
    more = tried.peak_bytes - tried.solution.peak_bytes
    return way_of(question, found, tried.name, tried.checkpoint, found.plan.peak_bytes + more, tried.purposes)


def way_of(question: Question, found: Run, name: str, checkpoint: str, peak_bytes: float, purposes: Purposes = ()) -> Way:
    plan, budget = found.plan, question.plan.budget_bytes
    return Way(
        name=name,
        checkpoint=checkpoint,
        purposes=purposes,
        step_time_s=plan.step_time_s,
        clock_s=found.clock_s,
        peak_bytes=peak_bytes,
        fits=budget is None or peak_bytes <= budget,
        sent_bytes=sent_bytes(plan, question.priced.builder.links),
        time_s=plan.figures.time_s,
        redone_flops=plan.figures.redone_flops * plan.micro_batches,
    )


def sent_bytes(plan: Plan, links: Iterable[Link]) -> dict[str, float]:
    """What one device sends in a step, by mesh axis."""
    axes = {name: (size, link) for name, size, link in zip(plan.mesh.names, plan.mesh.sizes, links, strict=True)}
    found = dict.fromkeys(axes, 0.0)
    for c in plan.figures.collectives:
        size, link = axes[c.axis]
        found[c.axis] += plan.micro_batches * link.sent_bytes(c.kind, c.bytes, size)
    return found
