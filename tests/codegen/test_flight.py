"""Gradients that are on their way when their call's backward is over: which, how many, and that all of them land."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from autopar.codegen.all_ranks import run_all_ranks
from autopar.codegen.emit import Emitted, emit
from autopar.codegen.flight import Air, flights
from autopar.codegen.measure import levels
from autopar.codegen.schedule import started
from autopar.ir.run import zip_inputs
from autopar.ir.widen import widened
from autopar.ops.flops import collectives_of
from autopar.torch_private import TorchDispatchMode
from autopar.verification import EPS, LEARNING_RATE, TOLERANCE, compare, run_serial
from tests.planned import known_way, traced

LAYERS = "transformer.h.*"
c10d = torch.ops._c10d_functional


def test_reductions_fly_where_memory_is_free_and_stay_below_the_peak() -> None:
    """FSDP's gradients are sent in full and arrive in pieces: what is in the air takes memory."""
    emitted = known_way("gpt2", "2", "fsdp")
    found, (_, highest) = levels(emitted), levels(emitted).highest
    made = flights(emitted)
    assert any(f.flying is not None for f in made)
    for flight, (_, level) in zip(made, found.backward, strict=True):
        extra = 0 if flight.flying is None else flight.flying.extra_bytes
        assert 0 <= flight.room_bytes == highest - level - extra


def test_where_the_peak_is_nothing_more_is_in_the_air() -> None:
    emitted = known_way("gpt2", "2", "fsdp")
    made, (where, highest) = flights(emitted), levels(emitted).highest
    at_peak = [f for f, level in zip(made, levels(emitted).backward, strict=True) if level == (where, highest)]
    assert at_peak, "the peak is not in backward: the test shows nothing"
    assert all(f.room_bytes == 0 and (f.flying is None or f.flying.extra_bytes == 0) for f in at_peak)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_the_same_is_sent_and_gradients_of_activations_do_not_fly(way: str) -> None:
    emitted = known_way("gpt2", "2", way)
    for (region, halves), flight in zip(emitted.halves(), flights(emitted), strict=True):
        if flight.flying is None:
            continue
        graph = flight.flying.graph
        assert Counter(map(str, collectives_of(graph.nodes))) == Counter(map(str, collectives_of(halves.backward.nodes)))
        (results,) = graph.output_node().args
        assert isinstance(results, tuple | list)
        unwaited = [k for k, node in enumerate(results) if started(node)]
        assert unwaited == sorted(flight.flying.bytes)
        assert all(halves.gradients[k] >= len(region.local.region.inputs) for k in unwaited)


def test_what_is_sent_counts_until_it_lands() -> None:
    """An all-reduce sends a copy, which becomes its result: nothing else lasts. A reduce-scatter sends the gradient itself."""
    for way, sends in (("ddp", False), ("fsdp", True)):
        emitted = known_way("gpt2", "2", way)
        flying = [f.flying for f in flights(emitted) if f.flying is not None]
        assert flying
        assert all((sum(f.bytes.values()) > 0) == sends for f in flying)


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down what is started and what is waited for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.started: list[Tensor] = []
        self.waited: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is c10d.wait_tensor.default:
            self.waited.append(args[0])
        elif func.namespace == "_c10d_functional":
            self.started.append(result)
        return result


def test_the_oldest_land_first_and_as_many_as_must() -> None:
    air, tensors = Air(), [torch.ones(1) * i for i in range(4)]
    with Waits() as log:
        air.take_off([(t, 10) for t in tensors[:3]])
        air.land(30)
        assert log.waited == []
        air.land(15)
        assert [float(t) for t in log.waited] == [0, 1]
        air.take_off([(tensors[3], 0)])
        air.land()
        assert [float(t) for t in log.waited] == [0, 1, 2, 3]
        assert air.bytes == 0


@contextmanager
def unlimited(emitted: Emitted, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if there were memory for all of them."""
    from autopar.codegen import executor

    def all_fly(given: Emitted) -> Any:
        from autopar.codegen.flight import Flight, fly

        return [Flight(flying=fly(h, len(r.local.region.inputs)), room_bytes=float("inf")) for r, h in given.halves()]

    with monkeypatch.context() as patched:
        patched.setattr(executor, "flights", all_fly)
        yield


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_numbers_are_those_of_the_serial_run_when_all_fly(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, kwargs = traced("gpt2", torch.float64).model, traced("gpt2", torch.float64).kwargs
    program = widened(traced("gpt2", torch.float64).program)
    emitted = emit(program, known_way("gpt2", "2", way, torch.float64).plan)
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    state = {name: state[name].detach() for name in program.state if program.state[name].kind != "constant"}
    state |= {n: s.value for n, s in program.state.items() if s.value is not None}
    inputs = dict(zip_inputs(program, (), kwargs))
    serial = run_serial(program, state, inputs, 2)
    with unlimited(emitted, monkeypatch):
        ours = run_all_ranks(emitted, state, inputs, 2, lambda ps: torch.optim.AdamW(ps, lr=LEARNING_RATE, eps=EPS))
    worst = compare(ours, serial, program)[0]
    assert worst.relative_error <= TOLERANCE, worst
