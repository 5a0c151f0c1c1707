"""Train a vision transformer on images that are made as they are needed: waves of eight directions under noise.

torchrun --standalone --nproc-per-node 2 examples/vit.py
"""

import argparse
import math
import warnings

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from transformers import ViTConfig, ViTForImageClassification

import autopar

BATCH, SIDE, CLASSES = 32, 32, 8


def build_model() -> torch.nn.Module:
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=SIDE, patch_size=8, num_channels=3, hidden_size=96, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=192, num_labels=CLASSES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return ViTForImageClassification(config)


def batch_of(step: int) -> dict[str, torch.Tensor]:
    """The global batch of a step, the same on every rank: images [batch, 3, side, side], and the direction of each."""
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)
    phase = 2 * math.pi * torch.rand(BATCH, 1, 1, generator=generator)
    angle = (labels * math.pi / CLASSES).view(-1, 1, 1)
    x, y = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    wave = torch.sin((x * angle.cos() + y * angle.sin()) + phase)
    images = wave.unsqueeze(1) + 0.5 * torch.randn(BATCH, 3, SIDE, SIDE, generator=generator)
    return {"pixel_values": images, "labels": labels}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--memory", default="16MiB", help="budget per process")
    options = parser.parse_args()

    device, backend = ("cuda", "nccl") if torch.cuda.is_available() else ("cpu", "gloo")
    dist.init_process_group(backend)
    if device == "cuda":
        torch.cuda.set_device(dist.get_rank() % torch.cuda.device_count())
    mesh = init_device_mesh(device, (dist.get_world_size(),), mesh_dim_names=("gpu",))

    parallel = autopar.compile(build_model().to(device), mesh, kwargs=batch_of(0), memory=options.memory, time_limit_s=20)
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=1e-3)
    for step in range(options.steps):
        batch = batch_of(step)
        out = parallel(**batch)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        logits = out.logits.full_tensor()  # outputs other than the loss are DTensors: on every rank, the whole one
        right = (logits.argmax(-1) == batch["labels"].to(device)).float().mean()
        if dist.get_rank() == 0 and (step % 10 == 0 or step == options.steps - 1):
            print(f"step {step}  loss {out.loss.item():.4f}  right {right.item():.0%}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="torch")
    main()
