"""Pre-train a GPT-2 on text: each process loads its own rows, the learning rate warms up and falls, a held-out part is scored.

    torchrun --standalone --nproc-per-node 2 examples/pretrain_gpt2.py

The text is the documentation that ships with CPython, as bytes; nothing is downloaded. For text of yours, give `--text FILE`.
"""

import argparse
import itertools
import math
import time
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.utils.data import DataLoader, Dataset
from transformers import GPT2Config, GPT2LMHeadModel

import autopar

SEQ, BYTES, WARMUP = 128, 256, 10


class Windows(Dataset):
    """Windows [seq] of a text, as byte values, beside one another."""

    def __init__(self, text: bytes) -> None:
        self.data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()

    def __len__(self) -> int:
        return len(self.data) // SEQ

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        tokens = self.data[i * SEQ : (i + 1) * SEQ]
        return {"input_ids": tokens, "labels": tokens}


def text_of(path: Path | None) -> bytes:
    from pydoc_data.topics import topics

    return path.read_bytes() if path else "\n\n".join(topics[name] for name in sorted(topics)).encode()


def build_model() -> torch.nn.Module:
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=4, n_embd=128, n_head=4, n_positions=SEQ, vocab_size=BYTES, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def factor(step: int, steps: int) -> float:
    """Of the learning rate: up over `WARMUP` steps, then down to a tenth along a cosine."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.55 + 0.45 * math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP))


@torch.no_grad()
def bits_per_byte(parallel: torch.nn.Module, loader: DataLoader, batches: int = 4) -> float:
    """Of text that was not trained on."""
    parallel.eval()
    some = itertools.islice(autopar.shard_loader(loader, parallel), batches)
    losses = [parallel(**batch).loss.item() for batch in some]
    parallel.train()
    return sum(losses) / len(losses) / math.log(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="a file; left out: Python's documentation")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16, help="windows of a step, over all processes")
    parser.add_argument("--memory", default="40MiB", help="budget per process")
    options = parser.parse_args()

    device, backend = ("cuda", "nccl") if torch.cuda.is_available() else ("cpu", "gloo")
    dist.init_process_group(backend)
    if device == "cuda":
        torch.cuda.set_device(dist.get_rank() % torch.cuda.device_count())
    mesh = init_device_mesh(device, (dist.get_world_size(),), mesh_dim_names=("gpu",))

    text = text_of(options.text)
    train, held_out = Windows(text[: -len(text) // 10]), Windows(text[-len(text) // 10 :])
    order = torch.Generator().manual_seed(0)
    loader = DataLoader(train, batch_size=options.batch, shuffle=True, drop_last=True, generator=order)
    scored = DataLoader(held_out, batch_size=options.batch, drop_last=True)

    parallel = autopar.compile(
        build_model().to(device), mesh, kwargs=next(iter(scored)), memory=options.memory, time_limit_s=20
    )
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=3e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(step, options.steps))
    first = dist.get_rank() == 0
    step, begun = 0, time.perf_counter()
    while step < options.steps:
        for batch in autopar.shard_loader(loader, parallel):
            loss = parallel(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parallel.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if first and step % 10 == 0:
                print(f"step {step}  loss {loss.item():.4f}", flush=True)
            step += 1
            if step == options.steps:
                break
    rate = step * options.batch * SEQ / (time.perf_counter() - begun)
    score = bits_per_byte(parallel, scored)
    if first:
        print(f"{rate:,.0f} bytes per second; held-out text: {score:.3f} bits per byte")
    dist.destroy_process_group()


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="torch")
    main()
