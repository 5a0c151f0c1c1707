"""Train with transformers' own Trainer: the compiled module takes the model's place, and nothing else changes.

    torchrun --standalone --nproc-per-node 2 examples/huggingface_trainer.py
    python examples/huggingface_trainer.py --plain          # the same training of the plain model

Needs `accelerate`. Every process reads the same global batch: `per_device_train_batch_size` is that of the whole job.
"""

import argparse
import os
import tempfile
import warnings

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import autopar

BATCH, SEQ, VOCABULARY, ACCUMULATE = 8, 32, 128, 2


class Counting(torch.utils.data.Dataset):
    """Sequences that count upwards from random starts."""

    def __len__(self) -> int:
        return 256

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        start = torch.randint(VOCABULARY, (1,), generator=torch.Generator().manual_seed(i))
        tokens = (start + torch.arange(SEQ)) % VOCABULARY
        return {"input_ids": tokens, "labels": tokens}


def build_model() -> torch.nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def example() -> dict[str, torch.Tensor]:
    """What the Trainer calls the model with. It counts the tokens of a step, so that losses add up over micro-batches."""
    tokens = torch.zeros(BATCH, SEQ, dtype=torch.long)
    return {"input_ids": tokens, "labels": tokens, "num_items_in_batch": torch.tensor(float(BATCH * ACCUMULATE * (SEQ - 1)))}


def compiled(model: torch.nn.Module, options: dict[str, object]) -> torch.nn.Module:
    """The model on all processes. Adds to the Trainer's options what accelerate has to know on GPUs."""
    device, backend = ("cuda", "nccl") if torch.cuda.is_available() else ("cpu", "gloo")
    dist.init_process_group(backend)
    processes = dist.get_world_size()
    mesh = init_device_mesh(device, (processes,), mesh_dim_names=("gpu",))
    parallel = autopar.compile(model.to(device), mesh, kwargs=example(), time_limit_s=5)
    if device == "cuda" and processes > 1:  # all processes share one batch, and no DistributedDataParallel around them
        from accelerate import ParallelismConfig

        options["parallelism_config"] = ParallelismConfig(tp_size=processes)
        parallel.config.distributed_config = {"tp_size": processes}
    return parallel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plain", action="store_true", help="do not compile: one process, for comparison")
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()

    more: dict[str, object] = {}
    model = build_model() if options.plain else compiled(build_model(), more)
    args = TrainingArguments(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=BATCH, gradient_accumulation_steps=ACCUMULATE,
        max_steps=options.steps, learning_rate=1e-2, max_grad_norm=1.0, logging_steps=1, save_strategy="no", report_to=[],
        disable_tqdm=True, **more,
    )  # fmt: skip
    trainer = Trainer(model=model, args=args, train_dataset=Counting())
    trainer.train()
    if os.environ.get("RANK", "0") == "0":
        for log in trainer.state.log_history[:-1]:
            print(f"step {log['step']}  loss {float(log['loss']):.4f}  norm {float(log['grad_norm']):.4f}", flush=True)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="torch")
    main()
