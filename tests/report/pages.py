"""Pages of the tests, and what can be asked of a page without a browser."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from html.parser import HTMLParser
from typing import Any

from torch import nn

from autopar.codegen.emit import Emitted
from autopar.hardware import load
from autopar.ir.mesh import MeshSpec
from autopar.ir.plan import Plan
from autopar.planning.compare import OURS, Comparison, Way
from autopar.planning.planner import realise
from autopar.planning.simulate import simulate
from autopar.profiler.model_cost import measure
from autopar.report.anatomy import anatomy
from autopar.report.evidence import Evidence, Inside
from autopar.report.memory import memory_of_step
from autopar.report.tracks import tracks
from autopar.solver.baselines import try_baselines
from autopar.solver.build import Builder, Setting
from autopar.tracer import trace
from tests.models import MODELS
from tests.planned import planned
from tests.small_plan import costing, small_plan

VOID = {"meta", "br"}
REMEDY = "autopar report plan.json --model MODEL -o report.html"


def alone(plan: Plan | None = None, **more: object) -> Evidence:
    """Of a plan without its model."""
    missing = "The plan does not say how its model is built."
    return Evidence(**{"plan": plan or small_plan(), "missing": missing, "remedy": REMEDY} | more)  # type: ignore[arg-type]


@lru_cache(maxsize=4)
def whole(name: str = "gpt2", mesh: str = "2x2") -> Evidence:
    """With everything that there is."""
    plan, emitted, _ = planned(name, mesh)
    return evidence_of(plan, emitted)


def evidence_of(plan: Plan, emitted: Emitted) -> Evidence:
    timeline = simulate(emitted, load("cpu"))
    calls = [(call.region, call.path or call.region) for call in emitted.program.calls]
    found = Inside(memory=memory_of_step(emitted, timeline), tracks=tracks(timeline, calls), anatomy=anatomy(emitted, timeline))
    return Evidence(plan=plan, hardware=load("cpu"), inside=found, comparison=comparison(plan), version="1.2.3")


def deep(layers: int = 126) -> Evidence:
    """Of a model with as many layers as the largest that people train; a known way, so that nothing is searched."""
    emitted = by_known_way(*MODELS["gpt2"](layers=layers), "2x4", "hsdp")
    return evidence_of(emitted.plan, emitted)


def by_known_way(model: nn.Module, kwargs: dict[str, Any], mesh: str, way: str, micro_batches: int = 1) -> Emitted:
    """The inputs are those of one micro-batch."""
    program = trace(model, (), kwargs, name="model")
    setting = Setting(mesh=MeshSpec.of(mesh), hardware=load("cpu"), micro_batches=micro_batches)
    builder = Builder(measure(program), setting)
    problem = builder.problem()
    (tried,) = try_baselines(problem, names=[way], checkpoints=["none"])
    return realise(builder, problem, tried.solution).emitted


def front() -> tuple[Plan, ...]:
    return tuple(costing(peak * 2**30, time_s) for peak, time_s in ((1.0, 0.4), (1.5, 0.3), (3.0, 0.2)))


def comparison(plan: Plan) -> Comparison:
    return Comparison(
        model=plan.model,
        mesh=plan.mesh,
        hardware=plan.hardware,
        budget_bytes=plan.budget_bytes,
        ways=(
            way(plan, OURS, "as planned", plan.step_time_s, plan.peak_bytes),
            way(plan, "fsdp", "full", 1.5 * plan.step_time_s, plan.peak_bytes),
            way(plan, "ddp", "none", 0.5 * plan.step_time_s, 9 * plan.peak_bytes, fits=False),
        ),
        absent=("ep",),
    )


def way(plan: Plan, name: str, checkpoint: str, step_time_s: float, peak_bytes: float, fits: bool = True) -> Way:
    return Way(
        name=name,
        checkpoint=checkpoint,
        step_time_s=step_time_s,
        clock_s=1.25 * step_time_s,
        peak_bytes=peak_bytes,
        fits=fits,
        sent_bytes=dict.fromkeys(plan.mesh.names, 2.0**20),
        time_s={},
        redone_flops=0,
    )


@dataclass
class Read(HTMLParser):
    """What a page is made of; raises AssertionError where tags do not match."""

    tags: list[str] = field(default_factory=list)
    attributes: list[tuple[str, str, str]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    within: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.within.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.within, f"</{tag}> closes nothing"
        assert self.within.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.within):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def of(self, name: str) -> list[str]:
        """The values of an attribute."""
        return [value for _, attribute, value in self.attributes if attribute == name]


def read(text: str) -> Read:
    found = Read()
    found.feed(text)
    found.close()
    assert found.within == [], f"never closed: {found.within}"
    return found
