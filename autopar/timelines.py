"""When everything happens in a training step: predicted for a plan, and measured beside the prediction."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.profiler import ProfilerActivity, profile

import autopar
from autopar.codegen.emit import Emitted, emit
from autopar.codegen.module import ParallelModule
from autopar.errors import HardwareError, InputError
from autopar.hardware import Hardware, load
from autopar.ir.plan import Plan
from autopar.ir.timeline import COMPUTE, WAITS, Timeline, save_trace
from autopar.planning.simulate import simulate
from autopar.runtime.readings import Measured, Readings
from autopar.runtime.recording import Recorder, Step
from autopar.tracer import trace as traced


def timeline(
    model: nn.Module,
    plan: Plan,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    hardware: str | Hardware | None = None,
) -> Timeline:
    """One forward and backward of a plan on a clock, as one device sees it: what computes, what travels, who waits.

    `args`/`kwargs` as for `plan` (those of one micro-batch), `hardware` that of the plan if left out. Nothing runs. Raises
    PlanError if the plan is for another program.

    >>> # autopar.timeline(model, plan, kwargs=batch).save("trace.json")    # for https://ui.perfetto.dev
    """
    program = traced(model, args, dict(kwargs or {}), precision=plan.precision)
    plan.require(program, plan.mesh)
    return simulate(emit(program, plan), hardware_of(plan, hardware))


@contextmanager
def trace(parallel: nn.Module, path: str | Path, *, hardware: str | Hardware | None = None) -> Iterator[None]:
    """Measure the training steps inside, and write them beside what was predicted for them, as a Chrome trace.

    Two processes, "predicted" and "measured", with the same rows (compute, waits, and each mesh axis) and the same names. All
    ranks enter; rank 0 writes, or each rank if `path` has "{rank}" in it. The first step inside is slower than others: take
    the second. `hardware` is what predictions are for, that of the plan if left out. Outside of the block nothing is slower;
    inside, results are the same. It uses `torch.profiler`, so no other profiler may run.

    >>> # with autopar.trace(parallel, "trace.json"):
    >>> #     for batch in two_batches: step(batch)
    """
    if not isinstance(parallel, ParallelModule):
        raise InputError(f"trace measures what autopar.compile returned, and this is a {type(parallel).__name__}")
    if not parallel.variants_now:
        raise InputError("there is nothing to trace before the first batch: call the module once, then trace")
    device = hardware_of(parallel.plan, hardware)
    recorder = Recorder(parallel.variants)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with recorder.watching(), profile(activities=activities) as profiler:
        yield
    if (own := path_of_rank(path)) is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(f"{folder}/profiled.json")
        profiled = json.loads(Path(folder, "profiled.json").read_text())["traceEvents"]
    measured = Readings(recorder, profiled).measured((COMPUTE, WAITS, *parallel.plan.mesh.names))
    about = {"plan": parallel.plan.model, "mesh": parallel.plan.mesh, "hardware": device.name}
    about |= {"autopar": autopar.__version__, "torch": torch.__version__}
    save_trace(own, {"predicted": predicted(recorder.steps, measured, device), "measured": measured.timeline}, **about)


def predicted(steps: Sequence[Step], measured: Measured, hardware: Hardware) -> Timeline:
    """That of each step which has a backward: it begins where the measured one does, or when the one before is over."""
    known: dict[int, Timeline] = {}

    def of(emitted: Emitted) -> Timeline:
        if id(emitted) not in known:
            known[id(emitted)] = simulate(emitted, hardware)
        return known[id(emitted)]

    events, waited, end = [], 0.0, 0.0
    for step, begin in zip(steps, measured.begins_s, strict=True):
        if step.backward is not None:
            one = of(step.emitted)
            start = max(begin, end)
            events += [e.later(start) for e in one.events]
            end, waited = start + one.step_s, waited + one.waited_s
    return Timeline(tracks=measured.timeline.tracks, events=tuple(events), step_s=end, waited_s=waited)


def path_of_rank(path: str | Path) -> Path | None:
    """Where this process writes; None if it does not."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    if "{rank}" in str(path):
        return Path(str(path).replace("{rank}", str(rank)))
    return Path(path) if rank == 0 else None


def hardware_of(plan: Plan, hardware: str | Hardware | None) -> Hardware:
    """What is given, or what the plan was made for; raises HardwareError."""
    if isinstance(hardware, Hardware):
        return hardware
    try:
        return load(plan.hardware if hardware is None else hardware)
    except HardwareError as error:
        if hardware is not None:
            raise
        raise HardwareError(f"the plan was made for {plan.hardware}, from a file: give that file as hardware") from error
