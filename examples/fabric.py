"""Train in a Lightning Fabric loop: compiling is the `parallelize_fn` of Fabric's ModelParallelStrategy.

    torchrun --standalone --nproc-per-node 2 examples/fabric.py
    python examples/fabric.py --plain          # the same loop with the plain model in one process

Needs `lightning-fabric`.
"""

import argparse
import warnings

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import ModelParallelStrategy
from torch.distributed.device_mesh import DeviceMesh

import autopar

BATCH, FEATURES, ACCUMULATE = 16, 64, 2


class Regression(torch.nn.Module):
    """An MLP that returns its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Linear(FEATURES, 4 * FEATURES), torch.nn.GELU(), torch.nn.Linear(4 * FEATURES, 1)
        )  # fmt: skip

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.mse_loss(self.body(x), y)


def batch_of(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The global batch of a micro-step, the same on every rank."""
    x = torch.randn(BATCH, FEATURES, generator=torch.Generator().manual_seed(step))
    return x, x[:, :8].sum(1, keepdim=True)


def compiled(model: torch.nn.Module, mesh: DeviceMesh) -> torch.nn.Module:
    """Fabric's mesh has two axes, one for each of its sizes; the plan uses both as is best."""
    return autopar.compile(model, mesh, args=batch_of(0), time_limit_s=5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plain", action="store_true", help="do not compile: one process, for comparison")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--devices", type=int, default=2)
    options = parser.parse_args()

    torch.manual_seed(0)
    model = Regression()
    if options.plain:
        fabric = Fabric(accelerator="cpu", devices=1)
    else:
        strategy = ModelParallelStrategy(compiled, data_parallel_size=1, tensor_parallel_size=options.devices)
        fabric = Fabric(devices=options.devices, strategy=strategy)
    fabric.launch()
    model = fabric.setup_module(model)
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(model.parameters(), lr=1e-2))
    for step in range(options.steps):
        for part in range(ACCUMULATE):
            with fabric.no_backward_sync(model, enabled=part < ACCUMULATE - 1):  # `model.module.no_sync()` saves sending, too
                loss = model(*batch_of(step * ACCUMULATE + part)) / ACCUMULATE
                fabric.backward(loss)
        norm = fabric.clip_gradients(model, optimizer, max_norm=1.0)
        norm = norm.full_tensor() if isinstance(norm, torch.distributed.tensor.DTensor) else norm
        optimizer.step()
        optimizer.zero_grad()
        fabric.print(f"step {step}  loss {loss.item():.4f}  norm {norm.item():.4f}")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="torch|lightning")
    main()
