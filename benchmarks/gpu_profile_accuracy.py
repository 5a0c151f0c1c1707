"""Peak memory of a training step as the profile says it, and as a GPU reports it.

    python benchmarks/gpu_profile_accuracy.py [--models gpt2-medium,llama-1b,bert-large,vit-large] [--batch 4] [--seq 1024]

Needs one CUDA device. Prints a JSON line per model: the profile's `peak_bytes`, `torch.cuda.max_memory_allocated` of the
second step (optimizer state exists), their ratio, the same for FLOPs, and the step's seconds beside the roofline's.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any


def gpt2_medium() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(n_embd=1024, n_layer=24, n_head=16, use_cache=False, **dropout))


def llama_1b() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 32000}
    return LlamaForCausalLM(LlamaConfig(num_attention_heads=32, num_key_value_heads=8, use_cache=False, **sizes))


def bert_large() -> Any:
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    return BertForMaskedLM(
        BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, max_position_embeddings=4096, **sizes)
    )


def vit_large() -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    return ViTForImageClassification(ViTConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **sizes))


MODELS: dict[str, Callable[[], Any]] = {
    "gpt2-medium": gpt2_medium,
    "llama-1b": llama_1b,
    "bert-large": bert_large,
    "vit-large": vit_large,
}


def inputs(name: str, batch: int, seq: int, dtype: Any) -> dict[str, Any]:
    import torch

    if name.startswith("vit"):
        pixels = torch.randn(batch, 3, 224, 224, device="cuda", dtype=dtype)
        return {"pixel_values": pixels, "labels": torch.zeros(batch, dtype=torch.long, device="cuda")}
    ids = torch.randint(0, 1000, (batch, seq), device="cuda")
    return {"input_ids": ids, "labels": ids.clone()}


def measure(name: str, batch: int, seq: int, dtype_name: str, hardware: str) -> dict[str, Any]:
    import torch

    import autopar

    dtype = getattr(torch, dtype_name)
    model = MODELS[name]().to("cuda", dtype).train()
    given = inputs(name, batch, seq, dtype)
    said = autopar.profile(model, kwargs=given, hardware=hardware).at()
    optimizer = torch.optim.AdamW(model.parameters())
    seconds = peak = 0.0
    for _ in range(3):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        model(**given).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        seconds, peak = time.perf_counter() - start, torch.cuda.max_memory_allocated()
    return {
        "model": name,
        "batch": batch,
        "seq": seq,
        "dtype": dtype_name,
        "said_bytes": said.peak_bytes,
        "measured_bytes": peak,
        "ratio": said.peak_bytes / peak,
        "said_s": said.step_s,
        "measured_s": seconds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seq", type=int, default=1024)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--hardware", default="h100-sxm")
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("this needs a CUDA device, and torch sees none", file=sys.stderr)
        return 2
    print(json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda}))
    for name in options.models.split(","):
        print(json.dumps(measure(name, options.batch, options.seq, options.dtype, options.hardware)), flush=True)
        torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
