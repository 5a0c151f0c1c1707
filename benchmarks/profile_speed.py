"""How long it takes to know what a model costs, by depth: ours beside what one would do otherwise, in one run.

    python benchmarks/profile_speed.py --layers 8,32,80,126 --ways ours,fake,eager

Prints a JSON line per depth and way. Each runs in a process of its own, so that seconds (wall, imports and building the model
told apart) and peak memory are its own:

    ours   autopar.profile, symbolic in batch and sequence, of a Llama of the given width; then one more (batch, seq) point
    fake   the same model's training step on fake tensors under FlopCounterMode and MemTracker: numbers for one size
    eager  a training step run for real, in float32, at `--eager-width` (the full width fits no such machine)
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any


def config(width: int, layers: int) -> Any:
    """A Llama with the proportions of Llama-3-405B: 3.25 times wider MLP, heads of 128 in groups of 16."""
    from transformers import LlamaConfig

    heads = max(1, width // 128)
    return LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 13 // 4,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 16),
        vocab_size=128256 if width >= 4096 else 32000,
        use_cache=False,
    )


def build(width: int, layers: int, device: str, dtype: str) -> Any:
    import torch
    from transformers import LlamaForCausalLM

    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            return LlamaForCausalLM(config(width, layers)).train()
    finally:
        torch.set_default_dtype(before)


def tokens(batch: int, seq: int, device: str) -> dict[str, Any]:
    import torch

    ids = torch.zeros(batch, seq, dtype=torch.long, device=device)
    return {"input_ids": ids, "labels": ids.clone()}


def ours(options: argparse.Namespace, layers: int) -> dict[str, Any]:
    imported = timed(lambda: __import__("autopar").profile)
    built = timed(lambda: build(options.width, layers, "meta", "bfloat16"))
    import autopar

    batch = tokens(2, 4096, "meta")
    found = timed(lambda: autopar.profile(built.result, kwargs=batch, dynamic={"batch": 0, "seq": 1}))
    profile = found.result
    profile.at(batch=2, seq=512)
    point = timed(lambda: profile.at(batch=options.batch, seq=options.seq))
    return {
        "import_s": imported.seconds,
        "build_s": built.seconds,
        "profile_s": found.seconds,
        "further_point_s": point.seconds,
        "flops": point.result.torch_forward_flops + point.result.torch_backward_flops,
        "peak_bytes": point.result.peak_bytes,
    }


def fake(options: argparse.Namespace, layers: int) -> dict[str, Any]:
    imported = timed(lambda: __import__("transformers").LlamaForCausalLM)
    from autopar.torch_private import fake_mode

    with fake_mode():
        built = timed(lambda: build(options.width, layers, "cpu", "bfloat16"))
        found = timed(lambda: step(built.result, tokens(options.batch, options.seq, "cpu")))
    return {"import_s": imported.seconds, "build_s": built.seconds, "profile_s": found.seconds, **found.result}


def eager(options: argparse.Namespace, layers: int) -> dict[str, Any]:
    imported = timed(lambda: __import__("transformers").LlamaForCausalLM)
    built = timed(lambda: build(options.eager_width, layers, "cpu", "float32"))
    batch = tokens(options.eager_batch, options.eager_seq, "cpu")
    found = timed(lambda: step(built.result, batch))
    return {"import_s": imported.seconds, "build_s": built.seconds, "profile_s": found.seconds, **found.result}


def step(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """A training step under torch's own counters."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from autopar.torch_private import peak_tracker

    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    memory = peak_tracker()
    memory.track_external(model, optimizer, *batch.values())
    with memory:
        with FlopCounterMode(display=False) as flops:
            model(**batch).loss.backward()
        optimizer.step()
    peak = sum(kinds["Total"] for kinds in memory.get_tracker_snapshot("peak").values())
    return {"flops": flops.get_total_flops(), "peak_bytes": peak}


class timed:
    """The result of a call, and the seconds that it took."""

    def __init__(self, run: Callable[[], Any]) -> None:
        start = time.perf_counter()
        self.result = run()
        self.seconds = time.perf_counter() - start


WAYS = {"ours": ours, "fake": fake, "eager": eager}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default="8,32,80,126")
    parser.add_argument("--ways", default="ours,fake,eager")
    parser.add_argument("--width", type=int, default=16384, help="hidden size of ours and fake")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seq", type=int, default=4096)
    parser.add_argument("--eager-width", type=int, default=512)
    parser.add_argument("--eager-batch", type=int, default=1)
    parser.add_argument("--eager-seq", type=int, default=512)
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for one depth of one way")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "LAYERS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        way, layers = options.one
        start = time.perf_counter()
        figures = WAYS[way](options, int(layers))
        figures["all_s"] = time.perf_counter() - start
        figures["rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"way": way, "layers": int(layers), **figures}))
        return 0
    for layers in options.layers.split(","):
        for way in options.ways.split(","):
            command = [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--one", way, layers]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=options.timeout, check=True)
                print(done.stdout.splitlines()[-1], flush=True)
            except subprocess.TimeoutExpired:
                print(json.dumps({"way": way, "layers": int(layers), "stopped_after_s": options.timeout}), flush=True)
            except subprocess.CalledProcessError as error:
                print(json.dumps({"way": way, "layers": int(layers), "failed": error.stderr.splitlines()[-1:]}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
