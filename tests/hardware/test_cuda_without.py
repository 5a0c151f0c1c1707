"""Calibration on CUDA devices, with a torch.cuda that only pretends: which events it records, and whom it asks for what."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from autopar.errors import HardwareError
from autopar.hardware import load
from autopar.hardware.calibrate import Job, assemble, require_device, resembling
from autopar.hardware.fit import OpSample
from autopar.hardware.measure import cuda_events

GPU = torch.device("cuda", 0)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was called, in order. Between two events 300 ms pass."""
    called: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            called.append("record")

        def synchronize(self) -> None:
            called.append("wait")

        def elapsed_time(self, end: Event) -> float:
            called.append("read")
            return 300.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: called.append("synchronize"))
    properties = SimpleNamespace(name="NVIDIA H100 80GB HBM3", total_memory=85_000_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: properties.name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    return called


def test_events_stand_around_the_calls_and_are_waited_for(log: list[str]) -> None:
    assert cuda_events(lambda: log.append("run"), 3) == pytest.approx(0.1)
    assert log == ["synchronize", "record", "run", "run", "run", "record", "wait", "read"]


def test_what_is_not_measured_is_as_in_the_description_of_the_device(log: list[str]) -> None:
    h100 = load(resembling(GPU))
    samples = [
        OpSample(flops=0, bytes=48, dtype="float32", seconds=5e-6),
        OpSample(flops=0, bytes=1e9, dtype="float32", seconds=1e-3),
        OpSample(flops=1e12, bytes=0, dtype="bfloat16", seconds=2e-3),
        OpSample(flops=1e12, bytes=0, dtype="float32", seconds=2e-2),
    ]
    found = assemble("mine", GPU, Job(), None, h100, samples, {})
    assert (found.device_type, found.memory_bytes, found.devices_per_node) == ("cuda", 85_000_000_000, 4)
    assert found.flops_per_s["bfloat16"] == pytest.approx(5e14, rel=0.01)
    assert found.flops_per_s["float8_e4m3fn"] == h100.flops_per_s["float8_e4m3fn"]
    assert found.sources["peak_flops_per_s.float8_e4m3fn"] == "not measured: h100-sxm, times its efficiency"
    assert found.sources["peak_flops_per_s.bfloat16"].startswith("measured: square matmuls, NVIDIA H100 80GB HBM3, torch")
    assert found.links == h100.links


def test_each_process_of_a_node_needs_a_device(log: list[str]) -> None:
    require_device("cuda", Job(world_size=8, local_world_size=4, distributed=True))
    with pytest.raises(HardwareError, match="8 processes per node need as many CUDA devices; torch finds 4"):
        require_device("cuda", Job(world_size=8, local_world_size=8, distributed=True))
