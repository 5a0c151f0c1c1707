"""`autopar.trace` on two processes: what is measured stands beside what was predicted, by the same names; nothing changes."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

import autopar
from autopar.codegen.executor import run_graph
from autopar.codegen.module import ParallelModule
from autopar.errors import HardwareError, InputError
from autopar.hardware import load
from autopar.ir.plan import Plan
from autopar.ir.timeline import COMPUTE, WAITS
from autopar.ops.flops import collective_of
from autopar.planning.simulate import simulate
from autopar.runtime.readings import Readings
from autopar.runtime.recording import Mark, Recorder, Step
from tests.models import gpt2
from tests.planned import known_way
from tests.processes import run_processes

Events = list[dict[str, Any]]


def test_a_predicted_timeline_is_a_chrome_trace(tmp_path: Path) -> None:
    emitted, (model, kwargs) = known_way("gpt2", "2", "fsdp"), gpt2()
    found = autopar.timeline(model, emitted.plan, kwargs=kwargs)
    found.save(tmp_path / "trace.json")
    assert found == simulate(emitted, load("cpu"))
    (spans,) = processes(tmp_path / "trace.json").values()
    assert len(spans) == len(found.events)
    assert max(e["ts"] + e["dur"] for e in spans) == pytest.approx(found.step_s * 1e6)
    with pytest.raises(InputError, match=r"cannot write the trace .*trace.json/x: .*: give another file"):
        found.save(tmp_path / "trace.json" / "x")
    with pytest.raises(HardwareError, match="made for mine, from a file: give that file as hardware"):
        autopar.timeline(model, emitted.plan.model_copy(update={"hardware": "mine"}), kwargs=kwargs)
    with pytest.raises(InputError, match="this is a GPT2LMHeadModel"), autopar.trace(model, "trace.json"):
        pass


def processes(path: Path) -> dict[str, Events]:
    """The events of each process of a file, which are checked to be what the format says: none overlaps another of its row."""
    text = json.loads(path.read_text())
    names = {e["pid"]: e["args"]["name"] for e in text["traceEvents"] if e["name"] == "process_name"}
    rows = {(e["pid"], e["tid"]): e["args"]["name"] for e in text["traceEvents"] if e["name"] == "thread_name"}
    found, of_row = defaultdict[str, Events](list), defaultdict[Any, list[tuple[float, float]]](list)
    for e in text["traceEvents"]:
        assert e["ph"] in "XM"
        if e["ph"] == "X":
            assert all(isinstance(e[key], int | float) and e[key] >= 0 for key in ("ts", "dur", "pid", "tid"))
            assert rows[e["pid"], e["tid"]] == e["cat"]
            found[names[e["pid"]]].append(e)
            of_row[e["pid"], e["tid"]].append((e["ts"], e["ts"] + e["dur"]))
    for spans in of_row.values():
        assert all(end <= start + 1e-2 for (_, end), (start, _) in pairwise(sorted(spans)))
    return dict(found)


def names(events: Events, *tracks: str) -> Counter[tuple[str, str]]:
    return Counter((e["args"]["call"], e["name"]) for e in events if e["cat"] in tracks)


@pytest.mark.slow
def test_what_is_measured_stands_beside_what_was_predicted(tmp_path: Path) -> None:
    known_way("gpt2", "2", "fsdp").plan.save(tmp_path / "plan.json")
    run_processes(2, train, str(tmp_path / "plan.json"))


def train(rank: int, path: str) -> None:
    plan, folder = Plan.load(path), Path(path).parent
    mesh = init_device_mesh("cpu", plan.mesh.sizes, mesh_dim_names=plan.mesh.names)
    model, kwargs = gpt2()
    waiting = autopar.compile(model, mesh)
    with pytest.raises(InputError, match="before the first batch"), autopar.trace(waiting, folder / "never.json"):
        pass
    parallel = autopar.compile(model, mesh, kwargs=kwargs, plan=plan)
    weights = {name: p.detach().clone() for name, p in parallel.named_parameters()}
    expected = trained(parallel, kwargs)
    parallel.load_state_dict(weights, strict=False)
    with autopar.trace(parallel, folder / "trace{rank}.json"):
        found = trained(parallel, kwargs)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    two_steps(processes(folder / f"trace{rank}.json"), parallel)
    accumulated(rank, parallel, kwargs, folder)
    with pytest.raises(ZeroDivisionError), autopar.trace(parallel, folder / "never.json"):
        fail(parallel(**kwargs))
    assert not (folder / "never.json").exists()
    assert parallel.variants[0].executor.run_graph is run_graph, "and nobody watches any more"


def fail(_: Any) -> None:
    raise ZeroDivisionError


def trained(model: nn.Module, kwargs: Mapping[str, Tensor]) -> list[Tensor]:
    """Losses and weights of two steps, with collectives of others between them."""
    stepper, found = torch.optim.SGD(model.parameters(), lr=0.1), []
    for _ in range(2):
        loss = model(**kwargs).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        stepper.step()
        stepper.zero_grad()
        found.append(loss.detach())
    return [*found, *(p.detach().to_local().clone() for p in model.parameters())]  # type: ignore[operator]


def two_steps(found: dict[str, Events], parallel: ParallelModule) -> None:
    emitted = parallel.variants[0].emitted
    predicted, measured = found["predicted"], found["measured"]
    sent = [n for _, halves in emitted.halves() for n in (*halves.forward.nodes, *halves.backward.nodes) if collective_of(n)]
    assert names(predicted, "gpu").total() == 2 * len(sent) > 100
    assert names(measured, "gpu") == names(predicted, "gpu") == names(measured, WAITS)
    assert names(measured, COMPUTE) == names(predicted, COMPUTE)
    for key in ("bytes", "placements", "module", "source"):
        ours, theirs = (Counter(e["args"].get(key) for e in events if e["cat"] != WAITS) for events in (measured, predicted))
        assert ours == theirs
        assert len(ours) > 3
    one = simulate(emitted, load("cpu")).step_s
    last = max(e["ts"] + e["dur"] for e in predicted) * 1e-6
    second = min(e["ts"] for e in predicted if e["args"]["call"] == "start forward" and e["ts"] > one * 1e6 - 1) * 1e-6
    assert last - second == pytest.approx(one)
    ends = {(e["args"]["call"], e["name"]): e["ts"] + e["dur"] for e in measured if e["cat"] == "gpu"}
    waited = {(e["args"]["call"], e["name"]): e["ts"] + e["dur"] for e in measured if e["cat"] == WAITS}
    assert all(ends[key] <= waited[key] + 1e3 for key in ends), "nothing is waited for that has not arrived"


def accumulated(rank: int, parallel: ParallelModule, kwargs: Mapping[str, Tensor], folder: Path) -> None:
    """Only rank 0 writes a path without a rank. A backward that reduces nothing has fewer collectives than was predicted."""
    with autopar.trace(parallel, folder / "sum.json", hardware="cpu"):
        with parallel.no_sync():
            parallel(**kwargs).loss.backward()
        parallel(**kwargs).loss.backward()
        with torch.no_grad():
            parallel(**kwargs)
    parallel.zero_grad()
    torch.distributed.barrier()
    if rank == 0:
        found = processes(folder / "sum.json")
        measured, predicted = names(found["measured"], "gpu"), names(found["predicted"], "gpu")
        forward = Counter({key: n for key, n in predicted.items() if key[0].endswith("forward")})
        assert (
            Counter({key: n for key, n in measured.items() if key[0].endswith("forward")}).total() == forward.total() * 3 // 2
        )
        backward = predicted.total() - forward.total()
        assert 0 < measured.total() - forward.total() * 3 // 2 < backward


def profiled(category: str, name: str, start: float, end: float) -> dict[str, Any]:
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": end - start}


def recorded() -> Recorder:
    """Two gathers are started, then a product waits for the first."""
    recorder = Recorder([])
    gathers = [Mark(call="a", name=name, track="gpu", about={"collective": "all_gather"}) for name in ("first", "second")]
    waits = [Mark(call="a", name=name, track=WAITS, about={}) for name in ("first", "second")]
    recorder.marks = [*gathers, waits[0], Mark(call="a", name="product", track=COMPUTE, about={}), waits[1]]
    recorder.steps = [Step(known_way("gpt2", "2", "fsdp"), 0)]
    return recorder


HOST = [profiled("user_annotation", f"autopar:{k}", 100 + 10 * k, 105 + 10 * k) for k in range(5)]


def spans(events: Events, tracks: tuple[str, ...] = ("gpu", COMPUTE, WAITS)) -> dict[tuple[str, str], tuple[float, float]]:
    found = Readings(recorded(), events).measured(tracks).timeline
    return {(e.track, e.name): (round(e.start_s * 1e6, 3), round(e.end_s * 1e6, 3)) for e in found.events}


def test_two_collectives_of_one_axis_follow_each_other() -> None:
    """gloo works at two at a time, and on others of whoever else uses the group: those are none of the graphs'."""
    other = profiled("user_annotation", "gloo:all_gather", 50, 99), profiled("user_annotation", "gloo:broadcast", 101, 102)
    both = profiled("user_annotation", "gloo:all_gather", 103, 118), profiled("user_annotation", "gloo:all_gather", 112, 139)
    found = spans([*HOST, *other, *both])
    assert found["gpu", "first"] == (3, 18)
    assert found["gpu", "second"] == (18, 39), "a track carries one after the other"
    assert found[WAITS, "first"] == (20, 25)
    assert spans(HOST)["gpu", "second"] == (25, 45), "nobody reported it: until it was waited for"


def test_on_a_gpu_kernels_count_and_not_the_host() -> None:
    """As the profiler writes it there: marks on the host, and beside them the kernels that were launched inside."""
    kernels = [profiled("gpu_user_annotation", "autopar:3", 200, 220), profiled("gpu_user_annotation", "autopar:3", 230, 240)]
    sent = [profiled("gpu_user_annotation", "nccl:_all_gather_base", a, a + 40) for a in (150, 190)]
    found = spans([*HOST, *kernels, *sent, profiled("user_annotation", "nccl:_all_gather_base", 101, 102)])
    assert found == {(COMPUTE, "product"): (100, 140), ("gpu", "first"): (50, 90), ("gpu", "second"): (90, 130)}
