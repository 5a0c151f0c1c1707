"""How often things are timed, with a stopwatch that only pretends; and real ops on the CPU, once each."""

from __future__ import annotations

import statistics
from contextlib import AbstractContextManager
from dataclasses import replace

import pytest
import torch

from autopar.errors import HardwareError, MeshError
from autopar.hardware.calibrate import Job, fastest, resembling_gpu, slowest_of_all
from autopar.hardware.fit import OpSample
from autopar.hardware.measure import DTYPES, EFFORTS, KIB, TF32, Effort, Run, measure_ops, precision, seconds_per_call

TINY = Effort(
    passes=1,
    point_s=0.002,
    message_s=0.002,
    longest_s=5.0,
    matmul_sizes=(32, 64),
    stream_bytes=(64 * KIB,),
    message_bytes=(KIB,),
)


class Pretended:
    """A stopwatch on which a call takes what `seconds` says next; counts the calls asked for."""

    def __init__(self, *seconds: float) -> None:
        self.seconds, self.asked = list(seconds), list[int]()

    def __call__(self, run: Run, repeats: int) -> float:
        self.asked.append(repeats)
        return self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0]


def test_short_calls_are_repeated_and_the_fastest_batch_counts() -> None:
    watch = Pretended(9.0, 0.001, 0.003, 0.0005, 0.004, 0.003, 0.003)
    assert seconds_per_call(lambda: None, watch, point_s=0.1) == 0.0005
    assert watch.asked == [1, 1, 20, 20, 20, 20, 20]


def test_another_batch_may_count() -> None:
    watch = Pretended(9.0, 0.001, 0.003, 0.0005, 0.004, 0.002, 0.003)
    assert seconds_per_call(lambda: None, watch, point_s=0.1, of=statistics.median) == 0.003


def test_long_calls_are_not() -> None:
    watch = Pretended(3.0)
    assert seconds_per_call(lambda: None, watch, point_s=0.1) == 3.0
    assert watch.asked == [1, 1]


def test_processes_agree_on_how_often() -> None:
    """Two processes that see different times repeat equally often, or a collective would wait for ever."""
    slow, fast = Pretended(0.01), Pretended(0.001)
    for watch in (slow, fast):
        assert seconds_per_call(lambda: None, watch, point_s=0.5, agree=lambda seconds: 0.01) == 0.01
    assert slow.asked == fast.asked


def test_ops_of_all_kinds_are_measured() -> None:
    said: list[str] = []
    samples = measure_ops(torch.device("cpu"), TINY, said.append, dtypes=("float32", "bfloat16", TF32))
    assert [(s.flops, s.bytes) for s in samples if not s.flops] == [(0, 48), (0, 2 * 64 * KIB), (0, 3 * 64 * KIB)]
    matmuls = [(s.dtype, s.flops, s.bytes) for s in samples if s.flops]
    assert matmuls[:2] == [("float32", 2 * 32**3, 3 * 4 * 32**2), ("float32", 2 * 64**3, 3 * 4 * 64**2)]
    assert ("bfloat16", 2 * 64**3, 3 * 2 * 64**2) in matmuls
    assert (TF32, 2 * 64**3, 3 * 4 * 64**2) in matmuls
    assert all(s.seconds > 0 for s in samples)
    assert said[0] == "launch overhead"
    assert "matmul bfloat16, 64 x 64" in said


def test_matmuls_stop_growing_before_they_take_too_long() -> None:
    impatient = replace(TINY, longest_s=1e-12)
    samples = measure_ops(torch.device("cpu"), impatient, lambda stage: None, dtypes=("float32",))
    assert [s.flops for s in samples if s.flops] == [2 * 32**3]


def test_precision_is_put_back() -> None:
    before = torch.get_float32_matmul_precision()
    with precision("medium"):
        assert torch.get_float32_matmul_precision() == "medium"
    with pytest.raises(RuntimeError, match="stop"):
        stop_within(precision("medium"))
    assert torch.get_float32_matmul_precision() == before


def stop_within(context: AbstractContextManager[None]) -> None:
    with context:
        raise RuntimeError("stop")


def test_every_effort_is_within_its_time() -> None:
    """Seconds that points ask for, before warming up: 60 by default and 15 when quick, for two axes."""
    for (device, quick), effort in EFFORTS.items():
        ops = 2 + 2 * len(effort.stream_bytes) + len(DTYPES[device]) * len(effort.matmul_sizes)
        asked = effort.passes * (ops * effort.point_s + 4 * len(effort.message_bytes) * effort.message_s)
        assert asked < (5 if quick else 30)


def test_jobs() -> None:
    assert Job.from_environment({}) == Job()
    four = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    job = Job.from_environment(four)
    assert (job.rank, job.local_rank, job.world_size, job.local_world_size, job.distributed) == (3, 1, 4, 2, True)
    assert str(job.mesh("2x2")) == "2x2"
    assert str(job.mesh(None)) == "4"
    assert Job().mesh(None) is None
    assert not Job.from_environment(four | {"WORLD_SIZE": "1", "RANK": "0"}).distributed


@pytest.mark.parametrize(
    ("environment", "mesh", "message"),
    [
        ({}, "2x2", "--mesh 2x2 needs one process per device: start with `torchrun"),
        ({"WORLD_SIZE": "2"}, None, "WORLD_SIZE is set but RANK is not"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}, None, "but MASTER_ADDR is not"),
    ],
)
def test_wrong_jobs(environment: dict[str, str], mesh: str | None, message: str) -> None:
    with pytest.raises((HardwareError, MeshError), match=message):
        Job.from_environment(environment).mesh(mesh)


def test_the_mesh_must_have_as_many_devices_as_there_are_processes() -> None:
    with pytest.raises(MeshError, match="mesh 2x4 has 8 devices, torchrun started 4 processes"):
        Job(world_size=4, distributed=True).mesh("2x4")


@pytest.mark.parametrize(
    ("name", "gib", "description"),
    [
        ("NVIDIA A100-SXM4-40GB", 39.5, "a100-40gb"),
        ("NVIDIA A100 80GB PCIe", 79.2, "a100-80gb"),
        ("NVIDIA H100 80GB HBM3", 79.1, "h100-sxm"),
        ("NVIDIA H100 PCIe", 79.1, "h100-pcie"),
        ("NVIDIA H200", 139.8, "h200"),
        ("NVIDIA B200", 178.4, "b200"),
        ("NVIDIA L40S", 44.4, "l40s"),
        ("NVIDIA GeForce RTX 4090", 23.5, "rtx-4090"),
        ("AMD Instinct MI300X", 191.7, "mi300x"),
    ],
)
def test_devices_are_known_by_what_torch_calls_them(name: str, gib: float, description: str) -> None:
    assert resembling_gpu(name, int(gib * 2**30)) == description


@pytest.mark.parametrize("name", ["NVIDIA GeForce RTX 3090", "NVIDIA H20", "NVIDIA L40"])
def test_unknown_devices_are_asked_for(name: str) -> None:
    with pytest.raises(HardwareError, match=rf"no shipped description resembles '{name}': say with --like"):
        resembling_gpu(name, 2**34)


def op(flops: float, seconds: float) -> OpSample:
    return OpSample(flops=flops, bytes=1, dtype="float32", seconds=seconds)


def test_the_fastest_pass_counts_of_what_all_passes_measured() -> None:
    assert fastest([[op(1, 3.0), op(2, 1.0)], [op(1, 2.0), op(2, 4.0), op(3, 1.0)]]) == [op(1, 2.0), op(2, 1.0)]


def test_one_process_is_its_own_slowest() -> None:
    assert slowest_of_all([op(1, 1.0)], Job()) == [op(1, 1.0)]
