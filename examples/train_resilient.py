"""Train so that it survives: killed processes, restarts, and another number of processes.

    torchrun --standalone --nproc-per-node 4 --max-restarts 3 examples/train_resilient.py --folder runs/a --steps 200

Kill any process while it runs (`kill -9`): the job starts again, and goes on from the last checkpoint as if nothing had been.
Start it again with another `--nproc-per-node`: it plans for that mesh, and the weights are cut anew as they are read.
"""

import argparse
import os
import warnings
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

import autopar

BATCH, HIDDEN, WARMUP = 24, 48, 5


class Classifier(nn.Module):
    """Nothing in it knows about devices."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(HIDDEN, 4 * HIDDEN), nn.GELU(), nn.Linear(4 * HIDDEN, HIDDEN), nn.LayerNorm(HIDDEN)
        )
        self.head = nn.Linear(HIDDEN, 12)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Mapping[str, torch.Tensor]:
        return {"loss": nn.functional.cross_entropy(self.head(self.layers(x)), y)}


def batch_of(step: int) -> dict[str, torch.Tensor]:
    """The global batch of a step, the same on every rank: a step that is done again sees the same data."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, HIDDEN, generator=generator)
    return {"x": x, "y": (x[:, :12] + 0.5 * x[:, 12:24]).argmax(1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, help="of the checkpoints")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=10, help="steps between checkpoints")
    options = parser.parse_args()

    device, backend = ("cuda", "nccl") if torch.cuda.is_available() else ("cpu", "gloo")
    dist.init_process_group(backend)
    if device == "cuda":
        torch.cuda.set_device(dist.get_rank() % torch.cuda.device_count())
    mesh = init_device_mesh(device, (dist.get_world_size(),), mesh_dim_names=("gpu",))
    torch.manual_seed(0)
    print(f"rank {dist.get_rank()} is process {os.getpid()}", flush=True)

    with torch.device("meta"):
        model = Classifier()
    parallel = autopar.compile(model, mesh, kwargs=batch_of(0), time_limit_s=20)
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=WARMUP)
    checkpoints = autopar.Checkpoints(options.folder)
    restored = checkpoints.load(parallel, optimizer, scheduler=schedule)
    if restored is None:
        parallel.init_weights(seed=0)

    with parallel.guard():
        for step in range(restored.step if restored else 0, options.steps):
            loss = parallel(**batch_of(step))["loss"]
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parallel.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if dist.get_rank() == 0:
                print(f"step {step}  loss {loss.item():.6f}", flush=True)
            if (step + 1) % options.every == 0:
                checkpoints.save(step + 1, parallel, optimizer, scheduler=schedule, wait=False)
        checkpoints.wait()
    dist.destroy_process_group()


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="torch")
    main()
