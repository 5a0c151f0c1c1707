"""Train a small GPT-2 on all local processes under a plan that fits a byte budget.

    torchrun --standalone --nproc-per-node 4 examples/train.py --mesh 2x2 --memory 12MiB

On CPU over gloo here; with CUDA devices the same script uses nccl.
"""

import argparse
import warnings

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from transformers import GPT2Config, GPT2LMHeadModel

import autopar

BATCH, SEQ, VOCABULARY = 8, 64, 256


def build_model() -> torch.nn.Module:
    """Nothing in it knows about devices. Dropout is off, so that runs on any mesh see the same numbers."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=4, n_embd=128, n_head=4, n_positions=SEQ, vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def batch_of(step: int) -> dict[str, torch.Tensor]:
    """The global batch of a step, the same on every rank: sequences that count upwards from random starts."""
    starts = torch.randint(VOCABULARY, (BATCH, 1), generator=torch.Generator().manual_seed(step))
    tokens = (starts + torch.arange(SEQ)) % VOCABULARY
    return {"input_ids": tokens, "labels": tokens}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mesh", default="2x2", help="as many devices as processes, slowest link first")
    parser.add_argument("--memory", default="12MiB", help="budget per device")
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()

    device, backend = ("cuda", "nccl") if torch.cuda.is_available() else ("cpu", "gloo")
    dist.init_process_group(backend)
    if device == "cuda":
        torch.cuda.set_device(dist.get_rank() % torch.cuda.device_count())
    spec = autopar.MeshSpec.of(options.mesh)
    mesh = init_device_mesh(device, spec.sizes, mesh_dim_names=spec.names)

    model = build_model().to(device)
    parallel = autopar.compile(model, mesh, kwargs=batch_of(0), memory=options.memory, time_limit_s=20)

    optimizer = torch.optim.AdamW(parallel.parameters(), lr=1e-3)
    for step in range(options.steps):
        loss = parallel(**batch_of(step)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parallel.parameters(), 1.0)
        optimizer.step()
        if dist.get_rank() == 0:
            print(f"step {step}  loss {loss.item():.4f}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="torch")
    main()
