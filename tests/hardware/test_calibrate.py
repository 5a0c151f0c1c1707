"""Calibration for real, on this CPU and on gloo processes: the file loads, says how well it fits, and predicts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from autopar.errors import HardwareError
from autopar.hardware import INTER_NODE, INTRA_NODE, Hardware, load, to_json
from autopar.hardware.calibrate import Job, assemble, bad_fits, calibrate, links_of, measure_beside_all, measure_mesh
from autopar.hardware.fit import CollectiveSample, OpSample
from autopar.hardware.link import Link
from autopar.hardware.measure import KIB, MIB, Effort, keeping, seconds_per_call, wall_clock
from autopar.hardware.measure_beside import Beside, share_hidden
from autopar.ir.conversion import ALL_REDUCE, COLLECTIVES
from autopar.ir.mesh import MeshSpec
from tests.hardware.test_files import unsourced
from tests.processes import run_processes

SHORT = Effort(
    passes=2,
    point_s=0.02,
    message_s=0.01,
    longest_s=5.0,
    matmul_sizes=(128, 256, 512),
    stream_bytes=(16 * MIB, 32 * MIB),
    message_bytes=(KIB, 256 * KIB, 2 * MIB),
)
GENEROUS, ATTEMPTS = 3.0, 5
"""Within such a factor measurements a moment apart agree, once in so many attempts, on a machine that does other things too."""

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def measured() -> Hardware:
    return calibrate("mine", device_type="cpu", effort=SHORT)


def test_a_measured_file_is_read_again(measured: Hardware, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(to_json(measured))
    assert load(path) == measured


def test_every_figure_has_its_source_and_its_fit(measured: Hardware) -> None:
    data = json.loads(to_json(measured))
    fit = data.pop("fit")
    assert unsourced(data) == []
    assert {"float32", "float64", "bfloat16", "float16", "memory", "launch"} >= set(fit) >= {"float32", "memory"}
    assert all(set(quality) == {"points", "median_error", "worst_error"} for quality in fit.values())
    assert all(q.points > 0 and 0 <= q.median_error <= q.worst_error for q in measured.fit.values())
    assert "measured" in measured.sources["peak_flops_per_s.float32"]
    assert measured.sources[f"links.{INTRA_NODE}"] == "not measured: as in cpu"
    assert measured.links == load("cpu").links
    assert measured.update_bytes_per_s is not None
    assert measured.update_bytes_per_s > measured.bytes_per_s / GENEROUS, "memory that is there is no slower than new memory"


def test_it_predicts_what_was_not_measured() -> None:
    """A product and an addition, each timed beside a calibration: what else the machine does changes from moment to moment."""
    a, b, c = torch.rand(400, 700), torch.rand(700, 300), torch.rand(12 * MIB // 4)
    product = (lambda: a @ b, 2 * 400 * 700 * 300, 4 * (400 * 700 + 700 * 300 + 400 * 300))
    addition = (keeping(lambda: c + 1.0), 0, 2 * 12 * MIB)
    ratios = []
    for _ in range(ATTEMPTS):
        measured = calibrate("mine", device_type="cpu", effort=SHORT)
        ratios.append(
            [
                measured.time_s(flops, bytes, "float32") / seconds_per_call(run, wall_clock, 0.05)
                for run, flops, bytes in (product, addition)
            ]
        )
        if all(1 / GENEROUS < ratio < GENEROUS for ratio in ratios[-1]):
            return
    pytest.fail(f"predicted against measured seconds of a product and an addition: {ratios}")


def test_what_computation_hides_is_a_share() -> None:
    assert share_hidden(sent_s=2.0, computed_s=2.0, together_s=2.0) == 1
    assert share_hidden(sent_s=2.0, computed_s=2.0, together_s=2.5) == 0.75
    assert share_hidden(sent_s=1.0, computed_s=9.0, together_s=9.5) == 0.5
    assert share_hidden(sent_s=1.0, computed_s=1.0, together_s=2.5) == 0
    assert share_hidden(sent_s=1.0, computed_s=1.0, together_s=0.5) == 1


@pytest.mark.parametrize(
    ("device", "like", "message"),
    [
        ("abacus", None, "no device 'abacus': give one of cpu, cuda"),
        ("cpu", "h100-sxm", "--like h100-sxm describes a cuda device, this is a cpu one"),
        ("cpu", "h999", "no hardware 'h999'"),
    ],
)
def test_what_cannot_be_measured_is_said_first(device: str, like: str | None, message: str) -> None:
    said: list[str] = []
    with pytest.raises(HardwareError, match=message):
        calibrate("mine", device_type=device, like=like, progress=said.append)
    assert said == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_no_gpu_is_said() -> None:
    with pytest.raises(HardwareError, match="need as many CUDA devices; torch finds 0"):
        calibrate("mine", device_type="cuda")


def test_a_bad_fit_is_told() -> None:
    samples = [
        OpSample(flops=0, bytes=1e6, dtype="float32", seconds=1e-3),
        OpSample(flops=1e9, bytes=0, dtype="float32", seconds=1e-2),
        OpSample(flops=2e9, bytes=0, dtype="float32", seconds=9e-2),
        OpSample(flops=3e9, bytes=0, dtype="float32", seconds=1e-2),
    ]
    found = assemble("bad", CPU, Job(), None, load("cpu"), samples, {})
    assert any(line.startswith("float32 fits badly (relative error") for line in bad_fits(found))


def axis_link(name: str) -> Link:
    return Link(name=name, bytes_per_s=1.0, latency_s=1.0)


@pytest.mark.parametrize(
    ("mesh", "per_node", "intra", "inter", "more"),
    [
        ("4", 4, "gpu", None, []),
        ("4", 2, None, "gpu", []),
        ("2x2", 4, "gpu", None, ["node", "gpu"]),
        ("2x2", 2, "gpu", "node", ["node", "gpu"]),
        ("2x2x2", 4, "gpu", "rack", ["rack", "node", "gpu"]),
        ("2x2x2", 2, "gpu", "rack", ["rack", "node", "gpu"]),
        ("2x1", 1, None, "node", []),
    ],
)
def test_axes_stand_for_the_links_that_they_run_over(
    mesh: str, per_node: int, intra: str | None, inter: str | None, more: list[str]
) -> None:
    spec, rest = MeshSpec.of(mesh), load("cpu")
    axes = {name: axis_link(name) for name, size in zip(spec.names, spec.sizes, strict=True) if size > 1}
    links, sources = links_of(spec, per_node, axes, rest, "here")
    assert links[INTRA_NODE] == (axes[intra] if intra else rest.links[INTRA_NODE])
    assert links[INTER_NODE] == (axes[inter] if inter else rest.links[INTER_NODE])
    assert [key for key in links if key not in (INTRA_NODE, INTER_NODE)] == more
    assert set(sources) == {f"links.{key}" for key in links}
    assert sources[f"links.{INTRA_NODE}"].startswith("measured: along" if intra else "not measured")


def test_links_are_fitted_each_collective_on_its_own() -> None:
    truth = {kind: Link(name=kind, bytes_per_s=1e9 * (i + 1), latency_s=1e-4 * (i + 1)) for i, kind in enumerate(COLLECTIVES)}
    samples = [
        CollectiveSample(kind=kind, bytes=bytes, size=2, seconds=link.collective_s(kind, bytes, 2))
        for kind, link in truth.items()
        for bytes in (1e3, 1e5, 1e7)
    ]
    ops = [
        OpSample(flops=0, bytes=1e6, dtype="float32", seconds=1e-3),
        OpSample(flops=1e9, bytes=0, dtype="float32", seconds=1e-2),
    ]
    job = Job(world_size=2, local_world_size=2, distributed=True)
    found = assemble("mine", CPU, job, MeshSpec.of("2"), load("cpu"), ops, {"gpu": samples})
    (link,) = found.axis_links(MeshSpec.of("2"))
    for kind, own in truth.items():
        assert link.collective_s(kind, 12345.0, 2) == pytest.approx(own.collective_s(kind, 12345.0, 2), rel=1e-6)
        assert found.fit[f"links.gpu.{kind}"].worst_error < 1e-6
    assert found.devices_per_node == 2
    assert found.sources[f"links.{INTER_NODE}"] == "not measured: as in cpu"


@pytest.mark.slow
def test_collectives_are_measured_on_processes() -> None:
    run_processes(4, measure_both_axes)


def measure_both_axes(rank: int) -> None:
    """All processes have the same samples, of all kinds and sizes; the figures predict a fresh measurement."""
    spec = MeshSpec.of("a=2,b=2")
    found = measure_mesh(spec, CPU, SHORT, lambda stage: None)
    beside = measure_beside_all(spec, CPU, SHORT, lambda stage: None)
    everyone: list[object] = [None] * 4
    dist.all_gather_object(everyone, (found, beside))
    assert all(other == (found, beside) for other in everyone)
    assert 0 <= beside.overlap <= 1
    assert 0 <= beside.skew_s < 0.1
    assert set(found) == {"a", "b"}
    for samples in found.values():
        assert {s.kind for s in samples} == set(COLLECTIVES)
        assert {s.bytes for s in samples} == set(SHORT.message_bytes)
        assert all(s.seconds > 0 for s in samples)
    job = Job(rank=rank, world_size=4, local_world_size=4, distributed=True)
    ops = [
        OpSample(flops=0, bytes=1e6, dtype="float32", seconds=1e-3),
        OpSample(flops=1e9, bytes=0, dtype="float32", seconds=1e-2),
    ]
    hardware = assemble("mine", CPU, job, spec, load("cpu"), ops, found, beside)
    assert Beside(overlap=hardware.overlap, skew_s=hardware.skew_s) == beside
    fresh = next(
        s for s in measure_mesh(spec, CPU, SHORT, lambda stage: None)["b"] if s.kind == ALL_REDUCE and s.bytes == 2 * MIB
    )
    predicted = hardware.axis_links(spec)[1].collective_s(ALL_REDUCE, 2 * MIB, 2)
    assert 0.1 < predicted / fresh.seconds < 10, (predicted, fresh.seconds)  # four processes on few cores: very generous
