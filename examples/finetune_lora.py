"""Fine-tune a Llama with low-rank adapters of `peft`: freeze first, compile then, and save the adapters alone.

    torchrun --standalone --nproc-per-node 2 examples/finetune_lora.py

The frozen weights have no gradient and no optimizer state, in the plan as well. The base is small and random here; one that was
trained is read by `LlamaForCausalLM.from_pretrained(folder)`. Needs `peft`.
"""

import argparse
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

import autopar

BATCH, SEQ, VOCABULARY = 8, 64, 256


def build_model() -> torch.nn.Module:
    """A frozen Llama with adapters of rank 8 in attention and MLP."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, use_cache=False,
    )  # fmt: skip
    targets = ["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
    adapters = LoraConfig(r=8, lora_alpha=16, target_modules=targets, lora_dropout=0.0, task_type="CAUSAL_LM")
    return get_peft_model(LlamaForCausalLM(config), adapters)


def batch_of(step: int) -> dict[str, torch.Tensor]:
    """The global batch of a step, the same on every rank: sequences that count upwards from random starts."""
    starts = torch.randint(VOCABULARY, (BATCH, 1), generator=torch.Generator().manual_seed(step))
    tokens = (starts + torch.arange(SEQ)) % VOCABULARY
    return {"input_ids": tokens, "labels": tokens}


def save_adapters(parallel: torch.nn.Module, model: torch.nn.Module, path: Path) -> int:
    """As `save_pretrained` of peft does, with the whole of each adapter; how many tensors."""
    trained = {name: p for name, p in parallel.named_parameters() if p.requires_grad}
    whole = {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in trained.items()}  # on all ranks
    found = get_peft_model_state_dict(model, state_dict={name: value.detach().cpu() for name, value in whole.items()})
    if dist.get_rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in found.items()}, path)
    return len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--memory", default="32MiB", help="budget per process")
    parser.add_argument("--out", type=Path, default=Path("runs/adapters/adapter_model.safetensors"))
    options = parser.parse_args()

    device, backend = ("cuda", "nccl") if torch.cuda.is_available() else ("cpu", "gloo")
    dist.init_process_group(backend)
    if device == "cuda":
        torch.cuda.set_device(dist.get_rank() % torch.cuda.device_count())
    mesh = init_device_mesh(device, (dist.get_world_size(),), mesh_dim_names=("gpu",))

    model = build_model().to(device)
    parallel = autopar.compile(model, mesh, kwargs=batch_of(0), memory=options.memory, time_limit_s=20)
    trained = [p for p in parallel.parameters() if p.requires_grad]
    first = dist.get_rank() == 0
    if first:
        count, all_ = sum(p.numel() for p in trained), sum(p.numel() for p in parallel.parameters())
        print(f"{count:,} of {all_:,} numbers are trained; peak {parallel.plan.peak_bytes / 2**20:.1f} MiB per process")

    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for step in range(options.steps):
        loss = parallel(**batch_of(step)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if first and (step % 10 == 0 or step == options.steps - 1):
            print(f"step {step}  loss {loss.item():.4f}", flush=True)
    saved = save_adapters(parallel, model, options.out)
    if first:
        print(f"wrote {saved} adapters to {options.out}")
    dist.destroy_process_group()


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="torch|transformers")
    main()
