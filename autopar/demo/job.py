"""What each process of the demo runs; rank 0 talks, and trains the serial model afterwards."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

import autopar
from autopar.bytes import human
from autopar.codegen.module import ParallelModule
from autopar.demo import MESH, arguments
from autopar.demo.text import VOCABULARY, batches, corpus, readable
from autopar.errors import AutoparError
from autopar.ir.document import write_atomically
from autopar.ir.mesh import MeshSpec
from autopar.render import print_plan
from autopar.torch_private import AllocationTracker

BATCH, SEQ = 16, 128
TOLERANCE = 1e-4


def build_model() -> nn.Module:
    """GPT-2 with 4 layers of 256, byte-level, without dropout (so that the serial run sees the same numbers)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=4,
        n_embd=256,
        n_head=8,
        n_positions=SEQ,
        vocab_size=VOCABULARY,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def build_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def train(model: nn.Module, data: Tensor, steps: int, console: Console, label: str) -> list[float]:
    """An ordinary training loop: nothing in it knows whether the model is parallel."""
    optimizer = build_optimizer(model)
    losses = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(label, total=steps, loss=float("nan"))
        for batch in batches(data, batch=BATCH, seq=SEQ, steps=steps):
            loss = model(**batch).loss
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
            progress.update(task, advance=1, loss=losses[-1])
    return losses


def measured_bytes(parallel: ParallelModule, data: Tensor) -> int:
    """The most bytes of tensors alive at once on this process during one whole training step."""
    optimizer = build_optimizer(parallel)
    batch = next(batches(data, batch=BATCH, seq=SEQ, steps=1))
    for step in range(2):  # the first step only creates optimizer state
        tracker = AllocationTracker()
        with tracker:
            parallel(**batch).loss.backward()
        if step == 0:
            optimizer.step()
            optimizer.zero_grad()
    resident = [p.to_local() for p in parallel.parameters() if isinstance(p, DTensor)]
    state = [v.to_local() if isinstance(v, DTensor) else v for s in optimizer.state.values() for v in s.values()]
    parallel.zero_grad()
    return tracker.peak_bytes + sum(t.numel() * t.element_size() for t in [*resident, *state])


def traced_step(parallel: ParallelModule, data: Tensor, path: Path) -> None:
    """Write what happens when in two steps, the first one of which is slower than those that follow."""
    with autopar.trace(parallel, path, hardware="cpu"):
        for batch in batches(data, batch=BATCH, seq=SEQ, steps=2):
            parallel(**batch).loss.backward()
    parallel.zero_grad()


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What the parallel run leaves on rank 0."""

    losses: list[float]
    weights: dict[str, Tensor]


def parallel_run(options: Any, data: Tensor, console: Console) -> Trained:
    spec = MeshSpec.of(MESH)
    mesh = init_device_mesh("cpu", spec.sizes, mesh_dim_names=spec.names)
    batch = next(batches(data, batch=BATCH, seq=SEQ, steps=1))
    start = time.perf_counter()
    with console.status("tracing, profiling and solving") if console.is_terminal else _quiet():
        parallel = autopar.compile(build_model(), mesh, kwargs=batch, memory=options.memory, time_limit_s=20, cache=False)
    console.print(f"planned and compiled in {time.perf_counter() - start:.1f} s under a budget of {options.memory} per process")
    used, counted = measured_bytes(parallel, data), parallel.measure()
    if options.trace is not None:
        traced_step(parallel, data, options.trace)
        console.print(f"wrote the timelines of two steps, predicted and measured: {options.trace}")
    if dist.get_rank() == 0:
        parallel.plan.save(options.out / "plan.json")
        print_plan(parallel.plan, counted, console=console)
        console.print(
            f"peak bytes of a step: predicted {human(int(parallel.plan.peak_bytes))}, "
            f"emitted graphs {human(counted.peak_bytes)}, measured {human(used)}"
        )
    parallel = autopar.compile(build_model(), mesh, kwargs=batch, plan=parallel.plan)
    losses = train(parallel, data, options.steps, console, f"parallel, {dist.get_world_size()} processes")
    weights = {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in parallel.state_dict().items()}
    return Trained(losses=losses, weights=weights)


def _quiet() -> Any:
    import contextlib

    return contextlib.nullcontext()


def write_results(out: Path, parallel: Trained, serial: list[float], data: Tensor) -> str:
    """loss.png and sample.txt; returns the sample."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(serial, color="0.7", linewidth=5, label="serial")
    axes.plot(parallel.losses, color="tab:blue", linewidth=1.5, label="autopar, 4 processes")
    axes.set(xlabel="step", ylabel="cross-entropy (nats per byte)", title="GPT-2 on CPython's documentation topics")
    axes.legend()
    figure.savefig(out / "loss.png", dpi=150)
    sample = generate(parallel.weights, data)
    write_atomically(out / "sample.txt", sample + "\n")
    return sample


@torch.no_grad()
def generate(weights: dict[str, Tensor], data: Tensor, length: int = 200) -> str:
    """Text that the trained weights continue, sampled at temperature 0.8, in the plain model."""
    model = build_model().eval()
    model.load_state_dict(weights)
    generator = torch.Generator().manual_seed(0)
    tokens = data[:32].unsqueeze(0)
    for _ in range(length):
        logits = model(input_ids=tokens[:, -SEQ:]).logits[:, -1] / 0.8
        tokens = torch.cat([tokens, torch.multinomial(logits.softmax(-1), 1, generator=generator)], 1)
    return readable(tokens[0])


def judge(options: Any, parallel: Trained, data: Tensor, console: Console) -> int:
    """Train serially on the same batches and compare; 1 if the losses differ."""
    torch.set_num_threads(os.cpu_count() or 1)
    serial = train(build_model(), data, options.steps, console, "serial, 1 process")
    differences = [abs(a - b) / abs(b) for a, b in zip(parallel.losses, serial, strict=True)]
    sample = write_results(options.out, parallel, serial, data)
    worst = max(differences)
    console.print(f"largest relative difference of the losses over {options.steps} steps: {worst:.2e} (allowed {TOLERANCE:g})")
    console.rule("a sample of generated text")
    console.print(sample, markup=False, highlight=False)
    console.rule()
    console.print(f"wrote {options.out}/plan.json, {options.out}/loss.png, {options.out}/sample.txt")
    return 0 if worst <= TOLERANCE else 1


def main() -> int:
    options = arguments(sys.argv[1:])
    warnings.filterwarnings("ignore")
    logging.getLogger("torch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(minutes=5))
    rank = dist.get_rank()
    console = Console(quiet=rank != 0, width=None if sys.stdout.isatty() else 140)
    data = corpus()
    try:
        trained = parallel_run(options, data, console)
    except AutoparError as error:
        if rank == 0:
            print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        dist.destroy_process_group()
    return judge(options, trained, data, console) if rank == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
