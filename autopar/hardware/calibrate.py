"""Calibration: a hardware description from measurements on the devices at hand.

One process measures its device; started by torchrun, all processes do so at once, then measure collectives along each axis of
a mesh. What is not measured (8-bit rates; links without torchrun) is taken from a shipped description, and marked so.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from autopar.errors import HardwareError, MeshError
from autopar.hardware.device import FitQuality, Hardware
from autopar.hardware.files import known, load
from autopar.hardware.fit import CollectiveSample, OpSample, Roofline, fit_collective, fit_roofline
from autopar.hardware.link import INTER_NODE, INTRA_NODE, USUAL, Link, LinkFigures
from autopar.hardware.measure import EFFORTS, Effort, Progress, measure_ops, update_sample
from autopar.hardware.measure_beside import Beside, measure_beside
from autopar.hardware.measure_links import BACKENDS, measure_axis
from autopar.ir.conversion import COLLECTIVES
from autopar.ir.mesh import MeshSpec

Sample = TypeVar("Sample", OpSample, CollectiveSample)

BAD_MEDIAN, BAD_WORST = 0.25, 1.0
"""Relative errors above which a fit is called bad."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """The processes that measure together, as torchrun says in the environment; one process without it."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    distributed: bool = False

    @staticmethod
    def from_environment(environment: Mapping[str, str] = os.environ) -> Job:
        if "WORLD_SIZE" not in environment:
            return Job()
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
        if missing := [name for name in (*names, "MASTER_ADDR", "MASTER_PORT") if name not in environment]:
            raise HardwareError(f"WORLD_SIZE is set but {missing[0]} is not: start with torchrun, or unset WORLD_SIZE")
        rank, local_rank, world_size, local_world_size = (int(environment[name]) for name in names)
        return Job(
            rank=rank,
            local_rank=local_rank,
            world_size=world_size,
            local_world_size=local_world_size,
            distributed=world_size > 1,
        )

    def mesh(self, asked: str | None) -> MeshSpec | None:
        """The mesh to measure: as asked for, else all processes along one axis; None for a single process."""
        if not self.distributed:
            if asked is not None:
                raise MeshError(
                    f"--mesh {asked} needs one process per device: start with "
                    f"`torchrun --nproc-per-node N -m autopar.cli hardware calibrate --mesh {asked} …`"
                )
            return None
        spec = MeshSpec.of(asked or self.world_size)
        if spec.devices != self.world_size:
            raise MeshError(f"mesh {spec} has {spec.devices} devices, torchrun started {self.world_size} processes")
        return spec


def calibrate(
    name: str,
    *,
    device_type: str,
    mesh: str | None = None,
    like: str | None = None,
    quick: bool = False,
    progress: Progress = lambda stage: None,
    effort: Effort | None = None,
) -> Hardware:
    """The description of this machine, under `name`; all processes of a torchrun job must call it, each gets the same.

    `like` is the description that fills in what cannot be measured; by default that of the same device, as torch names it.
    Raises HardwareError or MeshError before anything is measured.
    """
    job = Job.from_environment()
    spec = job.mesh(mesh)
    require_device(device_type, job)
    effort = effort or EFFORTS[device_type, quick]
    device = torch.device(device_type, job.local_rank) if device_type == "cuda" else torch.device(device_type)
    rest = load(like) if like is not None else load(resembling(device))
    if rest.device_type != device_type:
        raise HardwareError(f"--like {rest.name} describes a {rest.device_type} device, this is a {device_type} one")
    with process_group(job, device):
        samples = slowest_of_all(fastest([measure_ops(device, effort, progress) for _ in range(effort.passes)]), job)
        updates = slowest_of_all(fastest([[update_sample(device, effort, progress)] for _ in range(effort.passes)]), job)
        links = measure_mesh(spec, device, effort, progress) if spec else {}
        beside = measure_beside_all(spec, device, effort, progress) if spec else None
    return assemble(name, device, job, spec, rest, samples, links, beside, updates[0])


def require_device(device_type: str, job: Job) -> None:
    if device_type not in BACKENDS:
        raise HardwareError(f"no device {device_type!r}: give one of {', '.join(BACKENDS)}")
    found = torch.cuda.device_count() if device_type == "cuda" else job.local_world_size
    if found < job.local_world_size:
        raise HardwareError(f"{job.local_world_size} processes per node need as many CUDA devices; torch finds {found}")


def resembling(device: torch.device) -> str:
    """The shipped description of this device; raises HardwareError where torch's name for it is none of theirs."""
    if device.type == "cpu":
        return "cpu"
    properties = torch.cuda.get_device_properties(device)
    return resembling_gpu(properties.name, properties.total_memory)


def resembling_gpu(name: str, memory_bytes: int) -> str:
    """
    >>> resembling_gpu("NVIDIA A100-SXM4-80GB", 80 * 2**30), resembling_gpu("NVIDIA H100 PCIe", 80 * 2**30)
    ('a100-80gb', 'h100-pcie')
    """
    words = name.lower().replace("-", " ").split()
    for description in known():
        model, *rest = description.split("-")
        if model == "a100" and model in words and rest == ["40gb" if memory_bytes < 50e9 else "80gb"]:
            return description
        if model == "h100" and model in words and rest == ["pcie" if "pcie" in words else "sxm"]:
            return description
        if model not in ("a100", "h100") and all(word in words for word in (model, *rest)):
            return description
    raise HardwareError(
        f"no shipped description resembles {name!r}: say with --like which one fills in what is not measured "
        f"({', '.join(known())}, or a file)"
    )


@contextmanager
def process_group(job: Job, device: torch.device) -> Iterator[None]:
    """The default process group, for as long as is measured; one that exists already is used and left."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not job.distributed or dist.is_initialized():
        yield
        return
    dist.init_process_group(BACKENDS[device.type])
    try:
        yield
    finally:
        dist.destroy_process_group()


def measure_mesh(spec: MeshSpec, device: torch.device, effort: Effort, progress: Progress) -> dict[str, list[CollectiveSample]]:
    """Samples by axis; axes of one device have none."""
    mesh = init_device_mesh(device.type, spec.sizes, mesh_dim_names=spec.names)
    return {
        axis: typical([list(measure_axis(mesh, axis, device, effort, progress)) for _ in range(effort.passes)])
        for axis in axes_of(spec)
    }


def measure_beside_all(spec: MeshSpec, device: torch.device, effort: Effort, progress: Progress) -> Beside:
    """Of all axes, that on which least is hidden and most is waited for."""
    mesh = init_device_mesh(device.type, spec.sizes, mesh_dim_names=spec.names)
    found = [measure_beside(mesh, axis, device, effort, progress) for axis in axes_of(spec)]
    return Beside(overlap=min(b.overlap for b in found), skew_s=max(b.skew_s for b in found)) if found else Beside()


def axes_of(spec: MeshSpec) -> list[str]:
    """Those with something to send."""
    return [name for name, size in zip(spec.names, spec.sizes, strict=True) if size > 1]


def fastest(passes: Sequence[Sequence[Sample]]) -> list[Sample]:
    """Of everything that all passes measured, the shortest: whatever else the machine did, it did not do it all the time."""
    return merged(passes, min)


def typical(passes: Sequence[Sequence[Sample]]) -> list[Sample]:
    """Of what all passes measured, that in the middle: collectives pay for what else any of the machines does."""
    return merged(passes, statistics.median)


def slowest_of_all(samples: Sequence[OpSample], job: Job) -> list[OpSample]:
    """What the slowest process measured of each op that all of them did."""
    if not job.distributed:
        return list(samples)
    everyone: list[Sequence[OpSample]] = [[] for _ in range(job.world_size)]
    dist.all_gather_object(everyone, list(samples))
    return merged(everyone, max)


def merged(lists: Sequence[Sequence[Sample]], choose: Callable[[list[float]], float]) -> list[Sample]:
    seconds: dict[Sample, list[float]] = {}
    for sample in (sample for samples in lists for sample in samples):
        seconds.setdefault(replace(sample, seconds=0.0), []).append(sample.seconds)
    return [replace(what, seconds=choose(own)) for what, own in seconds.items() if len(own) == len(lists)]


def assemble(
    name: str,
    device: torch.device,
    job: Job,
    spec: MeshSpec | None,
    rest: Hardware,
    samples: Sequence[OpSample],
    measured: Mapping[str, Sequence[CollectiveSample]],
    beside: Beside | None = None,
    update: OpSample | None = None,
) -> Hardware:
    """Fits, and what is not measured from `rest`."""
    roofline = fit_roofline(samples)
    fits = {axis: fit_link(axis, own, device) for axis, own in measured.items()}
    where = f"{machine(device)}, torch {torch.__version__}{processes(device, job)}"
    rates, rate_sources = rates_of(roofline, rest, where)
    per_node, per_node_source = node(device, job, rest)
    links, link_sources = links_of(spec, per_node, {axis: link for axis, (link, _) in fits.items()}, rest, where)
    memory_bytes, memory_source = memory(device, job)
    return Hardware(
        name=name,
        device_type=rest.device_type,
        peak_flops_per_s=rates,
        peak_bytes_per_s=roofline.bytes_per_s,
        efficiency={"matmul": 1.0, "memory": 1.0},
        launch_s=roofline.launch_s,
        memory_bytes=memory_bytes,
        devices_per_node=per_node,
        links=links,
        overlap=(beside or rest).overlap,
        skew_s=(beside or rest).skew_s,
        update_bytes_per_s=update.bytes / update.seconds if update else rest.update_bytes_per_s,
        sources={
            **rate_sources,
            "peak_bytes_per_s": f"measured: copies and additions larger than caches, {where}",
            "efficiency": "1: the rates above were reached",
            "launch_s": f"measured: the smallest addition, {where}",
            "memory_bytes": memory_source,
            "devices_per_node": per_node_source,
            "overlap": f"measured: matmuls beside all-reduces, {where}" if beside else f"not measured: {rest.name}",
            "skew_s": f"measured: empty all-reduces behind matmuls, {where}" if beside else f"not measured: {rest.name}",
            **({"update_bytes_per_s": f"measured: fused AdamW, {where}"} if update else {}),
            **link_sources,
        },
        fit={**roofline.quality, **{f"links.{axis}.{key}": q for axis, (_, own) in fits.items() for key, q in own.items()}},
    )


def fit_link(axis: str, samples: Sequence[CollectiveSample], device: torch.device) -> tuple[Link, dict[str, FitQuality]]:
    """One pair of figures for all collectives, and one for each; how well each meets its samples."""
    overall, _ = fit_collective(samples)
    figures: dict[str, LinkFigures] = {}
    quality: dict[str, FitQuality] = {}
    for kind in COLLECTIVES:
        figures[kind], quality[kind] = fit_collective([s for s in samples if s.kind == kind])
    return (
        Link(
            name=f"{BACKENDS[device.type]} along {axis}, {samples[0].size} devices",
            bytes_per_s=overall.bytes_per_s,
            latency_s=overall.latency_s,
            algorithms=dict(USUAL),
            figures=figures,
        ),
        quality,
    )


def rates_of(roofline: Roofline, rest: Hardware, where: str) -> tuple[dict[str, float], dict[str, str]]:
    """Achieved FLOP/s by dtype, and their sources; those that were not measured as `rest` has them."""
    others = {dtype: rate for dtype, rate in rest.flops_per_s.items() if dtype not in roofline.flops_per_s}
    sources = {f"peak_flops_per_s.{dtype}": f"measured: square matmuls, {where}" for dtype in roofline.flops_per_s}
    sources |= {f"peak_flops_per_s.{dtype}": f"not measured: {rest.name}, times its efficiency" for dtype in others}
    return {**roofline.flops_per_s, **others}, sources


def links_of(
    spec: MeshSpec | None, per_node: int, measured: Mapping[str, Link], rest: Hardware, where: str
) -> tuple[dict[str, Link], dict[str, str]]:
    """Links and their sources: each measured axis under its name, and standing for the nodes' link that it runs over.

    The innermost axis within nodes and the outermost that leaves them are taken; a link that no axis ran over is `rest`'s.
    """
    links: dict[str, Link] = {}
    sources: dict[str, str] = {}
    probe = replace(rest, devices_per_node=per_node)
    sides = probe.axis_links(replace(spec, links=())) if spec else ()
    for key in (INTRA_NODE, INTER_NODE):
        axes = [
            a for a, side in zip(spec.names if spec else (), sides, strict=True) if side == rest.links[key] and a in measured
        ]
        if axes:
            chosen = axes[-1] if key == INTRA_NODE else axes[0]
            links[key], sources[f"links.{key}"] = measured[chosen], f"measured: along {chosen} of mesh {spec}, {where}"
        else:
            links[key], sources[f"links.{key}"] = rest.links[key], f"not measured: as in {rest.name}"
    if len(measured) > 1:
        for axis, link in measured.items():
            links.setdefault(axis, link)
            sources.setdefault(f"links.{axis}", f"measured: along {axis} of mesh {spec}, {where}")
    return links, sources


def node(device: torch.device, job: Job, rest: Hardware) -> tuple[int, str]:
    """Devices per node, and the source."""
    if job.distributed:
        return job.local_world_size, "processes per node, as torchrun started them"
    if device.type == "cuda":
        return torch.cuda.device_count(), "devices that torch finds on this machine"
    return rest.devices_per_node, f"not measured: as in {rest.name}"


def memory(device: torch.device, job: Job) -> tuple[int, str]:
    """Bytes that one device, or one of the processes that share a machine, can have; and their source."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory, "total_memory, as torch reads it from the driver"
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    shared = f", shared by {job.local_world_size} processes" if job.local_world_size > 1 else ""
    return total // job.local_world_size, f"physical memory of the machine{shared}"


def machine(device: torch.device) -> str:
    """The name of the device, as the driver or the kernel has it."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def processes(device: torch.device, job: Job) -> str:
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return f"{threads}, the slowest of {job.world_size} processes at once" if job.distributed else threads


def bad_fits(hardware: Hardware) -> Iterator[str]:
    """One line for each figure whose fit is worse than one should plan with."""
    for name, quality in hardware.fit.items():
        if quality.median_error > BAD_MEDIAN or quality.worst_error > BAD_WORST:
            yield (
                f"{name} fits badly (relative error {quality.median_error:.0%} median, {quality.worst_error:.0%} worst, "
                f"{quality.points} points): measure again on an idle machine"
            )
