"""What `plan_quality.py` measures, one dictionary at a time: ours, every baseline, and the two-stage way, on one problem."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autopar.profiler.model_cost import ModelCost
    from autopar.solver.baselines import Tried
    from autopar.solver.problem import Problem, Solution

CONFIGS = Path(__file__).parent / "configs"
TOKENS: dict[str, tuple[int, int | None]] = {
    "llama3-8b": (2, 8192),
    "llama3-70b": (2, 8192),
    "llama3-405b": (2, 8192),
    "gpt3-175b": (8, 2048),
    "mixtral-8x7b": (2, 8192),
    "bert-large": (32, 512),
    "t5-large": (32, 512),
    "vit-huge": (64, None),
}
"""Samples per device, and tokens per sample: some 16 thousand tokens per device."""
OTHERS = (2, 64)
"""For models that are not listed."""

BUDGETS = ("loose", "medium", "tight")
"""With L the peak of the plan that is fastest without any limit, and S the smallest budget that works: L, √(L·S) and
S·(L/S)^0.1, the last being a little above what is possible at all."""

SLACK = 1e-9
"""Relative: costs are sums of floats."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """How long and how well to search; samples per device (a part of one, too) and tokens per sample if not those above."""

    hardware: str = "h100-sxm"
    samples: float | None = None
    seq: int | None = None
    gap: float = 1e-3
    time_limit_s: float = 60.0


def config_of(model: str) -> Path:
    """A name of a file in `configs/`, or a path of one's own."""
    return Path(model) if model.endswith(".json") else CONFIGS / f"{model}.json"


def tokens_of(model: str, search: Search) -> tuple[float, int | None]:
    """Samples per device, tokens per sample."""
    samples, seq = TOKENS.get(Path(model).stem, OTHERS)
    return search.samples or samples, search.seq or seq


def measured(model: str, batch: int, search: Search) -> ModelCost:
    """The model, traced and profiled at one batch size."""
    from autopar.hardware import load as hardware
    from autopar.models import Options, load
    from autopar.profiler.model_cost import measure
    from autopar.tracer import trace

    dtype = "float32" if hardware(search.hardware).device_type == "cpu" else "bfloat16"
    loaded = load(str(config_of(model)), Options(batch=batch, seq=tokens_of(model, search)[1], dtype=dtype))
    return measure(trace(loaded.model, loaded.args, dict(loaded.kwargs), name=loaded.name))


def priced(cost: ModelCost, mesh: str, search: Search) -> Problem:
    """The problem on a mesh, without a budget."""
    from autopar.hardware import load
    from autopar.ir.mesh import MeshSpec
    from autopar.solver.build import Builder, Setting

    return Builder(cost, Setting(mesh=MeshSpec.of(mesh), hardware=load(search.hardware))).problem()


def frame(problem: Problem, search: Search) -> dict[str, Any]:
    """What budgets are chosen from: the peak of the fastest plan, and the smallest budget that was found to work."""
    from autopar.solver.search import solve
    from autopar.solver.smallest import smallest

    began = time.monotonic()
    loose = solve(problem, gap=search.gap, time_limit_s=search.time_limit_s)
    least = smallest(problem, time_limit_s=search.time_limit_s, start=loose)
    return {
        "loose_bytes": loose.peak_bytes,
        "loose_s": loose.cost_s,
        "smallest_bytes": least.bytes,
        "smallest_bound_bytes": least.bound_bytes,
        "where": least.where,
        "seconds": time.monotonic() - began,
    }


def budget_bytes(kind: str, frame: dict[str, Any]) -> float:
    large, small = max(frame["loose_bytes"], frame["smallest_bytes"]), frame["smallest_bytes"]
    share = {"loose": 1.0, "medium": 0.5, "tight": 0.1}[kind]
    return float(math.ceil(small * (large / small) ** share))


def row(problem: Problem, search: Search) -> dict[str, Any]:
    """All ways under the problem's budget, and which checks failed."""
    from autopar.solver.baselines import try_baselines
    from autopar.solver.two_stage import best_share, two_stage

    tried, baselines_s = timed(lambda: try_baselines(problem, gap=search.gap))
    fitting = [t.solution for t in tried if t.fits]
    ours, ours_s = timed(lambda: ours_of(problem, fitting, search))
    staged, staged_s = timed(lambda: two_stage(problem, gap=search.gap, time_limit_s=search.time_limit_s))
    shared, shared_s = timed(lambda: best_share(problem, gap=search.gap, time_limit_s=2 * search.time_limit_s))
    found = {
        "budget_bytes": problem.budget_bytes,
        "ours": figures(ours) | {"seconds": ours_s},
        "baselines": [baseline_figures(t) for t in tried],
        "baselines_seconds": baselines_s,
        "two_stage": figures(staged) | {"seconds": staged_s},
        "two_stage_best_share": figures(shared) | {"seconds": shared_s},
    }
    return found | judge(found, search.gap)


def ours_of(problem: Problem, incumbents: list[Solution], search: Search) -> Solution | None:
    from autopar.errors import BudgetError
    from autopar.solver.search import solve

    try:
        return solve(problem, gap=search.gap, time_limit_s=search.time_limit_s, incumbents=incumbents)
    except BudgetError:
        return None


def figures(solution: Solution | None) -> dict[str, Any]:
    """Its figures; `cost_s` is None for what does not fit."""
    if solution is None:
        return {"cost_s": None}
    return {
        "cost_s": solution.cost_s,
        "peak_bytes": solution.peak_bytes,
        "bound_s": solution.bound_s,
        "gap": solution.gap,
        "status": solution.status,
    }


def baseline_figures(tried: Tried) -> dict[str, Any]:
    return {
        "name": tried.name,
        "checkpoint": tried.checkpoint,
        "axes": " ".join(tried.purposes),
        "cost_s": tried.cost_s,
        "peak_bytes": tried.peak_bytes,
        "fits": tried.fits,
    }


def judge(found: dict[str, Any], gap: float) -> dict[str, Any]:
    """Gains, and the checks that failed: nothing that fits may be faster than ours, nor than what ours calls impossible."""
    ours, bound = found["ours"]["cost_s"], found["ours"].get("bound_s", math.inf)
    fitting = [b for b in found["baselines"] if b["fits"]]
    best = min(fitting, key=lambda b: b["cost_s"], default=None)
    rivals = {f"{b['name']} {b['checkpoint']}": b["cost_s"] for b in fitting}
    rivals |= {way: found[way]["cost_s"] for way in ("two_stage", "two_stage_best_share") if found[way]["cost_s"] is not None}
    failed = []
    for name, cost_s in rivals.items():
        allowed = SLACK if "two_stage" not in name else gap
        if ours is None or ours > cost_s * (1 + allowed):
            failed.append(f"ours above {name}")
        if ours is not None and cost_s < bound * (1 - 1e-6):
            failed.append(f"{name} below the bound of ours")
    if found["ours"].get("status") == "feasible":
        failed.append("gap not proven")
    return {
        "best_baseline": best,
        "gain_baseline": ratio(best and best["cost_s"], ours),
        "gain_two_stage": ratio(found["two_stage"]["cost_s"], ours),
        "gain_two_stage_best_share": ratio(found["two_stage_best_share"]["cost_s"], ours),
        "failed": failed,
    }


def ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a and b else None


def probe(problem: Problem, search: Search) -> dict[str, Any]:
    """Which ways fit the problem's budget at all, at this batch size: `ours`, `two_stage`, and the name of a baseline.

    `ours_proven`: false where no plan was found in time, but one may exist.
    """
    from autopar.solver.baselines import best_of, try_baselines
    from autopar.solver.smallest import smallest
    from autopar.solver.two_stage import best_share, two_stage

    assert problem.budget_bytes is not None
    began = time.monotonic()
    baseline = best_of(t for t in try_baselines(problem, gap=search.gap) if t.fits)
    staged = two_stage(problem, gap=search.gap, time_limit_s=search.time_limit_s)
    shared = staged or best_share(problem, gap=search.gap, time_limit_s=search.time_limit_s)
    ours, proven = bool(baseline or shared), True
    if not ours:
        least = smallest(problem, time_limit_s=search.time_limit_s, enough_bytes=problem.budget_bytes)
        ours = least.bytes <= problem.budget_bytes
        proven = ours or least.bound_bytes > problem.budget_bytes
    return {
        "ours": ours,
        "ours_proven": proven,
        "two_stage": staged is not None,
        "two_stage_best_share": shared is not None,
        "baseline": baseline and f"{baseline.name} {baseline.checkpoint}",
        "seconds": time.monotonic() - began,
    }


def largest(fits: Callable[[int], bool], start: int, most: int = 2**16) -> int:
    """The largest batch that fits (0: none), within an eighth: doubling or halving from `start`, then bisection among
    multiples of it (of an eighth of it, below)."""
    good, bad = start, 2 * start
    if fits(start):
        while bad <= most and fits(bad):
            good, bad = bad, 2 * bad
    else:
        while good and not fits(good):
            good, bad = good // 2, good
    step = start if good >= start else max(1, start // 8)
    while good and bad - good > max(step, good // 8):
        middle = max((good + bad) // 2 // step * step, good + step)
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    began = time.monotonic()
    return run(), time.monotonic() - began


def devices(mesh: str) -> int:
    return math.prod(int(n) for n in mesh.split("x"))


def by_devices(meshes: Iterable[str]) -> dict[int, list[str]]:
    """Meshes that share a traced program."""
    found: dict[int, list[str]] = {}
    for mesh in meshes:
        found.setdefault(devices(mesh), []).append(mesh)
    return found
