"""How long emission takes by depth: from a plan to the graphs that run, and to what they are counted to.

    python benchmarks/emit_time.py --layers 4,32

Prints a JSON line per depth, of a GPT-2 with small tensors (on fake tensors sizes do not matter) planned on 2x2 devices:
seconds of `emit` and of `measure`, the best of `--repeat` runs; and the ratio of the deepest to the shallowest. Graphs are per
region type and class of calls, so the time should hardly grow with depth.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from typing import Any

import torch

MESH = "2x2"


def planned(layers: int) -> Any:
    """A program and a plan of it: some plan, quickly."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from autopar.api import plan_program
    from autopar.ir.mesh import MeshSpec
    from autopar.tracer import trace

    sizes: dict[str, Any] = {"n_embd": 64, "n_head": 4, "vocab_size": 128, "n_positions": 64, "n_layer": layers}
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(**sizes, **none, use_cache=False, bos_token_id=0, eos_token_id=0))
        tokens = torch.zeros(8, 16, dtype=torch.long)
    program = trace(model, (), {"input_ids": tokens, "labels": tokens}, name=f"gpt2 with {layers} layers")
    return program, plan_program(program, MeshSpec.of(MESH), gap=0.5, time_limit_s=30)[0]


def seconds(layers: int, repeat: int) -> dict[str, Any]:
    from autopar.codegen.emit import emit
    from autopar.codegen.measure import measure

    program, plan = planned(layers)
    emitting, measuring = [], []
    for _ in range(repeat):
        start = time.perf_counter()
        emitted = emit(program, plan)
        emitting.append(time.perf_counter() - start)
        start = time.perf_counter()
        measure(emitted)
        measuring.append(time.perf_counter() - start)
    graphs = sum(len(set(map(id, region.classes))) for region in emitted.regions.values())
    return {"layers": layers, "emit_s": min(emitting), "measure_s": min(measuring), "pairs_of_graphs": graphs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default="4,32", help="depths, separated by commas")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    lines = [seconds(int(n), options.repeat) for n in options.layers.split(",")]
    for line in lines:
        print(json.dumps(line | {"machine": platform.machine(), "torch": torch.__version__}), flush=True)
    first, last = min(lines, key=lambda line: line["layers"]), max(lines, key=lambda line: line["layers"])
    ratio = (last["emit_s"] + last["measure_s"]) / (first["emit_s"] + first["measure_s"])
    print(json.dumps({"ratio": ratio, "of": f"{last['layers']} to {first['layers']} layers"}))


if __name__ == "__main__":
    main()
