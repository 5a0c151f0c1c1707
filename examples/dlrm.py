"""Train a recommender as DLRM: tables of ids that no device has room for, and small networks that every device can hold.

    torchrun --standalone --nproc-per-node 2 examples/dlrm.py

Nobody says how: the budget is smaller than the tables, so the plan cuts them, and says where each one rests.
"""

import argparse
import itertools
import warnings

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

import autopar

BATCH, DENSE, BAG, WIDTH = 256, 13, 4, 32
ROWS = (60_000, 40_000, 20_000, 1_000)


def network(*widths: int) -> nn.Sequential:
    layers = [layer for i, o in itertools.pairwise(widths) for layer in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


class Recommender(nn.Module):
    """Numbers [batch, dense] and bags of ids [batch, table, bag] to the loss of a click that is predicted."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(rows, WIDTH, mode="sum") for rows in ROWS)
        for table in self.tables:
            nn.init.uniform_(table.weight, -0.05, 0.05)
        features = len(ROWS) + 1
        self.bottom = network(DENSE, 64, WIDTH)
        self.top = network(WIDTH + features * (features - 1) // 2, 64, 32, 1)
        left, right = torch.tril_indices(features, features, offset=-1)
        self.register_buffer("left", left)
        self.register_buffer("right", right)

    def forward(self, dense: Tensor, ids: Tensor, clicked: Tensor) -> dict[str, Tensor]:
        vectors = [self.bottom(dense)] + [table(ids[:, i]) for i, table in enumerate(self.tables)]
        stacked = torch.stack(vectors, 1)
        products = (stacked @ stacked.transpose(1, 2))[:, self.left, self.right]
        logits = self.top(torch.cat([vectors[0], products], 1)).squeeze(1)
        return {"loss": nn.functional.binary_cross_entropy_with_logits(logits, clicked)}


def batch_of(step: int) -> dict[str, Tensor]:
    """The global batch of a step, the same on every rank. Whether somebody clicks follows from two numbers and some ids."""
    generator = torch.Generator().manual_seed(step)
    dense = torch.randn(BATCH, DENSE, generator=generator)
    popular = torch.rand(BATCH, len(ROWS), BAG, generator=generator) ** 4  # a few ids are seen often, most of them never
    ids = (popular * torch.tensor(ROWS).view(1, -1, 1)).long()
    taste = (ids % 2).float().mean((1, 2)) - 0.5
    return {"dense": dense, "ids": ids, "clicked": (dense[:, 0] - dense[:, 1] + 2 * taste > 0).float()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--memory", default="28MiB", help="budget per process; one device alone needs 44 MiB")
    options = parser.parse_args()

    device, backend = ("cuda", "nccl") if torch.cuda.is_available() else ("cpu", "gloo")
    dist.init_process_group(backend)
    if device == "cuda":
        torch.cuda.set_device(dist.get_rank() % torch.cuda.device_count())
    mesh = init_device_mesh(device, (dist.get_world_size(),), mesh_dim_names=("gpu",))
    torch.manual_seed(0)
    first = dist.get_rank() == 0

    model = Recommender().to(device)
    parallel = autopar.compile(model, mesh, kwargs=batch_of(0), memory=options.memory, optimizer="sgd", time_limit_s=20)
    if first:
        print(f"peak {parallel.plan.peak_bytes / 2**20:.1f} MiB of {options.memory} per process")
        for name, tensor in parallel.plan.state.items():
            if "tables" in name:
                print(f"{name}  {list(tensor.shape)}  {tensor.placement}")

    optimizer = torch.optim.SGD(parallel.parameters(), lr=1.0)
    for step in range(options.steps):
        loss = parallel(**batch_of(step))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if first and (step % 10 == 0 or step == options.steps - 1):
            print(f"step {step}  loss {loss.item():.4f}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="torch")
    main()
