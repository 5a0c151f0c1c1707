"""How long `autopar.compile` takes in a first start of a job and in a second one, which finds what the first one kept.

    python benchmarks/start_time.py

Prints a JSON line per model (hidden size 256, float32, mesh of one device): seconds in `compile` of two processes, one after
the other, with a cache folder of their own; imports, and making the model, are apart. `again_s` is the second start.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from typing import Any

MODELS = {"gpt2-12": ("gpt2", 12), "llama-8": ("llama", 8), "llama-32": ("llama", 32)}


def model(kind: str, layers: int) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    if kind == "gpt2":
        none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        sizes = {"n_embd": 256, "n_head": 8, "n_layer": layers, "vocab_size": 1024, "n_positions": 128}
        return GPT2LMHeadModel(GPT2Config(**sizes, **none, use_cache=False, bos_token_id=0, eos_token_id=0))
    wide = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4}
    return LlamaForCausalLM(LlamaConfig(**wide, num_hidden_layers=layers, vocab_size=1024, use_cache=False))


def start(name: str) -> float:
    """Seconds in `compile`, in this process."""
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    from autopar import compile

    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        mesh, built = init_device_mesh("cpu", (1,), mesh_dim_names=("gpu",)), model(*MODELS[name])
        tokens = torch.zeros(4, 64, dtype=torch.long)
        began_s = time.perf_counter()
        compile(built, mesh, kwargs={"input_ids": tokens, "labels": tokens})
        took_s = time.perf_counter() - began_s
        dist.destroy_process_group()
    return took_s


def started(name: str, cache: str) -> float:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--one", name]
    environment = {**os.environ, "AUTOPAR_CACHE_DIR": cache, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(found.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="of them, separated by commas")
    parser.add_argument("--one", choices=MODELS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(start(options.one))
        return
    import torch

    about = {"torch": torch.__version__, "machine": platform.machine(), "cpus": os.cpu_count()}
    for name in options.models.split(","):
        with tempfile.TemporaryDirectory() as cache:
            first_s, again_s = started(name, cache), started(name, cache)
        figures = {"first_s": round(first_s, 2), "again_s": round(again_s, 2), "ratio": round(first_s / again_s, 1)}
        print(json.dumps({"model": name, **figures, **about}), flush=True)


if __name__ == "__main__":
    main()
